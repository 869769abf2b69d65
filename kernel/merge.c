#include "python.h"

#include <string.h>

/* Frames of rings into a batch: `workers/pipeline/frames.py` says what is to come out. */

enum { MOST_MERGES = 64 };

/* MessagePack as our own frames have it, in any length of head. False for everything else. */

static bool read_big(Cursor *cursor, size_t n_bytes, uint64_t *number) {
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
    return read_big(cursor, width << (byte - first), number);
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

/* Takes in one frame, unless its epoch is below *least* or one of *stale*. */
static Outcome take_payload(Merged *merged, Span payload, uint64_t least, PyObject *stale) {
    Cursor cursor = {payload.start, payload.start + payload.size};
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
        return DONE;
    Outcome outcome = merge_of(merged, epoch, group, &merge);
    if (outcome == DONE)
        outcome = take_channels(&cursor, merge);
    if (outcome == DONE)
        outcome = take_principals(&cursor, merged->principals);
    merged->n_frames++;
    return outcome != DONE ? outcome : cursor.at == cursor.end ? DONE : LEFT;
}

/* The entries of a section as one bytes object. */
static PyObject *joined(const Entries *entries, const Section *section) {
    PyObject *bytes = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)section->n_bytes);
    if (bytes != NULL)
        copy_section(entries, section, (uint8_t *)PyBytes_AsString(bytes));
    return bytes;
}

/* An object of *type*, a named tuple, with these items, which are taken over; NULL where one is. */
static PyObject *named(PyTypeObject *type, PyObject *channel, PyObject *group, PyObject *epoch, PyObject *entries) {
    newfunc new_tuple = (newfunc)PyType_GetSlot(&PyTuple_Type, Py_tp_new);
    PyObject *items = channel && entries ? PyTuple_Pack(4, channel, group, epoch, entries) : NULL;
    PyObject *arguments = items != NULL ? PyTuple_Pack(1, items) : NULL;
    PyObject *made = arguments != NULL ? new_tuple(type, arguments, NULL) : NULL;
    Py_XDECREF(channel);
    Py_XDECREF(entries);
    Py_XDECREF(items);
    Py_XDECREF(arguments);
    return made;
}

static bool append_merge(const Merge *merge, PyTypeObject *type, PyObject *appends) {
    PyObject *group = PyUnicode_DecodeUTF8((const char *)merge->group.start, (Py_ssize_t)merge->group.size, NULL);
    PyObject *epoch = PyLong_FromUnsignedLongLong(merge->epoch);
    bool is_well = group != NULL && epoch != NULL;
    for (size_t i = 0; is_well && i < merge->entries.n_sections; i++) {
        const Section *section = &merge->entries.sections[i];
        const char *name = (const char *)merge->entries.names + section->name_at;
        PyObject *append = named(type, PyUnicode_DecodeUTF8(name, section->name_size, NULL), group, epoch,
                                 joined(&merge->entries, section));
        is_well = append != NULL && PyList_Append(appends, append) == 0;
        Py_XDECREF(append);
    }
    Py_XDECREF(group);
    Py_XDECREF(epoch);
    return is_well;
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

static PyObject *result_of(const Merged *merged, PyTypeObject *type) {
    PyObject *appends = PyList_New(0);
    for (size_t i = 0; appends != NULL && i < merged->n_merges; i++)
        if (!append_merge(&merged->merges[i], type, appends))
            Py_CLEAR(appends);
    return appends == NULL ? NULL : Py_BuildValue("(NOn)", appends, merged->principals, merged->n_frames);
}

/* merge(rings, stale, append_type) -> (appends, principals, frames), or None where a payload is not as ours are */
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
        result = result_of(merged, (PyTypeObject *)type);
    if (result == NULL && outcome != LEFT && PyErr_ExceptionMatches(PyExc_UnicodeDecodeError)) {
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
