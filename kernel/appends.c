#include "python.h"

#include <string.h>

/* A batch into what a store takes: `channelindex/stores/block_writer.py` and `channelindex/stores/redis/writer.py` say what
 * is to come out. */

enum { N_SLOTS = 64, FRAME_HEAD_BYTES = 17, ENTRIES_KIND = 0x45 };

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
