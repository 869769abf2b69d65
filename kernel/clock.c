#include "batch.h"

#include <string.h>

/* Frames of a block into the clock that they sum up: `blocks.pack_clock` says what is to come out. */

enum { N_VBUCKETS = 1 << 16, WORD_BITS = 64 };

/* The highest seqno of each vbucket that came. One for all calls: the interpreter lock keeps them apart. */
typedef struct {
    uint64_t has[N_VBUCKETS / WORD_BITS];
    uint64_t seqno[N_VBUCKETS];
} Clock;

static Clock shared;

static void raise_to(Clock *of, const uint8_t *pair) {
    uint64_t vb = read_big(pair, 2), seqno = read_big(pair + 2, 8);
    uint64_t bit = UINT64_C(1) << (vb % WORD_BITS);
    uint64_t *word = &of->has[vb / WORD_BITS];
    if (!(*word & bit) || seqno > of->seqno[vb])
        of->seqno[vb] = seqno;
    *word |= bit;
}

static bool add_pairs(Clock *of, Span body) {
    if (body.size % PAIR_BYTES)
        return false;
    for (size_t at = 0; at < body.size; at += PAIR_BYTES)
        raise_to(of, body.start + at);
    return true;
}

static bool add_entries(Clock *of, Span body) {
    for (size_t at = 0, size; at < body.size; at += size) {
        size = entry_size((Span){body.start + at, body.size - at});
        if (!size)
            return false;
        raise_to(of, body.start + at);
    }
    return true;
}

/* Adds the frame at the start of *frames*; the size of it, 0 where it is damaged. */
static size_t add_frame(Clock *of, Span frames) {
    if (frames.size < FRAME_HEAD_BYTES)
        return 0;
    uint8_t kind = frames.start[0];
    size_t size = (size_t)read_big(frames.start + 1, 4);
    if ((kind != HEADER_KIND && kind != ENTRIES_KIND) || size > frames.size - FRAME_HEAD_BYTES ||
        crc32_of((Span){frames.start + 9, 8 + size}, kind) != read_big(frames.start + 5, 4))
        return 0;
    Span body = {frames.start + FRAME_HEAD_BYTES, size};
    if (kind == HEADER_KIND ? !add_pairs(of, body) : !add_entries(of, body))
        return 0;
    return FRAME_HEAD_BYTES + size;
}

static PyObject *pairs_of(const Clock *of) {
    size_t count = 0;
    for (size_t word = 0; word < N_VBUCKETS / WORD_BITS; word++)
        for (uint64_t bits = of->has[word]; bits; bits &= bits - 1)
            count++;
    PyObject *pairs = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)(count * PAIR_BYTES));
    if (pairs == NULL)
        return NULL;
    uint8_t *to = (uint8_t *)PyBytes_AsString(pairs);
    for (size_t vb = 0; vb < N_VBUCKETS; vb++) {
        uint64_t bits = of->has[vb / WORD_BITS] >> (vb % WORD_BITS);
        if (!bits)
            vb |= WORD_BITS - 1; /* none is left in this word */
        else if (bits & 1)
            to = write_big(write_big(to, vb, 2), of->seqno[vb], 8);
    }
    return pairs;
}

PyObject *clock_of(Span pairs) {
    memset(shared.has, 0, sizeof(shared.has));
    add_pairs(&shared, pairs);
    return pairs_of(&shared);
}

/* pack_clock(frames) -> the clock of *frames* as pairs, ascending; None where one of them is damaged */
PyObject *pack_clock(PyObject *module, PyObject *frames) {
    (void)module;
    char *start;
    Py_ssize_t size;
    if (PyBytes_AsStringAndSize(frames, &start, &size) < 0)
        return NULL;
    memset(shared.has, 0, sizeof(shared.has));
    for (size_t at = 0, frame; at < (size_t)size; at += frame) {
        frame = add_frame(&shared, (Span){(const uint8_t *)start + at, (size_t)size - at});
        if (!frame)
            Py_RETURN_NONE;
    }
    return pairs_of(&shared);
}
