#include "batch.h"

#include <string.h>

/* The appends of a batch: `workers/pipeline/frames.py` says what is in one. */

enum { MOST_LARGEST = 8 };

PyObject *batch_type;

BatchObject *new_batch(PyObject *type, size_t n_items, size_t n_bytes) {
    BatchObject *batch = PyObject_New(BatchObject, (PyTypeObject *)batch_type);
    if (batch == NULL)
        return NULL;
    Py_INCREF(type);
    batch->type = type;
    batch->n_items = 0;
    batch->items = PyMem_Calloc(n_items + 1, sizeof(Item));
    batch->bytes = batch->end = PyMem_Malloc(n_bytes + 1);
    if (batch->items == NULL || batch->bytes == NULL) {
        Py_DECREF((PyObject *)batch);
        return (BatchObject *)PyErr_NoMemory();
    }
    return batch;
}

static void batch_dealloc(BatchObject *self) {
    PyMem_Free(self->items);
    PyMem_Free(self->bytes);
    Py_DECREF(self->type);
    free_object((PyObject *)self);
}

Span keep_bytes(BatchObject *batch, Span bytes) {
    Span kept = {batch->end, bytes.size};
    if (bytes.size)
        memcpy(batch->end, bytes.start, bytes.size);
    batch->end += bytes.size;
    return kept;
}

uint8_t *write_frame_head(uint8_t *to, uint8_t kind, uint64_t epoch, size_t size) {
    *to++ = kind;
    to = write_big(to, size, 4);
    uint8_t *epoch_at = to + 4;
    write_big(epoch_at, epoch, 8);
    write_big(to, crc32_of((Span){epoch_at, 8 + size}, kind), 4);
    return epoch_at + 8;
}

uint64_t hash_group(uint64_t channel_hash, Span group) {
    const Entries secrets = {.secret = {secret[0], secret[1]}};
    uint64_t hash = hash_name(&secrets, group);
    return channel_hash ^ (hash << 1 | hash >> 63);
}

void add_item(BatchObject *batch, Span channel, uint64_t channel_hash, Span group, uint64_t epoch, Span entries) {
    uint8_t *frame = batch->end - entries.size - FRAME_HEAD_BYTES;
    write_frame_head(frame, ENTRIES_KIND, epoch, entries.size);
    batch->items[batch->n_items++] = (Item){
        .channel = channel,
        .group = group,
        .frame = {frame, FRAME_HEAD_BYTES + entries.size},
        .epoch = epoch,
        .hash = hash_group(channel_hash, group),
        .slot = crc32_of(channel, 0) % N_SLOTS,
    };
}

PyObject *text_of(Span text) { return PyUnicode_DecodeUTF8((const char *)text.start, (Py_ssize_t)text.size, NULL); }

PyObject *named(PyObject *type, PyObject *items) {
    newfunc new_tuple = (newfunc)PyType_GetSlot(&PyTuple_Type, Py_tp_new);
    PyObject *arguments = items != NULL ? PyTuple_Pack(1, items) : NULL;
    PyObject *made = arguments != NULL ? new_tuple((PyTypeObject *)type, arguments, NULL) : NULL;
    Py_XDECREF(items);
    Py_XDECREF(arguments);
    return made;
}

PyObject *item_append(const BatchObject *batch, size_t index) {
    const Item *item = &batch->items[index];
    PyObject *entries = PyBytes_FromStringAndSize((const char *)item->frame.start + FRAME_HEAD_BYTES,
                                                  (Py_ssize_t)(item->frame.size - FRAME_HEAD_BYTES));
    return named(batch->type, Py_BuildValue("(NNKN)", text_of(item->channel), text_of(item->group), item->epoch, entries));
}

static Py_ssize_t batch_length(BatchObject *self) { return (Py_ssize_t)self->n_items; }

static PyObject *batch_item(BatchObject *self, Py_ssize_t index) {
    if (index < 0 || (size_t)index >= self->n_items) {
        PyErr_SetString(PyExc_IndexError, "no append of the batch");
        return NULL;
    }
    return item_append(self, (size_t)index);
}

size_t n_entry_bytes(const BatchObject *batch) {
    size_t n_bytes = 0;
    for (size_t i = 0; i < batch->n_items; i++)
        n_bytes += batch->items[i].frame.size - FRAME_HEAD_BYTES;
    return n_bytes;
}

