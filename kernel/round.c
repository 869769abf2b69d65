#include "events.h"

#include <string.h>

/* The entries of a round as they come: `workers/pipeline/round.py` says what is to be done with an event. */
typedef struct {
    PyObject_HEAD
    Entries entries;
    bool has_star;
    uint32_t n_writers;
} RoundObject;

enum { KIND, VB, SEQNO, KEY, DATATYPE, VALUE, EVENT_ITEMS };
enum { LAST_DOCUMENT = 2 };

static const Span star = {(const uint8_t *)"*", 1};

static bool bytes_of(PyObject *object, Span *bytes) {
    char *start;
    Py_ssize_t size;
    if (!PyBytes_Check(object) || PyBytes_AsStringAndSize(object, &start, &size) < 0)
        return false;
    *bytes = (Span){(const uint8_t *)start, (size_t)size};
    return true;
}

/* Reads a number up to *most*; false, without an error, where it is none. */
static bool number_of(PyObject *object, uint64_t most, uint64_t *number) {
    if (!PyLong_CheckExact(object))
        return false;
    *number = PyLong_AsUnsignedLongLong(object);
    if (*number == (uint64_t)-1 && PyErr_Occurred()) {
        PyErr_Clear();
        return false;
    }
    return *number <= most;
}

/* Takes the object of an event apart; all it has is borrowed. False where it is no document, or an odd one. */
static bool read_object(PyObject *object, Event *document) {
    uint64_t kind, vb, datatype;
    if (!PyTuple_CheckExact(object) || PyTuple_Size(object) != EVENT_ITEMS)
        return false;
    if (!number_of(PyTuple_GetItem(object, KIND), LAST_DOCUMENT, &kind) ||
        !number_of(PyTuple_GetItem(object, VB), UINT16_MAX, &vb) ||
        !number_of(PyTuple_GetItem(object, SEQNO), UINT64_MAX, &document->seqno) ||
        !number_of(PyTuple_GetItem(object, DATATYPE), UINT8_MAX, &datatype) ||
        !bytes_of(PyTuple_GetItem(object, KEY), &document->key) ||
        !bytes_of(PyTuple_GetItem(object, VALUE), &document->value))
        return false;
    document->kind = (uint8_t)kind;
    document->vb = (uint16_t)vb;
    document->datatype = (uint8_t)datatype;
    return true;
}

static uint8_t *write_entry(uint8_t *to, const Event *document, unsigned flags, Span rev) {
    uint64_t seqno = document->seqno;
    size_t rev_size;
    *to++ = (uint8_t)(document->vb >> 8);
    *to++ = (uint8_t)document->vb;
    for (int shift = 56; shift >= 0; shift -= 8)
        *to++ = (uint8_t)(seqno >> shift);
    *to++ = (uint8_t)(flags >> 8);
    *to++ = (uint8_t)flags;
    *to++ = (uint8_t)document->key.size;
    uint8_t *rev_byte = to++;
    memcpy(to, document->key.start, document->key.size);
    to += document->key.size;
    *rev_byte = pack_rev(rev, to, &rev_size);
    return to + rev_size;
}

static bool add_entry(Entries *entries, const Event *document, unsigned flags, Span rev, size_t *at, uint32_t *size) {
    uint8_t *packed = packed_end(entries, ENTRY_HEAD_BYTES + MOST_KEY_BYTES + MOST_REV_BYTES);
    if (packed == NULL)
        return false;
    *at = entries->n_packed;
    *size = (uint32_t)(write_entry(packed, document, flags, rev) - packed);
    entries->n_packed += *size;
    return true;
}

/* Hashes the names of the channels; false where one comes twice. */
static bool hash_channels(const Entries *entries, const Revision *revision, uint64_t *hashes) {
    for (unsigned i = 0; i < revision->n_channels; i++) {
        hashes[i] = hash_name(entries, revision->channels[i].name);
        for (unsigned j = 0; j < i; j++)
            if (hashes[j] == hashes[i])
                return false;
    }
    return true;
}

/* Puts the document into the channel `*`, where it may be named already; returns whether it was. */
static bool enter_star(Revision *revision) {
    for (unsigned i = 0; i < revision->n_channels; i++) {
        Channel *channel = &revision->channels[i];
        if (!span_is(channel->name, "*"))
            continue;
        revision->n_left -= channel->is_left;
        channel->is_left = false;
        return true;
    }
    return false;
}

static Outcome no_memory(void) {
    PyErr_NoMemory();
    return FAILED;
}

