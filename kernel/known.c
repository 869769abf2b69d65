#include "known.h"

#include <stdlib.h>
#include <string.h>

enum { FIRST_ROOM = 256 };

/* The row of a channel and group, of a block that is there or was. */
static Row *find_row(const Blocks *blocks, uint64_t hash, Span channel, Span group) {
    if (!blocks->table_room)
        return NULL;
    for (size_t place = hash & (blocks->table_room - 1); blocks->table[place]; place = (place + 1) & (blocks->table_room - 1)) {
        Row *row = &blocks->rows[blocks->table[place] - 1];
        if (row->hash == hash && row->channel_size == channel.size && row->group_size == group.size &&
            memcmp(row->key, channel.start, channel.size) == 0 &&
            memcmp(row->key + channel.size, group.start, group.size) == 0)
            return row;
    }
    return NULL;
}

/* Makes the table of all rows anew, with room for one more. */
static bool rebuild_table(Blocks *blocks) {
    size_t room = FIRST_ROOM;
    while (room / 2 <= blocks->n_rows + 1)
        room *= 2;
    if (blocks->n_rows >= UINT32_MAX / 4)
        return false;
    uint32_t *table = calloc(room, sizeof(uint32_t));
    if (table == NULL)
        return false;
    for (size_t i = 0; i < blocks->n_rows; i++) {
        size_t place = blocks->rows[i].hash & (room - 1);
        while (table[place])
            place = (place + 1) & (room - 1);
        table[place] = (uint32_t)(i + 1);
    }
    free(blocks->table);
    blocks->table = table;
    blocks->table_room = room;
    return true;
}

static Row *new_row(Blocks *blocks, uint64_t hash, Span channel, Span group) {
    if (blocks->n_rows == blocks->rows_room) {
        size_t room = blocks->rows_room ? 2 * blocks->rows_room : FIRST_ROOM;
        Row *rows = realloc(blocks->rows, room * sizeof(Row));
        if (rows == NULL)
            return NULL;
        blocks->rows = rows;
        blocks->rows_room = room;
    }
    if (blocks->n_rows + 1 >= blocks->table_room / 2 && !rebuild_table(blocks))
        return NULL;
    uint8_t *key = malloc(channel.size + group.size + 1);
    if (key == NULL)
        return NULL;
    memcpy(key, channel.start, channel.size);
    memcpy(key + channel.size, group.start, group.size);
    Row *row = &blocks->rows[blocks->n_rows++];
    *row = (Row){.hash = hash, .key = key, .channel_size = channel.size, .group_size = group.size};
    size_t place = hash & (blocks->table_room - 1);
    while (blocks->table[place])
        place = (place + 1) & (blocks->table_room - 1);
    blocks->table[place] = (uint32_t)blocks->n_rows;
    return row;
}

static void forget_sum(Blocks *blocks, Row *row) {
    if (row->sum != NULL)
        blocks->sum_bytes -= row->sum->room;
    free_sum(row->sum);
    row->sum = NULL;
}

static void forget_row(Blocks *blocks, Row *row) {
    forget_sum(blocks, row);
    free(row->key);
}

/* Makes room in the sum of a row, or forgets it. */
static bool has_room(Blocks *blocks, Row *row, size_t n_bytes) {
    size_t n_more;
    bool is_made = make_room(row->sum, n_bytes, blocks->most_sum_bytes - blocks->sum_bytes, &n_more);
    if (is_made)
        blocks->sum_bytes += n_more;
    else
        forget_sum(blocks, row);
    return is_made;
}

void begin_sum(Blocks *blocks, Row *row, const Sum *sum, Span pairs) {
    forget_sum(blocks, row);
    row->sum = calloc(1, sizeof(Sum));
    if (row->sum == NULL || !has_room(blocks, row, pairs.size))
        return;
    row->sum->since = sum->since;
    row->sum->before = sum->before;
    row->sum->first = sum->first;
    row->sum->dropped = sum->dropped;
    if (pairs.size)
        memcpy(row->sum->pairs, pairs.start, pairs.size);
    row->sum->size = pairs.size;
}

void add_to_sum(Blocks *blocks, Row *row, Span entries) {
    if (row->sum != NULL && has_room(blocks, row, most_pair_bytes(entries)) && !add_entry_pairs(row->sum, entries))
        forget_sum(blocks, row);
}

void use_block(Blocks *blocks, Row *row) {
    blocks->n_young += row->generation != blocks->generation;
    row->generation = blocks->generation;
}

bool forget_if_full(Blocks *blocks) {
    if (blocks->n_young < blocks->half)
        return true;
    size_t n_kept = 0;
    for (size_t i = 0; i < blocks->n_rows; i++) {
        if (blocks->rows[i].is_there && blocks->rows[i].generation == blocks->generation)
            blocks->rows[n_kept++] = blocks->rows[i];
        else
            forget_row(blocks, &blocks->rows[i]);
    }
    blocks->n_rows = n_kept;
    blocks->generation++;
    blocks->n_young = 0;
    return rebuild_table(blocks);
}

void forget_all(Blocks *blocks) {
    for (size_t i = 0; i < blocks->n_rows; i++)
        forget_row(blocks, &blocks->rows[i]);
    free(blocks->rows);
    free(blocks->table);
    blocks->rows = NULL;
    blocks->table = NULL;
    blocks->n_rows = blocks->rows_room = blocks->table_room = blocks->n_young = 0;
}

Row *remember_block(Blocks *blocks, uint64_t hash, Span channel, Span group) {
    Row *row = find_row(blocks, hash, channel, group);
    if (row == NULL)
        row = new_row(blocks, hash, channel, group);
    if (row == NULL)
        return NULL;
    if (!row->is_there)
        row->generation = blocks->generation - 1; /* as one that was not used of late */
    use_block(blocks, row);
    forget_sum(blocks, row);
    row->is_there = true;
    return row;
}

Row *find_block(const Blocks *blocks, uint64_t hash, Span channel, Span group) {
    Row *row = find_row(blocks, hash, channel, group);
    return row != NULL && row->is_there ? row : NULL;
}

void drop_block(Blocks *blocks, uint64_t hash, Span channel, Span group) {
    Row *row = find_block(blocks, hash, channel, group);
    if (row == NULL)
        return;
    row->is_there = false;
    forget_sum(blocks, row);
    blocks->n_young -= row->generation == blocks->generation;
}

size_t count_blocks(const Blocks *blocks) {
    size_t count = 0;
    for (size_t i = 0; i < blocks->n_rows; i++)
        count += blocks->rows[i].is_there;
    return count;
}
