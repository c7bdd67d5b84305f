// What glibc keeps of freed memory, which the Glibc module leaves out.
#include <malloc.h>
