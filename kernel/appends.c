#include "batch.h"

#include <string.h>

/* What one call of a store appends: `channelindex/stores/block_writer.py` says what that is, and
 * `channelindex/stores/redis/writer.py` how it is sent. */

enum { EPOCH_DIGITS = 16, LOCATING_VALUES = 5 };

typedef struct {
    PyObject_HEAD
    BatchObject *batch;
    Pick *picks;
    size_t n_picks;
    PyObject *type; /* NULL: appends are blind */
} SelectionObject;

PyObject *selection_type;

PyObject *new_selection(BatchObject *batch, Pick *picks, size_t n_picks, PyObject *type) {
    SelectionObject *selection = PyObject_New(SelectionObject, (PyTypeObject *)selection_type);
    if (selection == NULL) {
        PyMem_Free(picks);
        return NULL;
    }
    Py_INCREF((PyObject *)batch);
    Py_XINCREF(type);
    selection->batch = batch;
    selection->picks = picks;
    selection->n_picks = n_picks;
    selection->type = type;
    return (PyObject *)selection;
}

static void selection_dealloc(SelectionObject *self) {
    Py_DECREF((PyObject *)self->batch);
    Py_XDECREF(self->type);
    PyMem_Free(self->picks);
    free_object((PyObject *)self);
}

const BatchObject *selected(PyObject *object, const Pick **picks, size_t *n_picks) {
    if (Py_TYPE(object) != (PyTypeObject *)selection_type) {
        PyErr_SetString(PyExc_TypeError, "no selection of a batch");
        return NULL;
    }
    const SelectionObject *selection = (SelectionObject *)object;
    *picks = selection->picks;
    *n_picks = selection->n_picks;
    return selection->batch;
}

static Py_ssize_t selection_length(SelectionObject *self) { return (Py_ssize_t)self->n_picks; }

/* The header of a channel's first block: nothing is before it. */
static const uint8_t *first_header(uint64_t epoch, uint8_t *header) {
    write_frame_head(header, HEADER_KIND, epoch, 0);
    return header;
}

static PyObject *selection_item(SelectionObject *self, Py_ssize_t index) {
    if (index < 0 || (size_t)index >= self->n_picks) {
        PyErr_SetString(PyExc_IndexError, "no append of the call");
        return NULL;
    }
    const Pick *pick = &self->picks[index];
    const Item *item = &self->batch->items[pick->item];
    const char *frame = (const char *)item->frame.start;
    Py_ssize_t size = (Py_ssize_t)item->frame.size;
    if (self->type == NULL)
        return Py_BuildValue("(NNKKy#)", text_of(item->channel), text_of(item->group), pick->number, pick->size, frame, size);
    uint8_t header[FRAME_HEAD_BYTES];
    return named(self->type, Py_BuildValue("(NNKy#y#)", text_of(item->channel), text_of(item->group), item->epoch,
                                           (const char *)first_header(item->epoch, header), (Py_ssize_t)FRAME_HEAD_BYTES,
                                           frame, size));
}

/* Copies the picks from *first* to *end*, in the order of their slots; else they keep their order. */
static Pick *sorted_by_slot(const SelectionObject *self, size_t first, size_t end) {
    size_t place[N_SLOTS + 1] = {0};
    Pick *sorted = PyMem_Malloc((end - first + 1) * sizeof(Pick));
    if (sorted == NULL)
        return NULL;
    for (size_t i = first; i < end; i++)
        place[self->batch->items[self->picks[i].item].slot + 1]++;
    for (size_t slot = 0; slot < N_SLOTS; slot++)
        place[slot + 1] += place[slot];
    for (size_t i = first; i < end; i++)
        sorted[place[self->batch->items[self->picks[i].item].slot]++] = self->picks[i];
    return sorted;
}

/* calls(most, most_bytes) -> [selection, ...]: what each call of the store appends
 *
 * At most so many, and none behind the one that reaches so many bytes. Within a call they are in the order of slots. */
static PyObject *selection_calls(SelectionObject *self, PyObject *args) {
    Py_ssize_t most, most_bytes;
    if (!PyArg_ParseTuple(args, "nn", &most, &most_bytes))
        return NULL;
    if (most < 1 || most_bytes < 1)
        return PyErr_Format(PyExc_ValueError, "each call takes something");
    PyObject *calls = PyList_New(0);
    for (size_t first = 0, end; calls != NULL && first < self->n_picks; first = end) {
        size_t n_bytes = 0;
        for (end = first; end < self->n_picks && end - first < (size_t)most && n_bytes < (size_t)most_bytes; end++)
            n_bytes += self->batch->items[self->picks[end].item].frame.size;
        Pick *picks = sorted_by_slot(self, first, end);
        PyObject *call = picks == NULL ? PyErr_NoMemory() : new_selection(self->batch, picks, end - first, self->type);
        if (call == NULL || PyList_Append(calls, call) < 0)
            Py_CLEAR(calls);
        Py_XDECREF(call);
    }
    return calls;
}

static size_t n_digits_of(uint64_t number) {
    size_t count = 1;
    while (number /= 10)
        count++;
    return count;
}

