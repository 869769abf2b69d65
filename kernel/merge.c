#include "batch.h"

#include <string.h>

/* Frames of rings into a batch: `workers/pipeline/frames.py` says what is to come out. */

enum { MOST_MERGES = 64 };

/* MessagePack as our own frames have it, in any length of head. False for everything else. */

static bool take_big(Cursor *cursor, size_t n_bytes, uint64_t *number) {
    if ((size_t)(cursor->end - cursor->at) < n_bytes)
        return false;
    *number = 0;
    for (size_t i = 0; i < n_bytes; i++)
        *number = *number << 8 | *cursor->at++;
    return true;
}

/* Reads a head: *fixed* with the number in *mask*, or one of *n_wide* bytes from *first* on, each twice as wide. */
static bool read_head(Cursor *cursor, uint8_t fixed, uint8_t mask, uint8_t first, unsigned n_wide, size_t width,
                      uint64_t *number) {
    if (cursor->at >= cursor->end)
        return false;
    uint8_t byte = *cursor->at++;
    if (mask && (byte & (uint8_t)~mask) == fixed) {
        *number = byte & mask;
        return true;
    }
    if (byte < first || byte - first >= (int)n_wide)
        return false;
    return take_big(cursor, width << (byte - first), number);
}

static bool read_natural(Cursor *cursor, uint64_t *number) { return read_head(cursor, 0, 0x7F, 0xCC, 4, 1, number); }

static bool read_array(Cursor *cursor, uint64_t *count) { return read_head(cursor, 0x90, 0x0F, 0xDC, 2, 2, count); }

static bool read_sized(Cursor *cursor, uint64_t size, Span *span) {
    if (size > (uint64_t)(cursor->end - cursor->at))
        return false;
    *span = (Span){cursor->at, (size_t)size};
    cursor->at += size;
    return true;
}

static bool read_text(Cursor *cursor, Span *text) {
    uint64_t size;
    return read_head(cursor, 0xA0, 0x1F, 0xD9, 3, 1, &size) && read_sized(cursor, size, text);
}

static bool read_bytes(Cursor *cursor, Span *bytes) {
    uint64_t size;
    return read_head(cursor, 0, 0, 0xC4, 3, 1, &size) && read_sized(cursor, size, bytes);
}

/* What one group wrote in one epoch. */
typedef struct {
    uint64_t epoch;
    Span group; /* in a payload, which lives longer */
    Entries entries;
} Merge;

typedef struct {
    Merge merges[MOST_MERGES];
    size_t n_merges;
    PyObject *principals;
    Py_ssize_t n_frames;
} Merged;

static Outcome merge_of(Merged *merged, uint64_t epoch, Span group, Merge **found) {
    for (size_t i = 0; i < merged->n_merges; i++) {
        Merge *merge = &merged->merges[i];
        if (merge->epoch == epoch && merge->group.size == group.size &&
            memcmp(merge->group.start, group.start, group.size) == 0) {
            *found = merge;
            return DONE;
        }
    }
    if (merged->n_merges == MOST_MERGES)
        return LEFT;
    Merge *merge = &merged->merges[merged->n_merges++];
    *merge = (Merge){.epoch = epoch, .group = group, .entries = {.secret = {secret[0], secret[1]}}};
    *found = merge;
    return DONE;
}

static Outcome take_channels(Cursor *cursor, Merge *merge) {
    uint64_t count, two;
    Span channel, entries;
    size_t at;
    if (!read_array(cursor, &count))
        return LEFT;
    for (; count; count--) {
        if (!read_array(cursor, &two) || two != 2 || !read_text(cursor, &channel) || !read_bytes(cursor, &entries) ||
            entries.size > UINT32_MAX)
            return LEFT;
        if (!add_packed(&merge->entries, entries.start, entries.size, &at) ||
            !add_link(&merge->entries, channel, hash_name(&merge->entries, channel), at, (uint32_t)entries.size)) {
            PyErr_NoMemory();
            return FAILED;
        }
    }
    return DONE;
}