static Outcome add_revision(RoundObject *self, const Event *document, Revision *revision, Removals *removals) {
    Entries *entries = &self->entries;
    uint64_t hashes[MOST_CHANNELS];
    bool is_due[MOST_CHANNELS];
    size_t at = 0, at_removal;
    uint32_t size = 0, removal_size;
    if (!hash_channels(entries, revision, hashes))
        return LEFT;
    bool adds_star = self->has_star && !enter_star(revision);
    Outcome outcome = removals_due(removals, document->vb, document->key, revision, is_due);
    if (outcome != DONE)
        return outcome;
    if ((adds_star || revision->n_left < revision->n_channels) &&
        !add_entry(entries, document, revision->flags, revision->rev, &at, &size))
        return no_memory();
    for (unsigned i = 0; i < revision->n_channels; i++) {
        const Channel *channel = &revision->channels[i];
        if (!channel->is_left) {
            if (!add_link(entries, channel->name, hashes[i], at, size))
                return no_memory();
        } else if (is_due[i]) {
            unsigned flags = REMOVED | (channel->is_deleted ? DELETED : 0);
            if (!add_entry(entries, document, flags, channel->rev, &at_removal, &removal_size) ||
                !add_link(entries, channel->name, hashes[i], at_removal, removal_size))
                return no_memory();
        }
    }
    if (adds_star && !add_link(entries, star, hash_name(entries, star), at, size))
        return no_memory();
    return DONE;
}

/* The vbucket that the last event was of, and its position, which is told later how far it is. */
typedef struct {
    PyObject *position; /* ours */
    uint64_t seqno;
    uint16_t vb;
    bool has_moved; /* and the position has not been told */
} Place;

/* Tells the position how far it is. An error that is on its way stays. */
static Outcome tell_place(Place *place, PyObject *touched) {
    if (!place->has_moved)
        return DONE;
    PyObject *type, *value, *trace;
    PyErr_Fetch(&type, &value, &trace);
    PyObject *vb = PyLong_FromUnsignedLong(place->vb), *seqno = PyLong_FromUnsignedLongLong(place->seqno);
    bool is_told = vb != NULL && seqno != NULL && PyObject_SetAttr(place->position, attr_seqno, seqno) == 0 &&
                   PySet_Add(touched, vb) == 0;
    Py_XDECREF(vb);
    Py_XDECREF(seqno);
    place->has_moved = false;
    if (type != NULL)
        PyErr_Restore(type, value, trace);
    return is_told ? DONE : FAILED;
}

/* Goes to the vbucket of an event. LEFT: it has no position. */
static Outcome enter_place(Place *place, const Event *event, PyObject *positions, PyObject *touched) {
    if (place->position != NULL && place->vb == event->vb)
        return DONE;
    if (tell_place(place, touched) == FAILED)
        return FAILED;
    Py_CLEAR(place->position);
    PyObject *vb = PyLong_FromUnsignedLong(event->vb);
    if (vb == NULL)
        return FAILED;
    PyObject *position = PyDict_GetItemWithError(positions, vb);
    Py_DECREF(vb);
    if (position == NULL)
        return PyErr_Occurred() ? FAILED : LEFT;
    Py_INCREF(position);
    *place = (Place){.position = position, .vb = event->vb};
    return DONE;
}

/* Has the position of a marker's vbucket enter the snapshot. */
static Outcome add_marker(const Event *marker, PyObject *positions, PyObject *touched, Place *place) {
    Outcome outcome = enter_place(place, marker, positions, touched);
    if (outcome != DONE)
        return outcome;
    if (tell_place(place, touched) == FAILED)
        return FAILED;
    PyObject *start = PyLong_FromUnsignedLongLong(marker_start(marker));
    PyObject *end = PyLong_FromUnsignedLongLong(marker_end(marker));
    PyObject *purge = has_purge(marker) ? PyLong_FromUnsignedLongLong(marker_purge(marker)) : Py_NewRef(Py_None);
    PyObject *entered = NULL;
    if (start != NULL && end != NULL && purge != NULL)
        entered = PyObject_CallMethodObjArgs(place->position, attr_enter_snapshot, start, end, purge, NULL);
    Py_XDECREF(start);
    Py_XDECREF(end);
    Py_XDECREF(purge);
    Py_XDECREF(entered);
    return entered != NULL ? DONE : FAILED;
}

static Outcome add_document(RoundObject *self, const Event *event, PyObject *positions, PyObject *touched,
                            Removals *removals, Revision *revision, Place *place) {
    Event document = *event;
    if (event->object != NULL && !read_object(event->object, &document))
        return LEFT;
    Outcome outcome = enter_place(place, &document, positions, touched);
    if (outcome != DONE)
        return outcome;
    switch (decode(document.key, document.datatype, document.value, revision)) {
    case PYTHONS:
        return LEFT;
    case ENTRY:
        outcome = add_revision(self, &document, revision, removals);
        break;
    case NO_ENTRY:
        break;
    }
    if (outcome == DONE) {
        place->seqno = document.seqno;
        place->has_moved = true;
    }
    return outcome;
}

