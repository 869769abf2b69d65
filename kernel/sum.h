/* What is to be summed up of the blocks of a channel and group, as its writer notes it. No Python here. */
#ifndef CHANNELINDEX_SUM_H
#define CHANNELINDEX_SUM_H

#include "document.h"

enum { PAIR_BYTES = 10 };

/* Clock pairs of all that is in the blocks, in the order in which they came: that is one write to memory for several, where
 * raising a clock would be one for each. And the part of the group's directory that nothing else says. */
typedef struct {
    uint64_t since; /* 0: pairs are of all blocks; else of what came to the active one behind this byte, and nothing else is known */
    uint64_t before, first, dropped;
    uint8_t *pairs;
    size_t size, room;
} Sum;

/* Makes room for so many bytes more; by how many the room grew, at most *most*. False where these or the memory do not suffice. */
bool make_room(Sum *sum, size_t n_bytes, size_t most, size_t *n_more);

/* Adds the pairs with which *entries* begin, for which there is room. False where these are cut off. */
bool add_entry_pairs(Sum *sum, Span entries);

/* How many bytes of pairs *entries* have at most. */
size_t most_pair_bytes(Span entries);

void free_sum(Sum *sum);

#endif
