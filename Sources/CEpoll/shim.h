/* epoll and eventfd are not part of Swift's Glibc module; the sidecar's own loop and the load
   generator poll with nothing else. */
#include <sys/epoll.h>
#include <sys/eventfd.h>
