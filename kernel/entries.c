#include "entries.h"

#include <stdlib.h>
#include <string.h>

enum { FIRST_ROOM = 64 };

static uint64_t rotated(uint64_t value, int by) { return value << by | value >> (64 - by); }

static inline __attribute__((always_inline)) void sip_round(uint64_t v[4]) {
    v[0] += v[1]; v[1] = rotated(v[1], 13); v[1] ^= v[0]; v[0] = rotated(v[0], 32);
    v[2] += v[3]; v[3] = rotated(v[3], 16); v[3] ^= v[2];
    v[0] += v[3]; v[3] = rotated(v[3], 21); v[3] ^= v[0];
    v[2] += v[1]; v[1] = rotated(v[1], 17); v[1] ^= v[2]; v[2] = rotated(v[2], 32);
}

/* SipHash-1-3, as Python hashes its own strings. The order of bytes within a word is the machine's: no hash leaves it. */
uint64_t hash_name(const Entries *entries, Span name) {
    uint64_t k0 = entries->secret[0], k1 = entries->secret[1];
    uint64_t v[4] = {k0 ^ UINT64_C(0x736f6d6570736575), k1 ^ UINT64_C(0x646f72616e646f6d),
                     k0 ^ UINT64_C(0x6c7967656e657261), k1 ^ UINT64_C(0x7465646279746573)};
    size_t whole = name.size / 8 * 8;
    for (size_t i = 0; i < whole; i += 8) {
        uint64_t word;
        memcpy(&word, name.start + i, 8);
        v[3] ^= word;
        sip_round(v);
        v[0] ^= word;
    }
    uint64_t last = (uint64_t)name.size << 56;
    for (size_t i = whole; i < name.size; i++)
        last |= (uint64_t)name.start[i] << (8 * (i - whole));
    v[3] ^= last;
    sip_round(v);
    v[0] ^= last;
    v[2] ^= 0xFF;
    sip_round(v);
    sip_round(v);
    sip_round(v);
    return v[0] ^ v[1] ^ v[2] ^ v[3];
}

void entries_clear(Entries *entries) {
    free(entries->packed);
    free(entries->names);
    free(entries->links);
    free(entries->sections);
    free(entries->table);
    *entries = (Entries){.secret = {entries->secret[0], entries->secret[1]}};
}

/* Returns *items* with room for *more* beside *count*, at another place perhaps; NULL if there is no memory, and *items*
 * stay as they are. */
static void *with_room(void *items, size_t *room, size_t count, size_t more, size_t item_size) {
    if (items != NULL && more <= *room - count)
        return items;
    size_t most = SIZE_MAX / 4 / item_size;
    if (count > most || more > most - count)
        return NULL;
    size_t enough = *room < FIRST_ROOM ? FIRST_ROOM : *room;
    while (enough < count + more)
        enough *= 2;
    void *grown = realloc(items, enough * item_size);
    if (grown != NULL)
        *room = enough;
    return grown;
}

uint8_t *packed_end(Entries *entries, size_t most) {
    uint8_t *arena = with_room(entries->packed, &entries->packed_room, entries->n_packed, most, 1);
    if (arena == NULL)
        return NULL;
    entries->packed = arena;
    return arena + entries->n_packed;
}

bool add_packed(Entries *entries, const uint8_t *packed, size_t size, size_t *at) {
    uint8_t *end = packed_end(entries, size);
    if (end == NULL)
        return false;
    memcpy(end, packed, size);
    *at = entries->n_packed;
    entries->n_packed += size;
    return true;
}

static bool grow_table(Entries *entries) {
    if (entries->n_sections < entries->table_room / 2)
        return true;
    if (entries->table_room > SIZE_MAX / 4 / sizeof(uint32_t))
        return false;
    size_t room = entries->table_room ? 2 * entries->table_room : 4 * FIRST_ROOM;
    uint32_t *table = calloc(room, sizeof(uint32_t));
    if (table == NULL)
        return false;
    for (size_t i = 0; i < entries->n_sections; i++) {
        size_t place = entries->sections[i].hash & (room - 1);
        while (table[place])
            place = (place + 1) & (room - 1);
        table[place] = (uint32_t)(i + 1);
    }
    free(entries->table);
    entries->table = table;
    entries->table_room = room;
    return true;
}

/* The section of a channel, made if there is none; NULL if there is no memory. */
static Section *section_of(Entries *entries, Span name, uint64_t hash) {
    if (!grow_table(entries))
        return NULL;
    size_t place = hash & (entries->table_room - 1);
    for (; entries->table[place]; place = (place + 1) & (entries->table_room - 1)) {
        Section *section = &entries->sections[entries->table[place] - 1];
        if (section->hash == hash && section->name_size == name.size &&
            memcmp(entries->names + section->name_at, name.start, name.size) == 0)
            return section;
    }
    if (entries->n_sections >= UINT32_MAX - 1 || name.size > UINT32_MAX)
        return NULL;
    Section *sections =
        with_room(entries->sections, &entries->sections_room, entries->n_sections, 1, sizeof(Section));
    if (sections == NULL)
        return NULL;
    entries->sections = sections;
    uint8_t *names = with_room(entries->names, &entries->names_room, entries->n_names, name.size, 1);
    if (names == NULL)
        return NULL;
    entries->names = names;
    Section *section = &sections[entries->n_sections++];
    *section = (Section){.hash = hash, .name_at = entries->n_names, .name_size = (uint32_t)name.size,
                         .shard_hash = crc32_of(name, 0) >> 8, .last_link = NO_LINK};
    memcpy(names + entries->n_names, name.start, name.size);
    entries->n_names += name.size;
    entries->table[place] = (uint32_t)entries->n_sections;
    return section;
}