/* events_of(events) -> the same, as `add` takes them */
static PyObject *round_events_of(RoundObject *self, PyObject *events) {
    (void)self;
    if (Py_TYPE(events) == (PyTypeObject *)events_type)
        return Py_NewRef(events);
    return PyObject_CallFunctionObjArgs(events_type, events, NULL);
}

/* add(events, at, positions, touched, memory) -> (the place of the first event that is Python's, or behind the last one,
 *                                                 documents before it) */
static PyObject *round_add(RoundObject *self, PyObject *args) {
    EventsObject *events;
    PyObject *positions, *touched, *memory;
    Py_ssize_t at, n_documents = 0;
    Removals removals;
    Revision revision;
    Place place = {0};
    if (!PyArg_ParseTuple(args, "O!nO!O!O", events_type, &events, &at, &PyDict_Type, &positions, &PySet_Type, &touched,
                          &memory))
        return NULL;
    if (at < 0) {
        PyErr_SetString(PyExc_ValueError, "no event is before the first");
        return NULL;
    }
    if (!removals_open(&removals, memory))
        return NULL;
    Outcome outcome = DONE;
    for (; (size_t)at < events->n_items; at++) {
        const Event *event = &events->items[at];
        bool is_marker = event->object == NULL && event->kind == SNAPSHOT;
        outcome = is_marker ? add_marker(event, positions, touched, &place)
                            : add_document(self, event, positions, touched, &removals, &revision, &place);
        if (outcome != DONE)
            break;
        n_documents += !is_marker;
    }
    if (tell_place(&place, touched) == FAILED)
        outcome = FAILED;
    Py_XDECREF(place.position);
    removals_close(&removals);
    return outcome == FAILED ? NULL : Py_BuildValue("(nn)", at, n_documents);
}

static PyObject *round_append(RoundObject *self, PyObject *args) {
    const char *name, *packed;
    Py_ssize_t name_size, size;
    size_t at;
    if (!PyArg_ParseTuple(args, "s#y#", &name, &name_size, &packed, &size))
        return NULL;
    if (size > UINT16_MAX) {
        PyErr_SetString(PyExc_ValueError, "no entry is so long");
        return NULL;
    }
    Span channel = {(const uint8_t *)name, (size_t)name_size};
    if (!add_packed(&self->entries, (const uint8_t *)packed, (size_t)size, &at) ||
        !add_link(&self->entries, channel, hash_name(&self->entries, channel), at, (uint32_t)size))
        return PyErr_NoMemory();
    Py_RETURN_NONE;
}

/* Takes all entries since the last call: the sections by writer, and how many entries these are. */
static PyObject *round_take(RoundObject *self, PyObject *unused) {
    (void)unused;
    return take_sections(&self->entries, self->n_writers);
}

static PyObject *round_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"star_channel", "n_writers", NULL};
    int has_star;
    Py_ssize_t n_writers;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "pn", names, &has_star, &n_writers))
        return NULL;
    RoundObject *self;
    if (n_writers < 1 || n_writers > UINT16_MAX) {
        PyErr_SetString(PyExc_ValueError, "there is at least one writer");
        return NULL;
    }
    allocfunc allocate = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    self = (RoundObject *)allocate(type, 0);
    if (self == NULL)
        return NULL;
    self->entries = (Entries){.secret = {secret[0], secret[1]}};
    self->has_star = has_star;
    self->n_writers = (uint32_t)n_writers;
    return (PyObject *)self;
}

static void round_dealloc(RoundObject *self) {
    entries_clear(&self->entries);
    free_object((PyObject *)self);
}

static PyMethodDef round_methods[] = {
    {"events_of", (PyCFunction)round_events_of, METH_O, NULL},
    {"add", (PyCFunction)round_add, METH_VARARGS, NULL},
    {"append", (PyCFunction)round_append, METH_VARARGS, NULL},
    {"take", (PyCFunction)round_take, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot round_slots[] = {
    {Py_tp_new, round_new},
    {Py_tp_dealloc, round_dealloc},
    {Py_tp_methods, round_methods},
    {0, NULL},
};

PyType_Spec round_spec = {"channelindex._kernel.Entries", sizeof(RoundObject), 0, Py_TPFLAGS_DEFAULT, round_slots};
