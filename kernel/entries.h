/* Collects packed entries by channel, in the order in which they come, and packs them into ring frames. No Python here.
 *
 * An entry's bytes lie once in an arena, however many channels it is in; a channel is a chain of links to them, the
 * last one first: so none is touched again when another one comes. What comes from outside, the names of channels, is
 * hashed with a secret, so nobody can choose names that collide.
 */
#ifndef CHANNELINDEX_ENTRIES_H
#define CHANNELINDEX_ENTRIES_H

#include "checksum.h"

typedef struct {
    uint64_t hash;
    size_t name_at; /* in `names` */
    uint32_t name_size;
    uint32_t shard_hash;
    uint32_t last_link; /* NO_LINK for none */
    uint32_t n_links;
    size_t n_bytes;
} Section;

typedef struct {
    size_t entry_at; /* in `packed` */
    uint32_t size;
    uint32_t before; /* of the same channel; NO_LINK for the first one */
} Link;

#define NO_LINK UINT32_MAX

typedef struct {
    uint64_t secret[2];
    uint8_t *packed;
    size_t n_packed, packed_room;
    uint8_t *names;
    size_t n_names, names_room;
    Link *links;
    size_t n_links, links_room;
    Section *sections;
    size_t n_sections, sections_room;
    uint32_t *table; /* index of a section + 1; 0 is free. A power of two, at most half full */
    size_t table_room;
} Entries;

/* All zeros is an empty one, but for its secret. */
void entries_clear(Entries *entries);

uint64_t hash_name(const Entries *entries, Span name);

/* Where the next entry is to be written, of at most so many bytes: the caller does, and adds them to *n_packed*. NULL if there
 * is no memory. */
uint8_t *packed_end(Entries *entries, size_t most);

/* Adds the bytes of an entry; false if there is no memory. Its place is put into *at*. */
bool add_packed(Entries *entries, const uint8_t *packed, size_t size, size_t *at);

/* Puts the entry at *at* into a channel. False if there is no memory or there are 2^32 of something. */
bool add_link(Entries *entries, Span name, uint64_t hash, size_t at, uint32_t size);

bool is_of_writer(const Section *section, uint32_t writer, uint32_t n_writers);

/* The places where ring frames begin and end: from section *first* on, those that fit. */
typedef struct {
    size_t first, end;        /* sections */
    size_t n_channels;        /* of the writer, among them */
    size_t n_bound;           /* bound of the encoded size, as Python counts it */
    size_t n_encoded;         /* exact size of the encoded channels */
} Part;

/* What a channel takes besides its name and its entries, at most. Python's `_SECTION_BYTES`. */
enum { SECTION_BYTES = 11 };

/* Takes the sections of a writer from *part->end* of the part before on. False if one alone has no room. */
bool next_part(const Entries *entries, uint32_t writer, uint32_t n_writers, size_t room, Part *part);

/* Writes the channels of *part* as MessagePack; returns the place behind them. */
uint8_t *write_part(const Entries *entries, uint32_t writer, uint32_t n_writers, const Part *part, uint8_t *to);

size_t array_head_size(size_t count);
uint8_t *write_array_head(uint8_t *to, size_t count);
size_t text_head_size(size_t size);
uint8_t *write_text_head(uint8_t *to, size_t size);
size_t natural_size(uint64_t number);
uint8_t *write_natural(uint8_t *to, uint64_t number);

/* Copies the entries of a section, one behind the other; returns the place behind them. */
uint8_t *copy_section(const Entries *entries, const Section *section, uint8_t *to);

uint8_t *write_big(uint8_t *to, uint64_t number, int n_bytes);

/* Reads a number of so many bytes. Here, because each frame of the feed has several. */
static inline uint64_t read_big(const uint8_t *at, int n_bytes) {
    uint64_t value = 0;
    for (int i = 0; i < n_bytes; i++)
        value = value << 8 | at[i];
    return value;
}

#endif
