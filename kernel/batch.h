/* A batch of a writer, the active blocks that it knows, and what one call of a store appends. */
#ifndef CHANNELINDEX_BATCH_H
#define CHANNELINDEX_BATCH_H

#include "python.h"
#include "sum.h"

enum { FRAME_HEAD_BYTES = 17, ENTRIES_KIND = 0x45, HEADER_KIND = 0x48, N_SLOTS = 64 };

/* One append. Its frame is as blocks have it. */
typedef struct {
    Span channel, group, frame;
    uint64_t epoch;
    uint64_t hash; /* of channel and group */
    unsigned slot;
} Item;

/* A sequence of `ChannelAppend`. */
typedef struct {
    PyObject_HEAD
    uint8_t *bytes; /* of all items */
    uint8_t *end;   /* of those so far */
    Item *items;
    size_t n_items;
    PyObject *type; /* what Python takes an item for */
} BatchObject;

/* Makes a batch that has room for so many items of so many bytes: of channels, groups and frames. */
BatchObject *new_batch(PyObject *type, size_t n_items, size_t n_bytes);

/* Copies *bytes* into the batch. */
Span keep_bytes(BatchObject *batch, Span bytes);

/* Adds an item whose parts are the batch's own; *entries* end the frame, for whose head there was room left before them. */
void add_item(BatchObject *batch, Span channel, uint64_t channel_hash, Span group, uint64_t epoch, Span entries);

uint64_t hash_group(uint64_t channel_hash, Span group);

/* Writes the head of a frame whose body is *size* bytes behind it; returns the place of the body. */
uint8_t *write_frame_head(uint8_t *to, uint8_t kind, uint64_t epoch, size_t size);

/* The largest items by their entries, the first ones of equal size: [(channel, bytes), ...]. */
PyObject *largest_of(const BatchObject *batch);
size_t n_entry_bytes(const BatchObject *batch);

/* An object of *type*, a named tuple, of *items*, a tuple that is taken over. */
PyObject *named(PyObject *type, PyObject *items);

PyObject *text_of(Span text);

/* An item of a batch, and the block that it goes to. */
typedef struct {
    size_t item;
    uint64_t number;
    uint64_t size; /* of the block once it is there */
} Pick;

/* A sequence of what a store is to append: `BlindAppend`, or where there is a *type*, that. Takes over *picks*. */
PyObject *new_selection(BatchObject *batch, Pick *picks, size_t n_picks, PyObject *type);

/* The batch of a selection and which of its items; NULL for what is none. */
const BatchObject *selected(PyObject *selection, const Pick **picks, size_t *n_picks);

/* The clock of pairs in any order, as bytes: a pair for each vbucket, ascending. */
PyObject *clock_of(Span pairs);

PyObject *item_append(const BatchObject *batch, size_t index);

extern PyObject *batch_type, *selection_type;
extern PyType_Spec batch_spec, selection_spec, active_spec;

PyObject *batch_of(PyObject *module, PyObject *args);

#endif
