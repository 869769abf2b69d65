/* Mutated documents into the kernel's decoder and its table of entries, without Python: some million a minute under the
 * sanitizers. `make fuzz-kernel` builds it and gives it documents.
 *
 * decoder_alone COUNT SEED FILE: FILE has one document after the other, each behind its length in 4 bytes, big-endian.
 */
#include "../../kernel/document.h"
#include "../../kernel/entries.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_SEEDS = 256, MOST_BYTES = 1 << 16, ROUND = 1000 };

static const char *const pieces[] = {"\"_sync\":", "\"rev\":", "\"channels\":", "\"seq\":", "{", "}", "[", "]", ",", ":",
                                     "\"", "\\", "\\u00", "\\ud800", "null", "true", "1e5", "18446744073709551616", "\xc3\xa9",
                                     "\xed\xa0\x80", "\xff", "\"a\":null,", "{\"seq\":1,\"rev\":\"1-a\"}", " "};

static Span seeds[MOST_SEEDS];
static size_t n_seeds;
static uint64_t state;

/* The next number of xorshift64, below *bound*. */
static size_t pick(size_t bound) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (size_t)(state % bound);
}

static void read_seeds(const char *path) {
    FILE *file = fopen(path, "rb");
    uint8_t head[4];
    while (file != NULL && n_seeds < MOST_SEEDS && fread(head, 1, 4, file) == 4) {
        size_t size = (size_t)head[0] << 24 | (size_t)head[1] << 16 | (size_t)head[2] << 8 | head[3];
        uint8_t *text = malloc(size + 1);
        if (text == NULL || fread(text, 1, size, file) != size)
            abort();
        if (size <= MOST_BYTES / 2)
            seeds[n_seeds++] = (Span){text, size};
    }
    if (n_seeds == 0)
        abort();
    fclose(file);
}

/* Puts *size* bytes in the place of *cut* others; returns the new size. */
static size_t splice(uint8_t *text, size_t n_bytes, size_t at, size_t cut, const void *from, size_t size) {
    cut = cut < n_bytes - at ? cut : n_bytes - at;
    if (n_bytes - cut + size > MOST_BYTES)
        return n_bytes;
    memmove(text + at + size, text + at + cut, n_bytes - at - cut);
    memcpy(text + at, from, size);
    return n_bytes - cut + size;
}

static size_t mutate(uint8_t *text, size_t n_bytes) {
    size_t at = pick(n_bytes + 1);
    uint8_t byte = (uint8_t)pick(256);
    Span other = seeds[pick(n_seeds)];
    const char *piece = pieces[pick(sizeof(pieces) / sizeof(*pieces))];
    switch (pick(6)) {
    case 0: return splice(text, n_bytes, at, 1, &byte, 1);
    case 1: return at;
    case 2: return splice(text, n_bytes, at, pick(16), "", 0);
    case 3: return splice(text, n_bytes, at, MOST_BYTES, other.start, other.size);
    default: return splice(text, n_bytes, at, pick(5), piece, strlen(piece));
    }
}

static size_t add_rev(Entries *entries, Span rev, uint32_t *size) {
    uint8_t stored[MOST_REV_BYTES];
    size_t n_bytes, at;
    pack_rev(rev, stored, &n_bytes);
    if (!add_packed(entries, stored, n_bytes, &at))
        abort();
    *size = (uint32_t)n_bytes;
    return at;
}

static void enter(Entries *entries, const Revision *revision) {
    uint32_t size, removal_size;
    size_t at = add_rev(entries, revision->rev, &size);
    for (unsigned i = 0; i < revision->n_channels; i++) {
        const Channel *channel = &revision->channels[i];
        size_t removal_at = channel->is_left ? add_rev(entries, channel->rev, &removal_size) : 0;
        if (!add_link(entries, channel->name, hash_name(entries, channel->name), channel->is_left ? removal_at : at,
                      channel->is_left ? removal_size : size))
            abort();
    }
}

/* Packs the round as frames, as a writer gets them. */
static void pack(const Entries *entries) {
    for (Part part = {0}; part.end < entries->n_sections;) {
        if (!next_part(entries, 0, 1, 1 << 20, &part))
            abort();
        uint8_t *frame = malloc(part.n_encoded + 1);
        if (frame == NULL || write_part(entries, 0, 1, &part, frame) != frame + part.n_encoded)
            abort();
        free(frame);
    }
}

int main(int argc, char **argv) {
    if (argc != 4)
        return 64;
    static uint8_t scratch[2 * MOST_BYTES];
    uint64_t count = strtoull(argv[1], NULL, 10), n_entries = 0;
    Entries entries = {.secret = {1, 2}};
    Revision revision;
    state = strtoull(argv[2], NULL, 10) * 2 + 1;
    prepare_checksums();
    read_seeds(argv[3]);
    for (uint64_t number = 1; number <= count; number++) {
        Span seed = seeds[pick(n_seeds)];
        memcpy(scratch, seed.start, seed.size);
        size_t size = seed.size;
        for (size_t changes = 1 + pick(3); changes; changes--)
            size = mutate(scratch, size);
        uint8_t *value = malloc(size ? size : 1); /* of just this size: a byte too far is an error */
        if (value == NULL)
            abort();
        memcpy(value, scratch, size);
        static const unsigned datatypes[] = {1, 4, 5};
        Span key = {(const uint8_t *)"key", 3};
        if (decode(key, datatypes[pick(3)], (Span){value, size}, &revision) == ENTRY) {
            enter(&entries, &revision);
            n_entries++;
        }
        free(value);
        if (number % ROUND == 0) {
            pack(&entries);
            entries_clear(&entries);
        }
    }
    entries_clear(&entries);
    printf("%llu mutated documents for the decoder alone, %llu of them entries\n", (unsigned long long)count,
           (unsigned long long)n_entries);
    return 0;
}