static Outcome take_principals(Cursor *cursor, PyObject *principals) {
    uint64_t count;
    Span key;
    if (!read_array(cursor, &count))
        return LEFT;
    for (; count; count--) {
        if (!read_text(cursor, &key))
            return LEFT;
        PyObject *text = PyUnicode_DecodeUTF8((const char *)key.start, (Py_ssize_t)key.size, NULL);
        int failed = text == NULL ? -1 : PyList_Append(principals, text);
        Py_XDECREF(text);
        if (failed)
            return FAILED;
    }
    return DONE;
}

/* Takes in one frame. LEFT: its epoch is below *least* or one of *stale*, which is rare; or it is not as ours are. */
static Outcome take_payload(Merged *merged, Span payload, uint64_t least, PyObject *stale) {
    Cursor cursor = {.at = payload.start, .end = payload.start + payload.size};
    uint64_t four, epoch;
    Span group;
    Merge *merge;
    if (!read_array(&cursor, &four) || four != 4 || !read_natural(&cursor, &epoch) || !read_text(&cursor, &group))
        return LEFT;
    PyObject *number = PyLong_FromUnsignedLongLong(epoch);
    int is_stale = number == NULL ? -1 : PySet_Contains(stale, number);
    Py_XDECREF(number);
    if (is_stale < 0)
        return FAILED;
    if (epoch < least || is_stale)
        return LEFT;
    Outcome outcome = merge_of(merged, epoch, group, &merge);
    if (outcome == DONE)
        outcome = take_channels(&cursor, merge);
    if (outcome == DONE)
        outcome = take_principals(&cursor, merged->principals);
    merged->n_frames++;
    return outcome != DONE ? outcome : cursor.at == cursor.end ? DONE : LEFT;
}

/* Adds what *merge* brings to a batch that has room for it. */
static void add_merge(const Merge *merge, BatchObject *batch) {
    const Entries *entries = &merge->entries;
    Span group = keep_bytes(batch, merge->group);
    for (size_t i = 0; i < entries->n_sections; i++) {
        const Section *section = &entries->sections[i];
        Span channel = keep_bytes(batch, (Span){entries->names + section->name_at, section->name_size});
        Span packed = {batch->end + FRAME_HEAD_BYTES, section->n_bytes};
        batch->end = copy_section(entries, section, batch->end + FRAME_HEAD_BYTES);
        add_item(batch, channel, section->hash, group, merge->epoch, packed);
    }
}

static size_t merge_bytes(const Merge *merge) {
    size_t n_bytes = merge->group.size;
    for (size_t i = 0; i < merge->entries.n_sections; i++) {
        const Section *section = &merge->entries.sections[i];
        n_bytes += section->name_size + FRAME_HEAD_BYTES + section->n_bytes;
    }
    return n_bytes;
}

/* Python says what is wrong with text that is no UTF-8, and with entries that no frame can hold. */
static bool is_plain(const Merge *merge) {
    for (size_t i = 0; i < merge->entries.n_sections; i++) {
        const Section *section = &merge->entries.sections[i];
        if (section->n_bytes > UINT32_MAX || !is_text((Span){merge->entries.names + section->name_at, section->name_size}))
            return false;
    }
    return is_text(merge->group);
}

/* Takes in the payloads of one ring: (least epoch, payloads). Their buffers are kept in *buffers* until all is done. */
static Outcome take_ring(Merged *merged, PyObject *ring, PyObject *stale, Py_buffer *buffers, size_t *n_buffers, size_t room) {
    if (!PyTuple_Check(ring) || PyTuple_Size(ring) != 2 || !PyList_Check(PyTuple_GetItem(ring, 1)))
        return LEFT;
    uint64_t least = PyLong_AsUnsignedLongLong(PyTuple_GetItem(ring, 0));
    if (PyErr_Occurred())
        return FAILED;
    PyObject *payloads = PyTuple_GetItem(ring, 1);
    for (Py_ssize_t i = 0; i < PyList_Size(payloads); i++) {
        if (*n_buffers == room)
            return LEFT;
        Py_buffer *buffer = &buffers[*n_buffers];
        if (PyObject_GetBuffer(PyList_GetItem(payloads, i), buffer, PyBUF_SIMPLE) < 0)
            return FAILED;
        ++*n_buffers;
        Outcome outcome = take_payload(merged, (Span){buffer->buf, (size_t)buffer->len}, least, stale);
        if (outcome != DONE)
            return outcome;
    }
    return DONE;
}

