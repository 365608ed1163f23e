/* How records are run: in a child that shares our memory by machine.c, and by traced.c in one that
 * is stopped after its exec. Whoever includes this says how the three things are done there:
 *
 *   make_call   make the call and give its result; nonzero if it is still under way, and `run` is
 *               to be entered again, at the same record, when there is more to see
 *   load, store move a value of 4 or 8 bytes from or to an address of the child
 *   ask, answer tell the parent that it is asked, and wait for what it answers
 */
static inline int make_call(struct ck_frame *frame, const struct ck_record *record,
                            const long *operands, long *result);
static inline long load(struct ck_frame *frame, unsigned long address, unsigned width);
static inline void store(struct ck_frame *frame, unsigned long address, unsigned width, long value);
static inline void ask(struct ck_frame *frame, uint32_t record);
static inline long answer(struct ck_frame *frame, long awake);

enum { EINTR_ = 4, EAGAIN_ = 11, LAST_ERRNO = 4095, MOST_TRIES = 1024 };

static inline long
operand(const struct ck_frame *frame, const struct ck_record *record, unsigned n)
{
    uint64_t value = record->operand[n];
    unsigned kind = record->operand_kind[n];

    if (kind == CK_IMAGE)
        return (long)(frame->image + value);
    if (kind == CK_SCRATCH)
        return (long)(frame->scratch + value);
    if (kind == CK_REGISTER)
        return frame->registers[value];
    return (long)value;
}

static inline int
tolerated(const struct ck_record *record, long result)
{
    for (unsigned i = 0; i < CK_TOLERATED && record->tolerated[i]; i++)
        if (result == -(long)record->tolerated[i])
            return 1;
    return 0;
}

static inline long
move(struct ck_frame *frame, const struct ck_record *record)
{
    unsigned long place = (unsigned long)operand(frame, record, 0);

    if (record->result != CK_NOWHERE)
        return load(frame, place, record->nr);
    store(frame, place, record->nr, operand(frame, record, 1));     /* H3: the frame's scratch */
    return 0;
}

static inline int
call(struct ck_frame *frame, const struct ck_record *record, long *result)
{
    const long operands[CK_OPERANDS] = {
        operand(frame, record, 0), operand(frame, record, 1), operand(frame, record, 2),
        operand(frame, record, 3), operand(frame, record, 4), operand(frame, record, 5),
    };

    for (unsigned tries = 1;; tries++) {
        if (make_call(frame, record, operands, result))
            return 1;
        if (*result == -EINTR_ && (record->flags & CK_RETRY))      /* H8 */
            continue;
        if (*result != -EAGAIN_ || !(record->flags & CK_AGAIN) || tries >= MOST_TRIES)
            return 0;
    }
}

/* Run the frame's records in order, from `first`. The answer is CK_DONE when all have succeeded,
 * CK_FAILED when one has failed or the last did not exec (the report holds the failure that the
 * caller should see), and CK_RUNNING when a call is still under way. */
static inline uint32_t
run(struct ck_frame *frame, uint32_t first)
{
    uint32_t state = CK_DONE;
    uint32_t worst = 0;
    long kept = 0;

    for (uint32_t i = first; i < frame->count; i++) {
        const struct ck_record *record = &frame->records[i];
        struct ck_stamp *stamp = frame->trace ? &frame->trace[i] : 0;
        long result;
        int failed;

        *(volatile uint32_t *)&frame->report.record = i;          /* H5 */
        if (stamp)
            *(volatile uint64_t *)&stamp->before = ck_cycles();
        if (record->kind == CK_MOVE)
            result = move(frame, record);
        else if (record->kind == CK_SET) {
            ask(frame, i);
            result = 0;
        } else if (record->kind == CK_WAIT)
            result = answer(frame, operand(frame, record, 0));
        else if (call(frame, record, &result))
            return CK_RUNNING;
        if (stamp) {
            stamp->after = ck_cycles();
            stamp->result = result;
        }
        if (record->kind == CK_MOVE)
            failed = 0;
        else if (record->flags & CK_EXACT)
            failed = result != record->expected;
        else
            failed = result < 0 && result >= -LAST_ERRNO && !tolerated(record, result);
        if (record->flags & CK_TRY) {
            /* All candidates are tried. The first reason counts; being merely absent is none. */
            if (kept == 0 || tolerated(record, kept)) {
                kept = result;
                worst = i;
            }
            state = CK_FAILED;
        } else if (failed) {
            kept = result;
            worst = i;
            state = CK_FAILED;
            break;
        }
        if (record->result != CK_NOWHERE)
            frame->registers[record->result] = result;
    }
    frame->report.record = worst;
    frame->report.result = kept;
    return state;
}
