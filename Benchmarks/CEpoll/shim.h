/* epoll is not part of Swift's Glibc module; the load generator polls with nothing else. */
#include <sys/epoll.h>
