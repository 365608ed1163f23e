/* Before a spawn: a program gets its addresses, and every record is checked to stay inside it. */
#include <stdint.h>
#include <string.h>

#include "parent.h"

static int
operand_fits(const struct ck_program *program, const struct ck_record *record, int n)
{
    uint64_t value = record->operand[n];

    switch (record->operand_kind[n]) {
    case CK_IMMEDIATE: return 1;
    case CK_IMAGE: return value < program->image_size;
    case CK_SCRATCH: return value < program->scratch_size;
    case CK_REGISTER: return value < program->register_count;
    default: return 0;
    }
}

static int
record_fits(const struct ck_program *program, const struct ck_record *record)
{
    for (int n = 0; n < CK_OPERANDS; n++)
        if (!operand_fits(program, record, n))
            return 0;
    if (record->result != CK_NOWHERE && record->result >= program->register_count)
        return 0;
    if (record->kind == CK_MOVE)
        return record->operand_kind[0] == CK_SCRATCH && (record->nr == 4 || record->nr == 8) &&
               record->operand[0] + record->nr <= program->scratch_size;
    return record->kind == CK_CALL || record->kind == CK_SET || record->kind == CK_WAIT;
}

int64_t
ck_link(struct ck_program *program, const struct ck_program *setup, const char *records,
        uint32_t records_size, uint8_t *image, uint32_t image_size, const char *pointers,
        uint32_t count)
{
    *program = *setup;
    program->records = (const struct ck_record *)(const void *)records;
    program->count = records_size / sizeof(struct ck_record);
    program->image = image;
    program->image_size = image_size;
    for (uint32_t i = 0; i < count; i++) {
        struct ck_pointers array;
        memcpy(&array, pointers + i * sizeof array, sizeof array);
        for (uint32_t n = 0; n < array.count; n++) {
            uint8_t *place = image + array.offset + 8 * (size_t)n;
            uint64_t value;
            memcpy(&value, place, sizeof value);
            value += (uintptr_t)image;
            memcpy(place, &value, sizeof value);
        }
    }
    for (uint32_t i = 0; i < program->count; i++)
        if (!record_fits(program, &program->records[i]))
            return i;
    return -1;
}
