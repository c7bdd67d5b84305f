/* Swift has no word for "this will be read soon". It is a hint: nothing is read, nothing can fail,
   and the thread does not wait, as it would for a load that comes too early. */
#ifndef TOLLGATE_PREFETCH_H
#define TOLLGATE_PREFETCH_H

static inline void tollgate_prefetch(const void *address) { __builtin_prefetch(address, 1, 3); }

#endif
