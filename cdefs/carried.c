/* The first stage, as it was built, carried along in the library. */
#include "parent.h"

__asm__(".section .rodata\n"
        ".balign 16\n"
        "ck_stage_begin:\n"
        ".incbin \"build/child/stage\"\n"
        "ck_stage_end:\n"
        ".text\n");

extern const char ck_stage_begin[] __attribute__((visibility("hidden")));
extern const char ck_stage_end[] __attribute__((visibility("hidden")));

const char *
ck_stage_image(uint64_t *size)
{
    *size = (uint64_t)(ck_stage_end - ck_stage_begin);
    return ck_stage_begin;
}
