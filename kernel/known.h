/* The active blocks that a writer knows, by channel and group: `channelindex/stores/active.py` says what is remembered and
 * what is forgotten. No Python here. */
#ifndef CHANNELINDEX_KNOWN_H
#define CHANNELINDEX_KNOWN_H

#include "sum.h"

typedef struct {
    uint64_t hash;
    uint8_t *key; /* channel, then group */
    size_t channel_size, group_size;
    uint64_t epoch, number, size, upto, limit;
    uint64_t generation;
    Sum *sum; /* NULL: the store has to be asked */
    bool is_there;
} Row;

typedef struct {
    Row *rows;
    size_t n_rows, rows_room;
    uint32_t *table; /* number of a row + 1; 0 is free. A power of two, at most half full */
    size_t table_room;
    size_t half, n_young;
    uint64_t generation; /* of the young ones, from 1 on; those of the one before are old */
    size_t sum_bytes, most_sum_bytes; /* room of all sums */
} Blocks;

/* The block of a channel and group, NULL if it is not remembered. */
Row *find_block(const Blocks *blocks, uint64_t hash, Span channel, Span group);

/* Notes that a block is used now. */
void use_block(Blocks *blocks, Row *row);

/* Remembers a block; what it is, the caller puts into the row, which has no sum. NULL if there is no memory. */
Row *remember_block(Blocks *blocks, uint64_t hash, Span channel, Span group);

/* Begins a sum of pairs, with the numbers of *sum*. None is begun, and any is forgotten, where all would be too large. */
void begin_sum(Blocks *blocks, Row *row, const Sum *sum, Span pairs);

/* Adds entries to the sum of a row, if it has one. It is forgotten where they are cut off, too. */
void add_to_sum(Blocks *blocks, Row *row, Span entries);

void drop_block(Blocks *blocks, uint64_t hash, Span channel, Span group);

/* Once there are enough young ones, they become the old ones, and the old ones go. Rows move. False if there is no memory. */
bool forget_if_full(Blocks *blocks);

void forget_all(Blocks *blocks);

size_t count_blocks(const Blocks *blocks);

#endif
