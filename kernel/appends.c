#include "batch.h"

#include <string.h>

/* What one call of a store appends: `channelindex/stores/block_writer.py` says what that is, and
 * `channelindex/stores/redis/writer.py` how its script takes it. */

enum { EPOCH_DIGITS = 16, BLIND_VALUES = 2, LOCATING_VALUES = 5 };

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
        return Py_BuildValue("(NNKy#)", text_of(item->channel), text_of(item->group), pick->number, frame, size);
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

/* The size of a block's end of key: "group:number:channel". */
static size_t name_size_of(const Item *item, uint64_t number) {
    return item->group.size + 1 + n_digits_of(number) + 1 + item->channel.size;
}

static uint8_t *write_span(uint8_t *to, Span span) {
    if (span.size)
        memcpy(to, span.start, span.size);
    return to + span.size;
}

static uint8_t *write_name(uint8_t *to, const Item *item, uint64_t number) {
    size_t n_digits = n_digits_of(number);
    to = write_span(write_text_head(to, name_size_of(item, number)), item->group);
    *to++ = ':';
    for (size_t i = n_digits; i; i--, number /= 10)
        to[i - 1] = (uint8_t)('0' + number % 10);
    to += n_digits;
    *to++ = ':';
    return write_span(to, item->channel);
}

static uint8_t *write_epoch(uint8_t *to, uint64_t epoch) {
    to = write_text_head(to, EPOCH_DIGITS);
    for (int shift = 4 * (EPOCH_DIGITS - 1); shift >= 0; shift -= 4)
        *to++ = (uint8_t)"0123456789abcdef"[epoch >> shift & 0xF];
    return to;
}

/* How a selection's appends become arguments: blind ones, or such that locate. */
typedef struct {
    const SelectionObject *selection;
    bool locates;
} Packing;

static const Item *item_of(const Packing *packing, size_t index) {
    return &packing->selection->batch->items[packing->selection->picks[index].item];
}

static size_t values_size(const Packing *packing, size_t index) {
    const Item *item = item_of(packing, index);
    size_t size = natural_size(item->frame.size);
    if (!packing->locates)
        return text_size(name_size_of(item, packing->selection->picks[index].number)) + size;
    return text_size(item->channel.size) + text_size(item->group.size) + text_size(EPOCH_DIGITS) +
           natural_size(FRAME_HEAD_BYTES) + size;
}

static uint8_t *write_values(const Packing *packing, size_t index, uint8_t *to) {
    const Item *item = item_of(packing, index);
    if (packing->locates) {
        to = write_span(write_text_head(to, item->channel.size), item->channel);
        to = write_span(write_text_head(to, item->group.size), item->group);
        to = write_natural(write_epoch(to, item->epoch), FRAME_HEAD_BYTES);
    } else {
        to = write_name(to, item, packing->selection->picks[index].number);
    }
    return write_natural(to, item->frame.size);
}

static size_t body_size(const Packing *packing, size_t index) {
    return item_of(packing, index)->frame.size + (packing->locates ? FRAME_HEAD_BYTES : 0);
}

static uint8_t *write_body(const Packing *packing, size_t index, uint8_t *to) {
    const Item *item = item_of(packing, index);
    if (packing->locates) {
        first_header(item->epoch, to);
        to += FRAME_HEAD_BYTES;
    }
    return write_span(to, item->frame);
}

/* Where the appends of the slot end that the one at *first* is of. */
static size_t end_of_slot(const Packing *packing, size_t first) {
    size_t end = first;
    while (end < packing->selection->n_picks && item_of(packing, end)->slot == item_of(packing, first)->slot)
        end++;
    return end;
}

/* The arguments of one call of a script for the appends from *first* to *end*: (slot, MessagePack, body). */
static PyObject *write_arguments(const Packing *packing, size_t first, size_t end) {
    size_t n_slots = 0, size = 0, n_body = 0, n_values = packing->locates ? LOCATING_VALUES : BLIND_VALUES;
    for (size_t at = first, next; at < end; at = next, n_slots++) {
        next = end_of_slot(packing, at);
        size += natural_size(item_of(packing, at)->slot) + array_head_size(n_values * (next - at));
    }
    for (size_t at = first; at < end; at++) {
        size += values_size(packing, at);
        n_body += body_size(packing, at);
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
        next = end_of_slot(packing, at);
        to = write_array_head(write_natural(to, item_of(packing, at)->slot), n_values * (next - at));
        for (size_t index = at; index < next; index++) {
            to = write_values(packing, index, to);
            body_to = write_body(packing, index, body_to);
        }
    }
    return Py_BuildValue("(INN)", item_of(packing, first)->slot, arguments, body);
}

/* arguments(together) -> [(slot, arguments, body), ...] of a script, for the appends of one of `calls`
 *
 * One for all slots, which has the first one's number, or one for each. */
static PyObject *selection_arguments(SelectionObject *self, PyObject *args) {
    int together;
    if (!PyArg_ParseTuple(args, "p", &together))
        return NULL;
    const Packing packing = {self, self->type != NULL};
    PyObject *calls = PyList_New(0);
    for (size_t first = 0, end; calls != NULL && first < self->n_picks; first = end) {
        end = together ? self->n_picks : end_of_slot(&packing, first);
        PyObject *call = write_arguments(&packing, first, end);
        if (call == NULL || PyList_Append(calls, call) < 0)
            Py_CLEAR(calls);
        Py_XDECREF(call);
    }
    return calls;
}

static PyMethodDef selection_methods[] = {
    {"calls", (PyCFunction)selection_calls, METH_VARARGS, NULL},
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