PyObject *largest_of(const BatchObject *batch) {
    const Item *largest[MOST_LARGEST + 1];
    size_t count = 0;
    for (size_t i = 0; i < batch->n_items; i++) {
        const Item *item = &batch->items[i];
        if (count == MOST_LARGEST && item->frame.size <= largest[count - 1]->frame.size)
            continue;
        size_t place = count < MOST_LARGEST ? count++ : count - 1;
        for (; place && largest[place - 1]->frame.size < item->frame.size; place--)
            largest[place] = largest[place - 1];
        largest[place] = item;
    }
    PyObject *list = PyList_New(0);
    for (size_t i = 0; list != NULL && i < count; i++) {
        Py_ssize_t size = (Py_ssize_t)(largest[i]->frame.size - FRAME_HEAD_BYTES);
        PyObject *pair = Py_BuildValue("(Nn)", text_of(largest[i]->channel), size);
        if (pair == NULL || PyList_Append(list, pair) < 0)
            Py_CLEAR(list);
        Py_XDECREF(pair);
    }
    return list;
}

/* One `ChannelAppend`, taken apart. All is borrowed. */
static bool read_append(PyObject *append, Span *channel, Span *group, uint64_t *epoch, Span *entries) {
    Py_ssize_t channel_size, group_size, size;
    char *start;
    if (!PyTuple_Check(append) || PyTuple_Size(append) != 4) {
        PyErr_SetString(PyExc_TypeError, "no append");
        return false;
    }
    const char *name = PyUnicode_AsUTF8AndSize(PyTuple_GetItem(append, 0), &channel_size);
    const char *group_name = name ? PyUnicode_AsUTF8AndSize(PyTuple_GetItem(append, 1), &group_size) : NULL;
    if (group_name == NULL || PyBytes_AsStringAndSize(PyTuple_GetItem(append, 3), &start, &size) < 0)
        return false;
    *epoch = PyLong_AsUnsignedLongLong(PyTuple_GetItem(append, 2));
    if (PyErr_Occurred())
        return false;
    if ((size_t)size > UINT32_MAX) {
        PyErr_Format(PyExc_OverflowError, "a frame of %zd bytes", size);
        return false;
    }
    *channel = (Span){(const uint8_t *)name, (size_t)channel_size};
    *group = (Span){(const uint8_t *)group_name, (size_t)group_size};
    *entries = (Span){(const uint8_t *)start, (size_t)size};
    return true;
}

/* batch_of(appends, type) -> the batch of a list of appends */
PyObject *batch_of(PyObject *module, PyObject *args) {
    (void)module;
    PyObject *appends, *type;
    Span channel, group, entries;
    uint64_t epoch;
    if (!PyArg_ParseTuple(args, "O!O!", &PyList_Type, &appends, &PyType_Type, &type))
        return NULL;
    if (!PyType_IsSubtype((PyTypeObject *)type, &PyTuple_Type))
        return PyErr_Format(PyExc_TypeError, "an append is a tuple");
    Py_ssize_t count = PyList_Size(appends);
    size_t n_bytes = 0;
    for (Py_ssize_t i = 0; i < count; i++) {
        if (!read_append(PyList_GetItem(appends, i), &channel, &group, &epoch, &entries))
            return NULL;
        n_bytes += channel.size + group.size + FRAME_HEAD_BYTES + entries.size;
    }
    BatchObject *batch = new_batch(type, (size_t)count, n_bytes);
    for (Py_ssize_t i = 0; batch != NULL && i < count; i++) {
        const Entries secrets = {.secret = {secret[0], secret[1]}};
        read_append(PyList_GetItem(appends, i), &channel, &group, &epoch, &entries);
        uint64_t hash = hash_name(&secrets, channel);
        channel = keep_bytes(batch, channel);
        group = keep_bytes(batch, group);
        batch->end += FRAME_HEAD_BYTES;
        add_item(batch, channel, hash, group, epoch, keep_bytes(batch, entries));
    }
    return (PyObject *)batch;
}

static PyType_Slot batch_slots[] = {
    {Py_tp_dealloc, batch_dealloc},
    {Py_sq_length, batch_length},
    {Py_sq_item, batch_item},
    {0, NULL},
};

PyType_Spec batch_spec = {"channelindex._kernel.Batch", sizeof(BatchObject), 0,
                          Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION, batch_slots};
