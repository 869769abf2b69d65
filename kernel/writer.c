#include "python.h"

#include <string.h>

/* The batch writer's part: frames of rings into appends, appends into what a store takes. `workers/pipeline/frames.py`,
 * `channelindex/stores/block_writer.py` and `channelindex/stores/redis/writer.py` say what is to come out. */

enum { MOST_MERGES = 64, N_SLOTS = 64, FRAME_HEAD_BYTES = 17, ENTRIES_KIND = 0x45 };

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

/* A frame of entries as blocks have it, checksum included. */
static PyObject *pack_frame(uint64_t epoch, Span entries) {
    if (entries.size > UINT32_MAX)
        return PyErr_Format(PyExc_OverflowError, "a frame of %zu bytes", entries.size);
    PyObject *frame = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)(FRAME_HEAD_BYTES + entries.size));
    if (frame == NULL)
        return NULL;
    uint8_t *start = (uint8_t *)PyBytes_AsString(frame);
    uint8_t *to = start;
    *to++ = ENTRIES_KIND;
    to = write_big(to, entries.size, 4);
    uint8_t *epoch_at = to + 4;
    write_big(epoch_at, epoch, 8);
    if (entries.size)
        memcpy(epoch_at + 8, entries.start, entries.size);
    write_big(to, crc32_of((Span){epoch_at, 8 + entries.size}, ENTRIES_KIND), 4);
    return frame;
}

/* The blind append of one (append, active block), and its size, by which the block grows. */
static PyObject *pack_append(PyObject *known, size_t *size) {
    PyObject *append = PyTuple_Check(known) && PyTuple_Size(known) == 2 ? PyTuple_GetItem(known, 0) : NULL;
    char *entries;
    Py_ssize_t n_bytes;
    if (append == NULL || !PyTuple_Check(append) || PyTuple_Size(append) != 4)
        return PyErr_Format(PyExc_TypeError, "no append and its block");
    uint64_t epoch = PyLong_AsUnsignedLongLong(PyTuple_GetItem(append, 2));
    if (PyErr_Occurred() || PyBytes_AsStringAndSize(PyTuple_GetItem(append, 3), &entries, &n_bytes) < 0)
        return NULL;
    PyObject *active = PyTuple_GetItem(known, 1), *packed = NULL, *grown = NULL;
    PyObject *frame = pack_frame(epoch, (Span){(const uint8_t *)entries, (size_t)n_bytes});
    PyObject *number = PyObject_GetAttr(active, attr_number), *before = PyObject_GetAttr(active, attr_size);
    if (frame != NULL && number != NULL && before != NULL) {
        *size = FRAME_HEAD_BYTES + (size_t)n_bytes;
        grown = PyLong_FromUnsignedLongLong(PyLong_AsUnsignedLongLong(before) + *size);
        if (!PyErr_Occurred() && PyObject_SetAttr(active, attr_size, grown) == 0)
            packed = PyTuple_Pack(4, PyTuple_GetItem(append, 0), PyTuple_GetItem(append, 1), number, frame);
    }
    Py_XDECREF(frame);
    Py_XDECREF(number);
    Py_XDECREF(before);
    Py_XDECREF(grown);
    return packed;
}

/* blind_appends(known, start, most, most_bytes) -> what one call of the store appends of *known* from *start* on
 *
 * At most so many, and none behind the one that reaches so many bytes. The blocks grow by them. */
PyObject *blind_appends(PyObject *module, PyObject *args) {
    (void)module;
    PyObject *known;
    Py_ssize_t start, most, most_bytes;
    if (!PyArg_ParseTuple(args, "O!nnn", &PyList_Type, &known, &start, &most, &most_bytes))
        return NULL;
    if (start < 0) {
        PyErr_SetString(PyExc_ValueError, "no append is before the first");
        return NULL;
    }
    PyObject *appends = PyList_New(0);
    size_t n_bytes = 0, size = 0;
    for (Py_ssize_t i = start; appends != NULL && i < PyList_Size(known); i++) {
        if (i - start >= most || (n_bytes && n_bytes >= (size_t)most_bytes))
            break;
        PyObject *append = pack_append(PyList_GetItem(known, i), &size);
        if (append == NULL || PyList_Append(appends, append) < 0)
            Py_CLEAR(appends);
        Py_XDECREF(append);
        n_bytes += size;
    }
    return appends;
}

/* One blind append, taken apart. All is borrowed. */
typedef struct {
    Span channel, group, frame;
    uint64_t number;
    size_t n_digits;
    unsigned slot;
} Blind;

static bool read_blind(PyObject *append, Blind *blind) {
    Py_ssize_t channel_size, group_size;
    char *frame;
    Py_ssize_t frame_size;
    if (!PyTuple_Check(append) || PyTuple_Size(append) != 4) {
        PyErr_SetString(PyExc_TypeError, "no blind append");
        return false;
    }
    const char *channel = PyUnicode_AsUTF8AndSize(PyTuple_GetItem(append, 0), &channel_size);
    const char *group = channel ? PyUnicode_AsUTF8AndSize(PyTuple_GetItem(append, 1), &group_size) : NULL;
    if (group == NULL || PyBytes_AsStringAndSize(PyTuple_GetItem(append, 3), &frame, &frame_size) < 0)
        return false;
    blind->number = PyLong_AsUnsignedLongLong(PyTuple_GetItem(append, 2));
    if (PyErr_Occurred())
        return false;
    blind->channel = (Span){(const uint8_t *)channel, (size_t)channel_size};
    blind->group = (Span){(const uint8_t *)group, (size_t)group_size};
    blind->frame = (Span){(const uint8_t *)frame, (size_t)frame_size};
    blind->n_digits = 1;
    for (uint64_t rest = blind->number / 10; rest; rest /= 10)
        blind->n_digits++;
    blind->slot = crc32_of(blind->channel, 0) % N_SLOTS;
    return true;
}

