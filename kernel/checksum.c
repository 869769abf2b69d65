#include "checksum.h"

/* A sum is the remainder of the bytes, as a polynomial over bits whose first one has the highest power, by P. Its own bits
 * are reflected: bit 31 is x^0. Where the processor multiplies such polynomials, which is asked for at the start, blocks of
 * 16 bytes are folded into one: x^d times a block is replaced by something of 16 bytes with the same remainder. What is left
 * is the tables', as is everything on other processors. */

enum { STEP_BYTES = 8, BLOCK_BYTES = 16, N_LANES = 4, BLOCK_BITS = 8 * BLOCK_BYTES };

static const uint32_t polynomial = 0xEDB88320u;

static uint32_t tables[STEP_BYTES][256];

static uint32_t times_x(uint32_t value) { return value & 1 ? polynomial ^ value >> 1 : value >> 1; }

static uint32_t read_little(const uint8_t *at) {
    return at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 | (uint32_t)at[3] << 24;
}

/* Eight bytes at a time: table k has what a byte that lies k bytes before the last one does to the sum. */
static uint32_t by_tables(uint32_t crc, const uint8_t *at, const uint8_t *end) {
    for (; end - at >= STEP_BYTES; at += STEP_BYTES) {
        uint32_t low = crc ^ read_little(at), high = read_little(at + 4);
        crc = tables[7][low & 0xFF] ^ tables[6][low >> 8 & 0xFF] ^ tables[5][low >> 16 & 0xFF] ^ tables[4][low >> 24] ^
              tables[3][high & 0xFF] ^ tables[2][high >> 8 & 0xFF] ^ tables[1][high >> 16 & 0xFF] ^ tables[0][high >> 24];
    }
    for (; at < end; at++)
        crc = tables[0][(crc ^ *at) & 0xFF] ^ crc >> 8;
    return crc;
}

#if defined(__x86_64__) && defined(__GNUC__)

#include <immintrin.h>

#define FOLDING __attribute__((target("pclmul,sse4.1")))

/* What the two halves of a block are multiplied by: the first one is 64 bits further. */
typedef struct {
    uint64_t first, second;
} Factors;

static bool can_fold;
static Factors by_lanes, by_block; /* to fold a block over all lanes, and over one block */

/* x^power modulo P, for the half of a block: its 32 bits are taken as 64, and a product of reflected ones is a bit short. */
static uint64_t factor_of(unsigned power) {
    uint32_t value = UINT32_C(1) << 31;
    for (; power; power--)
        value = times_x(value);
    return (uint64_t)value << 1;
}

static Factors factors_of(unsigned n_bits) { return (Factors){factor_of(n_bits + 32), factor_of(n_bits - 32)}; }

static void prepare_folding(void) {
    __builtin_cpu_init();
    can_fold = __builtin_cpu_supports("pclmul") && __builtin_cpu_supports("sse4.1");
    by_lanes = factors_of(N_LANES * BLOCK_BITS);
    by_block = factors_of(BLOCK_BITS);
}

FOLDING static __m128i load(const void *at) { return _mm_loadu_si128((const __m128i *)at); }

/* *block*, folded over what *factors* are for, added to *next*, which is there. */
FOLDING static __m128i fold(__m128i block, __m128i factors, __m128i next) {
    __m128i first = _mm_clmulepi64_si128(block, factors, 0x00), second = _mm_clmulepi64_si128(block, factors, 0x11);
    return _mm_xor_si128(next, _mm_xor_si128(first, second));
}

/* The sum of whole blocks, one at least. */
FOLDING static uint32_t by_folding(uint32_t crc, const uint8_t *at, const uint8_t *end) {
    const __m128i one = load(&by_block), all = load(&by_lanes);
    __m128i folded = _mm_xor_si128(load(at), _mm_cvtsi32_si128((int)crc));
    at += BLOCK_BYTES;
    if (end - at >= (2 * N_LANES - 1) * BLOCK_BYTES) {
        __m128i second = load(at), third = load(at + BLOCK_BYTES), fourth = load(at + 2 * BLOCK_BYTES);
        for (at += 3 * BLOCK_BYTES; end - at >= N_LANES * BLOCK_BYTES; at += N_LANES * BLOCK_BYTES) {
            folded = fold(folded, all, load(at));
            second = fold(second, all, load(at + BLOCK_BYTES));
            third = fold(third, all, load(at + 2 * BLOCK_BYTES));
            fourth = fold(fourth, all, load(at + 3 * BLOCK_BYTES));
        }
        folded = fold(fold(fold(folded, one, second), one, third), one, fourth);
    }
    for (; at < end; at += BLOCK_BYTES)
        folded = fold(folded, one, load(at));
    uint8_t left[BLOCK_BYTES];
    _mm_storeu_si128((__m128i *)left, folded);
    return by_tables(0, left, left + BLOCK_BYTES);
}

#else

static const bool can_fold = false;

static void prepare_folding(void) {}

static uint32_t by_folding(uint32_t crc, const uint8_t *at, const uint8_t *end) { return by_tables(crc, at, end); }

#endif

void prepare_checksums(void) {
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t value = i;
        for (int bit = 0; bit < 8; bit++)
            value = times_x(value);
        tables[0][i] = value;
    }
    for (int table = 1; table < STEP_BYTES; table++)
        for (uint32_t i = 0; i < 256; i++) {
            uint32_t value = tables[table - 1][i];
            tables[table][i] = tables[0][value & 0xFF] ^ value >> 8;
        }
    prepare_folding();
}

uint32_t crc32_of(Span bytes, uint32_t before) {
    uint32_t crc = ~before;
    const uint8_t *at = bytes.start, *end = bytes.start + bytes.size;
    size_t whole = bytes.size / BLOCK_BYTES * BLOCK_BYTES;
    if (can_fold && whole > BLOCK_BYTES) {
        crc = by_folding(crc, at, at + whole);
        at += whole;
    }
    return ~by_tables(crc, at, end);
}
