#include "sum.h"

#include <stdlib.h>
#include <string.h>

enum { FIRST_ROOM = 32 * PAIR_BYTES };

bool make_room(Sum *sum, size_t n_bytes, size_t most, size_t *n_more) {
    size_t room = sum->room ? sum->room : FIRST_ROOM;
    while (room - sum->size < n_bytes)
        room *= 2;
    *n_more = room - sum->room;
    if (*n_more == 0)
        return true;
    uint8_t *pairs = *n_more <= most ? realloc(sum->pairs, room) : NULL;
    if (pairs == NULL)
        return false;
    sum->pairs = pairs;
    sum->room = room;
    return true;
}

size_t most_pair_bytes(Span entries) { return entries.size / ENTRY_HEAD_BYTES * PAIR_BYTES; }

bool add_entry_pairs(Sum *sum, Span entries) {
    for (size_t at = 0, size; at < entries.size; at += size) {
        size = entry_size((Span){entries.start + at, entries.size - at});
        if (!size)
            return false;
        memcpy(sum->pairs + sum->size, entries.start + at, PAIR_BYTES);
        sum->size += PAIR_BYTES;
    }
    return true;
}

void free_sum(Sum *sum) {
    if (sum != NULL)
        free(sum->pairs);
    free(sum);
}