static size_t name_size_of(const Blind *blind) {
    return blind->group.size + 1 + blind->n_digits + 1 + blind->channel.size;
}

static size_t item_size_of(const Blind *blind) {
    size_t size = name_size_of(blind);
    return text_head_size(size) + size + natural_size(blind->frame.size);
}

static uint8_t *write_span(uint8_t *to, Span span) {
    if (span.size)
        memcpy(to, span.start, span.size);
    return to + span.size;
}

/* Writes "group:number:channel" and the length of the frame. */
static uint8_t *write_item(uint8_t *to, const Blind *blind) {
    to = write_span(write_text_head(to, name_size_of(blind)), blind->group);
    *to++ = ':';
    uint64_t rest = blind->number;
    for (size_t i = blind->n_digits; i; i--, rest /= 10)
        to[i - 1] = (uint8_t)('0' + rest % 10);
    to += blind->n_digits;
    *to++ = ':';
    return write_natural(write_span(to, blind->channel), blind->frame.size);
}

typedef struct {
    unsigned order[N_SLOTS]; /* slots as they first come */
    size_t n_slots;
    size_t count[N_SLOTS], items[N_SLOTS], bodies[N_SLOTS];
} Slots;

static void note_slot(Slots *slots, const Blind *blind) {
    if (!slots->count[blind->slot]++)
        slots->order[slots->n_slots++] = blind->slot;
    slots->items[blind->slot] += item_size_of(blind);
    slots->bodies[blind->slot] += blind->frame.size;
}

/* The arguments of a script for the slots from *first* to *end* of the order: (slot, MessagePack, body). */
static PyObject *write_arguments(const Slots *slots, const Blind *blinds, size_t n_blinds, size_t first, size_t end) {
    size_t n_arguments = array_head_size(2 * (end - first)), n_body = 0;
    for (size_t i = first; i < end; i++) {
        unsigned slot = slots->order[i];
        n_arguments += natural_size(slot) + array_head_size(2 * slots->count[slot]) + slots->items[slot];
        n_body += slots->bodies[slot];
    }
    PyObject *arguments = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)n_arguments);
    PyObject *body = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)n_body);
    if (arguments == NULL || body == NULL) {
        Py_XDECREF(arguments);
        Py_XDECREF(body);
        return NULL;
    }
    uint8_t *to = write_array_head((uint8_t *)PyBytes_AsString(arguments), 2 * (end - first));
    uint8_t *body_to = (uint8_t *)PyBytes_AsString(body);
    uint8_t *items_at[N_SLOTS], *bodies_at[N_SLOTS];
    bool is_ours[N_SLOTS] = {false};
    for (size_t i = first; i < end; i++) {
        unsigned slot = slots->order[i];
        to = write_array_head(write_natural(to, slot), 2 * slots->count[slot]);
        items_at[slot] = to;
        bodies_at[slot] = body_to;
        is_ours[slot] = true;
        to += slots->items[slot];
        body_to += slots->bodies[slot];
    }
    for (size_t i = 0; i < n_blinds; i++) {
        unsigned slot = blinds[i].slot;
        if (!is_ours[slot])
            continue;
        items_at[slot] = write_item(items_at[slot], &blinds[i]);
        bodies_at[slot] = write_span(bodies_at[slot], blinds[i].frame);
    }
    return Py_BuildValue("(INN)", slots->order[first], arguments, body);
}

/* append_arguments(appends, together) -> [(slot, arguments, body), ...] of the script that appends blindly
 *
 * One for all slots, which has the first one's number, or one for each. */
PyObject *append_arguments(PyObject *module, PyObject *args) {
    (void)module;
    PyObject *appends;
    int together;
    if (!PyArg_ParseTuple(args, "O!p", &PyList_Type, &appends, &together))
        return NULL;
    Py_ssize_t count = PyList_Size(appends);
    Slots slots = {.n_slots = 0};
    Blind *blinds = PyMem_Calloc((size_t)count + 1, sizeof(Blind));
    if (blinds == NULL)
        return PyErr_NoMemory();
    PyObject *calls = PyList_New(0);
    for (Py_ssize_t i = 0; calls != NULL && i < count; i++) {
        if (read_blind(PyList_GetItem(appends, i), &blinds[i]))
            note_slot(&slots, &blinds[i]);
        else
            Py_CLEAR(calls);
    }
    size_t step = together ? slots.n_slots : 1;
    for (size_t first = 0; calls != NULL && first < slots.n_slots; first += step) {
        PyObject *call = write_arguments(&slots, blinds, (size_t)count, first, first + step);
        if (call == NULL || PyList_Append(calls, call) < 0)
            Py_CLEAR(calls);
        Py_XDECREF(call);
    }
    PyMem_Free(blinds);
    return calls;
}
