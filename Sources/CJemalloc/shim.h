// The system's jemalloc. Linking it makes it the allocator of the whole process.
#include <jemalloc/jemalloc.h>
