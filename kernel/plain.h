/* Moves over the plain bytes of a string: those that are neither control characters, quotes, backslashes nor beyond ASCII.
 * Two forms, one of which every x86-64 has. */
#ifndef CHANNELINDEX_PLAIN_H
#define CHANNELINDEX_PLAIN_H

#include "scan.h"

#if defined(__SSE2__) && !defined(WITHOUT_VECTORS)
#include <emmintrin.h>

enum { VECTOR_BYTES = 16, N_VECTORS = TEXT_BLOCK / VECTOR_BYTES };

/* The bits of those of TEXT_BLOCK bytes that are not plain, the first one's lowest. */
static inline uint64_t odd_of(const uint8_t *at) {
    uint64_t odd[N_VECTORS];
#pragma GCC unroll 4
    for (int i = 0; i < N_VECTORS; i++) {
        __m128i bytes = _mm_loadu_si128((const __m128i *)(at + i * VECTOR_BYTES));
        __m128i quotes = _mm_cmpeq_epi8(bytes, _mm_set1_epi8('"')), slashes = _mm_cmpeq_epi8(bytes, _mm_set1_epi8('\\'));
        __m128i others = _mm_cmplt_epi8(bytes, _mm_set1_epi8(' ')); /* signed: what is beyond ASCII is below zero */
        odd[i] = (unsigned)_mm_movemask_epi8(_mm_or_si128(_mm_or_si128(quotes, slashes), others));
    }
    return odd[0] | odd[1] << 16 | odd[2] << 32 | odd[3] << 48;
}

/* The same of the last *left* bytes. What is behind them looks like control characters. */
static __attribute__((noinline)) uint64_t odd_of_last(const uint8_t *at, size_t left) {
    uint8_t padded[TEXT_BLOCK] = {0};
    memcpy(padded, at, left);
    return odd_of(padded);
}

/* Looks at the block that begins at *start*, which is not behind the end. */
static inline void enter_block(Cursor *cursor, const uint8_t *start) {
    size_t left = (size_t)(cursor->end - start);
    cursor->block = start;
    cursor->odd = left >= TEXT_BLOCK ? odd_of(start) : odd_of_last(start, left);
}

/* Moves to the first byte that is not plain, or to the end. */
static inline void skip_plain(Cursor *cursor) {
    const uint8_t *at = cursor->at;
    for (;;) {
        while (at - cursor->block >= TEXT_BLOCK)
            enter_block(cursor, cursor->block + TEXT_BLOCK);
        uint64_t odd = cursor->odd & ~UINT64_C(0) << (at - cursor->block);
        if (odd) {
            cursor->at = cursor->block + __builtin_ctzll(odd);
            return;
        }
        at = cursor->block + TEXT_BLOCK;
    }
}

#else

#define EACH(byte) (UINT64_C(0x0101010101010101) * (byte))

static inline void enter_block(Cursor *cursor, const uint8_t *start) { cursor->block = start; }

/* Moves to the first byte that is not plain, or near it, eight at a time. The lowest high bit of *odd* is exact; a borrow
 * may set further ones. */
static inline void skip_plain(Cursor *cursor) {
    while (cursor->end - cursor->at >= 8) {
        uint64_t word;
        memcpy(&word, cursor->at, 8);
        uint64_t quote = word ^ EACH('"'), slash = word ^ EACH('\\');
        uint64_t odd = ((word - EACH(0x20)) | (quote - EACH(1)) | (slash - EACH(1)) | word) & EACH(0x80);
        if (odd) {
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
            cursor->at += __builtin_ctzll(odd) / 8;
#endif
            return;
        }
        cursor->at += 8;
    }
}

#endif
#endif