bool add_link(Entries *entries, Span name, uint64_t hash, size_t at, uint32_t size) {
    if (entries->n_links >= NO_LINK)
        return false;
    Link *links = with_room(entries->links, &entries->links_room, entries->n_links, 1, sizeof(Link));
    if (links == NULL)
        return false;
    entries->links = links;
    Section *section = section_of(entries, name, hash);
    if (section == NULL)
        return false;
    uint32_t link = (uint32_t)entries->n_links++;
    links[link] = (Link){.entry_at = at, .size = size, .before = section->last_link};
    section->last_link = link;
    section->n_links++;
    section->n_bytes += size;
    return true;
}

uint8_t *copy_section(const Entries *entries, const Section *section, uint8_t *to) {
    uint8_t *end = to + section->n_bytes, *at = end;
    for (uint32_t link = section->last_link; link != NO_LINK; link = entries->links[link].before) {
        at -= entries->links[link].size;
        memcpy(at, entries->packed + entries->links[link].entry_at, entries->links[link].size);
    }
    return end;
}

bool is_of_writer(const Section *section, uint32_t writer, uint32_t n_writers) {
    return section->shard_hash % n_writers == writer;
}

/* MessagePack, as msgspec writes it: the shortest form. */

uint8_t *write_big(uint8_t *to, uint64_t number, int n_bytes) {
    for (int i = n_bytes - 1; i >= 0; i--)
        *to++ = (uint8_t)(number >> (8 * i));
    return to;
}

size_t array_head_size(size_t count) { return count < 16 ? 1 : count < 65536 ? 3 : 5; }

uint8_t *write_array_head(uint8_t *to, size_t count) {
    if (count < 16) {
        *to++ = (uint8_t)(0x90 | count);
        return to;
    }
    *to++ = count < 65536 ? 0xDC : 0xDD;
    return write_big(to, count, count < 65536 ? 2 : 4);
}

size_t text_head_size(size_t size) { return size < 32 ? 1 : size < 256 ? 2 : size < 65536 ? 3 : 5; }

uint8_t *write_text_head(uint8_t *to, size_t size) {
    if (size < 32) {
        *to++ = (uint8_t)(0xA0 | size);
        return to;
    }
    *to++ = size < 256 ? 0xD9 : size < 65536 ? 0xDA : 0xDB;
    return write_big(to, size, size < 256 ? 1 : size < 65536 ? 2 : 4);
}

static size_t bytes_head_size(size_t size) { return size < 256 ? 2 : size < 65536 ? 3 : 5; }

static uint8_t *write_bytes_head(uint8_t *to, size_t size) {
    *to++ = size < 256 ? 0xC4 : size < 65536 ? 0xC5 : 0xC6;
    return write_big(to, size, size < 256 ? 1 : size < 65536 ? 2 : 4);
}

size_t natural_size(uint64_t number) {
    return number < 128 ? 1 : number < 256 ? 2 : number < 65536 ? 3 : number <= UINT32_MAX ? 5 : 9;
}

uint8_t *write_natural(uint8_t *to, uint64_t number) {
    size_t size = natural_size(number);
    if (size == 1) {
        *to++ = (uint8_t)number;
        return to;
    }
    *to++ = size == 2 ? 0xCC : size == 3 ? 0xCD : size == 5 ? 0xCE : 0xCF;
    return write_big(to, number, (int)size - 1);
}

bool next_part(const Entries *entries, uint32_t writer, uint32_t n_writers, size_t room, Part *part) {
    size_t at = part->end;
    *part = (Part){.first = at, .end = at};
    for (; at < entries->n_sections; at++) {
        const Section *section = &entries->sections[at];
        if (!is_of_writer(section, writer, n_writers))
            continue;
        size_t size = section->name_size + section->n_bytes + SECTION_BYTES;
        if (size > room)
            return false;
        if (part->n_bound + size > room)
            break;
        part->n_bound += size;
        part->n_channels++;
        part->n_encoded += 1 + text_head_size(section->name_size) + section->name_size +
                           bytes_head_size(section->n_bytes) + section->n_bytes;
    }
    part->end = at;
    return true;
}

uint8_t *write_part(const Entries *entries, uint32_t writer, uint32_t n_writers, const Part *part, uint8_t *to) {
    for (size_t at = part->first; at < part->end; at++) {
        const Section *section = &entries->sections[at];
        if (!is_of_writer(section, writer, n_writers))
            continue;
        to = write_array_head(to, 2);
        to = write_text_head(to, section->name_size);
        memcpy(to, entries->names + section->name_at, section->name_size);
        to = write_bytes_head(to + section->name_size, section->n_bytes);
        to = copy_section(entries, section, to);
    }
    return to;
}