static size_t text_size(size_t size) { return text_head_size(size) + size; }

static uint8_t *write_span(uint8_t *to, Span span) {
    if (span.size)
        memcpy(to, span.start, span.size);
    return to + span.size;
}

static uint8_t *write_epoch(uint8_t *to, uint64_t epoch) {
    to = write_text_head(to, EPOCH_DIGITS);
    for (int shift = 4 * (EPOCH_DIGITS - 1); shift >= 0; shift -= 4)
        *to++ = (uint8_t)"0123456789abcdef"[epoch >> shift & 0xF];
    return to;
}

static const Item *item_of(const SelectionObject *self, size_t index) { return &self->batch->items[self->picks[index].item]; }

static size_t values_size(const Item *item) {
    return text_size(item->channel.size) + text_size(item->group.size) + text_size(EPOCH_DIGITS) +
           natural_size(FRAME_HEAD_BYTES) + natural_size(item->frame.size);
}

static uint8_t *write_values(const Item *item, uint8_t *to) {
    to = write_span(write_text_head(to, item->channel.size), item->channel);
    to = write_span(write_text_head(to, item->group.size), item->group);
    return write_natural(write_natural(write_epoch(to, item->epoch), FRAME_HEAD_BYTES), item->frame.size);
}

/* Where the appends of the slot end that the one at *first* is of. */
static size_t end_of_slot(const SelectionObject *self, size_t first) {
    size_t end = first;
    while (end < self->n_picks && item_of(self, end)->slot == item_of(self, first)->slot)
        end++;
    return end;
}

/* The arguments of one call of a script for the appends from *first* to *end*: (slot, MessagePack, body). */
static PyObject *write_arguments(const SelectionObject *self, size_t first, size_t end) {
    size_t n_slots = 0, size = 0, n_body = 0;
    for (size_t at = first, next; at < end; at = next, n_slots++) {
        next = end_of_slot(self, at);
        size += natural_size(item_of(self, at)->slot) + array_head_size(LOCATING_VALUES * (next - at));
    }
    for (size_t at = first; at < end; at++) {
        size += values_size(item_of(self, at));
        n_body += FRAME_HEAD_BYTES + item_of(self, at)->frame.size;
    }
    PyObject *arguments = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)(array_head_size(2 * n_slots) + size));
    PyObject *body = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)n_body);
    if (arguments == NULL || body == NULL) {
        Py_XDECREF(arguments);
        Py_XDECREF(body);
        return NULL;
    }
    uint8_t *to = write_array_head((uint8_t *)PyBytes_AsString(arguments), 2 * n_slots);
    uint8_t *body_to = (uint8_t *)PyBytes_AsString(body);
    for (size_t at = first, next; at < end; at = next) {
        next = end_of_slot(self, at);
        to = write_array_head(write_natural(to, item_of(self, at)->slot), LOCATING_VALUES * (next - at));
        for (size_t index = at; index < next; index++) {
            const Item *item = item_of(self, index);
            to = write_values(item, to);
            first_header(item->epoch, body_to);
            body_to = write_span(body_to + FRAME_HEAD_BYTES, item->frame);
        }
    }
    return Py_BuildValue("(INN)", item_of(self, first)->slot, arguments, body);
}

/* The digits of a number. */
typedef struct {
    uint8_t digits[20];
    size_t size;
} Decimal;

static Decimal decimal_of(uint64_t number) {
    Decimal decimal = {.size = n_digits_of(number)};
    for (size_t i = decimal.size; i; i--, number /= 10)
        decimal.digits[i - 1] = (uint8_t)('0' + number % 10);
    return decimal;
}

static uint8_t *write_decimal(uint8_t *to, uint64_t number) {
    Decimal decimal = decimal_of(number);
    return write_span(to, (Span){decimal.digits, decimal.size});
}

static uint8_t *write_ascii(uint8_t *to, const char *text) {
    return write_span(to, (Span){(const uint8_t *)text, strlen(text)});
}

static const char append_head[] = "*3\r\n$6\r\nAPPEND\r\n$";

/* The size of a block's key: "<prefix>{<slot>}:b:<group>:<number>:<channel>". */
static size_t key_size_of(Span prefix, const Item *item, uint64_t number) {
    return prefix.size + n_digits_of(item->slot) + 5 + item->group.size + 1 + n_digits_of(number) + 1 + item->channel.size;
}

static size_t command_size(Span prefix, const Item *item, uint64_t number) {
    size_t key_size = key_size_of(prefix, item, number), size = item->frame.size;
    return sizeof(append_head) - 1 + n_digits_of(key_size) + 2 + key_size + 3 + n_digits_of(size) + 2 + size + 2;
}

static uint8_t *write_command(Span prefix, const Item *item, uint64_t number, uint8_t *to) {
    to = write_decimal(write_ascii(to, append_head), key_size_of(prefix, item, number));
    to = write_span(write_ascii(to, "\r\n"), prefix);
    to = write_decimal(write_ascii(to, "{"), item->slot);
    to = write_span(write_ascii(to, "}:b:"), item->group);
    to = write_decimal(write_ascii(to, ":"), number);
    to = write_span(write_ascii(to, ":"), item->channel);
    to = write_decimal(write_ascii(to, "\r\n$"), item->frame.size);
    return write_ascii(write_span(write_ascii(to, "\r\n"), item->frame), "\r\n");
}

