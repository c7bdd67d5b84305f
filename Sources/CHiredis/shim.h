// The reply reader and the command formatter are all of hiredis that Tollgate uses.
#include <hiredis/hiredis.h>
#include <hiredis/read.h>
