/* Memory, for whoever runs records in the process whose memory it is (run.h). */
static inline long
load(struct ck_frame *frame, unsigned long address, unsigned width)
{
    (void)frame;
    return width == 4 ? *(volatile int32_t *)address : *(volatile int64_t *)address;
}

static inline void
store(struct ck_frame *frame, unsigned long address, unsigned width, long value)
{
    (void)frame;
    if (width == 4)
        *(volatile int32_t *)address = (int32_t)value;
    else
        *(volatile int64_t *)address = value;
}