/* The commands for the appends from *first* to *end*: (slot, commands, their number). */
static PyObject *write_commands(const SelectionObject *self, Span prefix, size_t first, size_t end) {
    size_t size = 0;
    for (size_t at = first; at < end; at++)
        size += command_size(prefix, item_of(self, at), self->picks[at].number);
    PyObject *commands = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)size);
    if (commands == NULL)
        return NULL;
    uint8_t *to = (uint8_t *)PyBytes_AsString(commands);
    for (size_t at = first; at < end; at++)
        to = write_command(prefix, item_of(self, at), self->picks[at].number, to);
    return Py_BuildValue("(INn)", item_of(self, first)->slot, commands, (Py_ssize_t)(end - first));
}

/* One call for all slots, which has the first one's number, or one for each. */
static PyObject *calls_by_slot(const SelectionObject *self, bool together, const Span *prefix) {
    PyObject *calls = PyList_New(0);
    for (size_t first = 0, end; calls != NULL && first < self->n_picks; first = end) {
        end = together ? self->n_picks : end_of_slot(self, first);
        PyObject *call = prefix ? write_commands(self, *prefix, first, end) : write_arguments(self, first, end);
        if (call == NULL || PyList_Append(calls, call) < 0)
            Py_CLEAR(calls);
        Py_XDECREF(call);
    }
    return calls;
}

/* commands(prefix, together) -> [(slot, APPENDs as Redis takes them, their number), ...] for one of the blind `calls` */
static PyObject *selection_commands(SelectionObject *self, PyObject *args) {
    const char *prefix;
    Py_ssize_t size;
    int together;
    if (!PyArg_ParseTuple(args, "s#p", &prefix, &size, &together))
        return NULL;
    return calls_by_slot(self, together, &(Span){(const uint8_t *)prefix, (size_t)size});
}

/* arguments(together) -> [(slot, arguments, body), ...] of the script that locates, for one of the `calls` that do */
static PyObject *selection_arguments(SelectionObject *self, PyObject *args) {
    int together;
    if (!PyArg_ParseTuple(args, "p", &together))
        return NULL;
    return calls_by_slot(self, together, NULL);
}

/* Takes ":<digits>\r\n". */
static bool take_reply(Cursor *cursor, uint64_t *number) {
    bool has_digit = false;
    if (cursor->at == cursor->end || *cursor->at++ != ':')
        return false;
    for (*number = 0; cursor->at < cursor->end && *cursor->at >= '0' && *cursor->at <= '9'; cursor->at++, has_digit = true)
        *number = *number * 10 + (uint64_t)(*cursor->at - '0');
    if (!has_digit || cursor->end - cursor->at < 2 || cursor->at[0] != '\r' || cursor->at[1] != '\n')
        return false;
    cursor->at += 2;
    return true;
}

/* unexpected(replies) -> [append, ...]: those after which a block has another size. *replies* are those to `commands`. */
static PyObject *selection_unexpected(SelectionObject *self, PyObject *replies) {
    char *start;
    Py_ssize_t size;
    uint64_t number;
    if (PyBytes_AsStringAndSize(replies, &start, &size) < 0)
        return NULL;
    Cursor cursor = {.at = (const uint8_t *)start, .end = (const uint8_t *)start + size};
    PyObject *unexpected = PyList_New(0);
    for (size_t i = 0; unexpected != NULL && i < self->n_picks; i++) {
        if (!take_reply(&cursor, &number)) {
            PyErr_SetString(PyExc_ValueError, "no number for each append");
            Py_CLEAR(unexpected);
        } else if (number != self->picks[i].size) {
            PyObject *append = selection_item(self, (Py_ssize_t)i);
            if (append == NULL || PyList_Append(unexpected, append) < 0)
                Py_CLEAR(unexpected);
            Py_XDECREF(append);
        }
    }
    if (unexpected != NULL && cursor.at != cursor.end) {
        PyErr_SetString(PyExc_ValueError, "more numbers than appends");
        Py_CLEAR(unexpected);
    }
    return unexpected;
}

static PyMethodDef selection_methods[] = {
    {"calls", (PyCFunction)selection_calls, METH_VARARGS, NULL},
    {"commands", (PyCFunction)selection_commands, METH_VARARGS, NULL},
    {"unexpected", (PyCFunction)selection_unexpected, METH_O, NULL},
    {"arguments", (PyCFunction)selection_arguments, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot selection_slots[] = {
    {Py_tp_dealloc, selection_dealloc},
    {Py_tp_methods, selection_methods},
    {Py_sq_length, selection_length},
    {Py_sq_item, selection_item},
    {0, NULL},
};

PyType_Spec selection_spec = {"channelindex._kernel.Selection", sizeof(SelectionObject), 0,
                              Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION, selection_slots};