static size_t count_payloads(PyObject *rings) {
    size_t count = 0;
    for (Py_ssize_t i = 0; i < PyList_Size(rings); i++) {
        PyObject *ring = PyList_GetItem(rings, i);
        if (PyTuple_Check(ring) && PyTuple_Size(ring) == 2 && PyList_Check(PyTuple_GetItem(ring, 1)))
            count += (size_t)PyList_Size(PyTuple_GetItem(ring, 1));
    }
    return count;
}

static Outcome result_of(const Merged *merged, PyObject *type, PyObject **result) {
    size_t n_items = 0, n_bytes = 0;
    for (size_t i = 0; i < merged->n_merges; i++) {
        if (!is_plain(&merged->merges[i]))
            return LEFT;
        n_items += merged->merges[i].entries.n_sections;
        n_bytes += merge_bytes(&merged->merges[i]);
    }
    BatchObject *batch = new_batch(type, n_items, n_bytes);
    if (batch == NULL)
        return FAILED;
    for (size_t i = 0; i < merged->n_merges; i++)
        add_merge(&merged->merges[i], batch);
    *result = Py_BuildValue("(OOnnN)", batch, merged->principals, merged->n_frames, (Py_ssize_t)n_entry_bytes(batch),
                            largest_of(batch));
    Py_DECREF((PyObject *)batch);
    return *result == NULL ? FAILED : DONE;
}

/* merge(rings, stale, append_type) -> the items of a `Merged`, or None where a payload is not as ours are */
PyObject *merge_payloads(PyObject *module, PyObject *args) {
    (void)module;
    PyObject *rings, *stale, *type, *result = NULL;
    if (!PyArg_ParseTuple(args, "O!O!O!", &PyList_Type, &rings, &PySet_Type, &stale, &PyType_Type, &type))
        return NULL;
    if (!PyType_IsSubtype((PyTypeObject *)type, &PyTuple_Type)) {
        PyErr_SetString(PyExc_TypeError, "an append is a tuple");
        return NULL;
    }
    size_t room = count_payloads(rings), n_buffers = 0;
    Merged *merged = PyMem_Calloc(1, sizeof(Merged));
    Py_buffer *buffers = PyMem_Calloc(room + 1, sizeof(Py_buffer));
    Outcome outcome = FAILED;
    if (merged == NULL || buffers == NULL)
        PyErr_NoMemory();
    else if ((merged->principals = PyList_New(0)) != NULL)
        outcome = DONE;
    for (Py_ssize_t i = 0; outcome == DONE && i < PyList_Size(rings); i++)
        outcome = take_ring(merged, PyList_GetItem(rings, i), stale, buffers, &n_buffers, room);
    if (outcome == DONE)
        outcome = result_of(merged, type, &result);
    if (outcome == FAILED && PyErr_ExceptionMatches(PyExc_UnicodeDecodeError)) {
        PyErr_Clear();
        outcome = LEFT;
    }
    for (size_t i = 0; i < n_buffers; i++)
        PyBuffer_Release(&buffers[i]);
    PyMem_Free(buffers);
    for (size_t i = 0; merged != NULL && i < merged->n_merges; i++)
        entries_clear(&merged->merges[i].entries);
    if (merged != NULL)
        Py_XDECREF(merged->principals);
    PyMem_Free(merged);
    if (outcome == LEFT)
        Py_RETURN_NONE;
    return result;
}
