/* Chooses the machine's own instructions: ck_syscall, ck_cycles and, for the child, ck_clone. */
#include <stdint.h>

#if defined(__x86_64__)
#include "arch/x86_64.h"
#elif defined(__aarch64__)
#include "arch/aarch64.h"
#else
#error "clonekit runs on x86_64 and aarch64"
#endif
