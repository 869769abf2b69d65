#include "python.h"

#include <string.h>

/* The entries of a round as they come: `workers/pipeline/round.py` says what is to be done with an event. */
typedef struct {
    PyObject_HEAD
    Entries entries;
    bool has_star;
    uint32_t n_writers;
} RoundObject;

/* The entries of a round that was taken, shared by the sections of its writers. */
typedef struct {
    Entries entries;
    size_t n_owners;
} Taken;

typedef struct {
    PyObject_HEAD
    Taken *taken;
    uint32_t writer;
    uint32_t n_writers;
    size_t count;
} SectionsObject;

enum { KIND, VB, SEQNO, KEY, DATATYPE, VALUE, EVENT_ITEMS };
enum { LAST_DOCUMENT = 2, ENTRY_HEAD_BYTES = 14 };

static const Span star = {(const uint8_t *)"*", 1};

typedef struct {
    PyObject *vb, *seqno, *key;
    uint16_t vb_number;
    uint64_t seqno_number;
    unsigned datatype;
    Span key_text, value;
} Document;

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

/* Takes an event apart; all it has is borrowed. False where it is no document, or an odd one. */
static bool read_event(PyObject *event, Document *document) {
    uint64_t kind, vb, datatype;
    if (!PyTuple_CheckExact(event) || PyTuple_Size(event) != EVENT_ITEMS)
        return false;
    document->vb = PyTuple_GetItem(event, VB);
    document->seqno = PyTuple_GetItem(event, SEQNO);
    document->key = PyTuple_GetItem(event, KEY);
    if (!number_of(PyTuple_GetItem(event, KIND), LAST_DOCUMENT, &kind) || !number_of(document->vb, UINT16_MAX, &vb) ||
        !number_of(document->seqno, UINT64_MAX, &document->seqno_number) ||
        !number_of(PyTuple_GetItem(event, DATATYPE), UINT8_MAX, &datatype) ||
        !bytes_of(document->key, &document->key_text) || !bytes_of(PyTuple_GetItem(event, VALUE), &document->value))
        return false;
    document->vb_number = (uint16_t)vb;
    document->datatype = (unsigned)datatype;
    return true;
}

static uint8_t *write_entry(uint8_t *to, const Document *document, unsigned flags, Span rev) {
    uint64_t seqno = document->seqno_number;
    size_t rev_size;
    *to++ = (uint8_t)(document->vb_number >> 8);
    *to++ = (uint8_t)document->vb_number;
    for (int shift = 56; shift >= 0; shift -= 8)
        *to++ = (uint8_t)(seqno >> shift);
    *to++ = (uint8_t)(flags >> 8);
    *to++ = (uint8_t)flags;
    *to++ = (uint8_t)document->key_text.size;
    uint8_t *rev_byte = to++;
    memcpy(to, document->key_text.start, document->key_text.size);
    to += document->key_text.size;
    *rev_byte = pack_rev(rev, to, &rev_size);
    return to + rev_size;
}

static bool add_entry(Entries *entries, const Document *document, unsigned flags, Span rev, size_t *at, uint32_t *size) {
    uint8_t packed[ENTRY_HEAD_BYTES + MOST_KEY_BYTES + MOST_REV_BYTES];
    *size = (uint32_t)(write_entry(packed, document, flags, rev) - packed);
    return add_packed(entries, packed, *size, at);
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

static Outcome add_revision(RoundObject *self, const Document *document, Revision *revision, Removals *removals) {
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

/* Moves the position of the document's vbucket on. */
static Outcome move_position(const Document *document, PyObject *position, PyObject *touched) {
    if (PyObject_SetAttr(position, attr_seqno, document->seqno) < 0 || PySet_Add(touched, document->vb) < 0)
        return FAILED;
    return DONE;
}

static Outcome add_event(RoundObject *self, PyObject *event, PyObject *positions, PyObject *touched, Removals *removals,
                         Revision *revision) {
    Document document;
    if (!read_event(event, &document))
        return LEFT;
    PyObject *position = PyDict_GetItemWithError(positions, document.vb);
    if (position == NULL)
        return PyErr_Occurred() ? FAILED : LEFT;
    Outcome outcome = DONE;
    switch (decode(document.key_text, document.datatype, document.value, revision)) {
    case PYTHONS:
        return LEFT;
    case ENTRY:
        outcome = add_revision(self, &document, revision, removals);
        break;
    case NO_ENTRY:
        break;
    }
    if (outcome != DONE)
        return outcome;
    Py_INCREF(position);
    outcome = move_position(&document, position, touched);
    Py_DECREF(position);
    return outcome;
}

static PyObject *round_add(RoundObject *self, PyObject *args) {
    PyObject *events, *positions, *touched, *memory;
    Py_ssize_t at;
    Removals removals;
    Revision revision;
    if (!PyArg_ParseTuple(args, "O!nO!O!O", &PyList_Type, &events, &at, &PyDict_Type, &positions, &PySet_Type, &touched,
                          &memory))
        return NULL;
    if (at < 0) {
        PyErr_SetString(PyExc_ValueError, "no event is before the first");
        return NULL;
    }
    if (!removals_open(&removals, memory))
        return NULL;
    Outcome outcome = DONE;
    for (; at < PyList_Size(events); at++) {
        PyObject *event = PyList_GetItem(events, at);
        Py_INCREF(event);
        outcome = add_event(self, event, positions, touched, &removals, &revision);
        Py_DECREF(event);
        if (outcome != DONE)
            break;
    }
    removals_close(&removals);
    return outcome == FAILED ? NULL : PyLong_FromSsize_t(at);
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

static void leave(Taken *taken) {
    if (--taken->n_owners == 0) {
        entries_clear(&taken->entries);
        PyMem_Free(taken);
    }
}

static PyObject *new_sections(Taken *taken, uint32_t writer, uint32_t n_writers) {
    SectionsObject *sections = PyObject_New(SectionsObject, (PyTypeObject *)sections_type);
    if (sections == NULL)
        return NULL;
    taken->n_owners++;
    sections->taken = taken;
    sections->writer = writer;
    sections->n_writers = n_writers;
    sections->count = 0;
    for (size_t i = 0; i < taken->entries.n_sections; i++)
        sections->count += is_of_writer(&taken->entries.sections[i], writer, n_writers);
    return (PyObject *)sections;
}

/* Takes all entries since the last call: the sections by writer, and how many entries these are. */
static PyObject *round_take(RoundObject *self, PyObject *unused) {
    (void)unused;
    Taken *taken = PyMem_Malloc(sizeof(Taken));
    if (taken == NULL)
        return PyErr_NoMemory();
    *taken = (Taken){.entries = self->entries, .n_owners = 1};
    self->entries = (Entries){.secret = {taken->entries.secret[0], taken->entries.secret[1]}};
    PyObject *by_writer = PyList_New(self->n_writers);
    for (uint32_t writer = 0; by_writer != NULL && writer < self->n_writers; writer++) {
        PyObject *sections = new_sections(taken, writer, self->n_writers);
        if (sections == NULL || PyList_SetItem(by_writer, writer, sections) < 0)
            Py_CLEAR(by_writer);
    }
    PyObject *result = by_writer == NULL ? NULL : Py_BuildValue("(Nn)", by_writer, (Py_ssize_t)taken->entries.n_links);
    leave(taken);
    return result;
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

/* Gives an object back, and the reference to its type that each object of a heap type has. */
static void free_object(PyObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(self);
    Py_DECREF(type);
}

static void round_dealloc(RoundObject *self) {
    entries_clear(&self->entries);
    free_object((PyObject *)self);
}

static void sections_dealloc(SectionsObject *self) {
    leave(self->taken);
    free_object((PyObject *)self);
}

static Py_ssize_t sections_length(SectionsObject *self) { return (Py_ssize_t)self->count; }

static PyObject *entries_of(const Entries *entries, const Section *section) {
    PyObject *list = PyList_New(section->n_links);
    uint32_t link = section->first_link;
    for (uint32_t i = 0; list != NULL && i < section->n_links; i++, link = entries->links[link].next) {
        const char *start = (const char *)entries->packed + entries->links[link].entry_at;
        PyObject *packed = PyBytes_FromStringAndSize(start, (Py_ssize_t)entries->links[link].size);
        if (packed == NULL || PyList_SetItem(list, i, packed) < 0)
            Py_CLEAR(list);
    }
    return list;
}

/* The sections as a dictionary: by channel its entries, in their order. */
static PyObject *sections_mapping(SectionsObject *self, PyObject *unused) {
    (void)unused;
    const Entries *entries = &self->taken->entries;
    PyObject *mapping = PyDict_New();
    for (size_t i = 0; mapping != NULL && i < entries->n_sections; i++) {
        const Section *section = &entries->sections[i];
        if (!is_of_writer(section, self->writer, self->n_writers))
            continue;
        const char *name = (const char *)entries->names + section->name_at;
        PyObject *channel = PyUnicode_DecodeUTF8(name, section->name_size, NULL);
        PyObject *list = entries_of(entries, section);
        if (channel == NULL || list == NULL || PyDict_SetItem(mapping, channel, list) < 0)
            Py_CLEAR(mapping);
        Py_XDECREF(channel);
        Py_XDECREF(list);
    }
    return mapping;
}

/* What every frame begins with: the array of its four fields, epoch and group. */
typedef struct {
    uint64_t epoch;
    Span group;
} Head;

typedef struct {
    Py_ssize_t first, end;
    size_t n_encoded;
} Names;

/* Adds principals to a frame from *names->end* on, as many as *room* holds beside *n_bound*. LEFT: one is too long. */
static Outcome next_names(PyObject *principals, size_t room, size_t n_bound, Names *names) {
    enum { PRINCIPAL_BYTES = 5 };
    Py_ssize_t at = names->end, size;
    *names = (Names){.first = at, .end = at};
    for (; at < PyList_Size(principals); at++) {
        if (PyUnicode_AsUTF8AndSize(PyList_GetItem(principals, at), &size) == NULL)
            return FAILED;
        size_t bound = (size_t)size + PRINCIPAL_BYTES;
        if (bound > room)
            return LEFT;
        if (n_bound + bound > room)
            break;
        n_bound += bound;
        names->n_encoded += text_head_size((size_t)size) + (size_t)size;
    }
    names->end = at;
    return DONE;
}

static PyObject *write_frame(const SectionsObject *self, Head head, const Part *part, PyObject *principals, Names names) {
    size_t n_names = (size_t)(names.end - names.first);
    size_t size = 1 + natural_size(head.epoch) + text_head_size(head.group.size) + head.group.size +
                  array_head_size(part->n_channels) + part->n_encoded + array_head_size(n_names) + names.n_encoded;
    PyObject *frame = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)size);
    if (frame == NULL)
        return NULL;
    uint8_t *start = (uint8_t *)PyBytes_AsString(frame);
    uint8_t *to = write_natural(write_array_head(start, 4), head.epoch);
    to = write_text_head(to, head.group.size);
    memcpy(to, head.group.start, head.group.size);
    to = write_array_head(to + head.group.size, part->n_channels);
    to = write_part(&self->taken->entries, self->writer, self->n_writers, part, to);
    to = write_array_head(to, n_names);
    for (Py_ssize_t at = names.first; at < names.end; at++) {
        Py_ssize_t name_size;
        const char *name = PyUnicode_AsUTF8AndSize(PyList_GetItem(principals, at), &name_size);
        if (name == NULL) {
            Py_DECREF(frame);
            return NULL;
        }
        to = write_text_head(to, (size_t)name_size);
        memcpy(to, name, (size_t)name_size);
        to += name_size;
    }
    if (to != start + size) {
        Py_DECREF(frame);
        PyErr_SetString(PyExc_AssertionError, "a frame has another size than was counted");
        return NULL;
    }
    return frame;
}

/* Packs all frames. LEFT: something has no room in one. */
static Outcome write_frames(const SectionsObject *self, Head head, PyObject *principals, size_t room, PyObject *frames) {
    Part part = {0};
    Names names = {0};
    for (;;) {
        if (!next_part(&self->taken->entries, self->writer, self->n_writers, room, &part))
            return LEFT;
        bool is_last_part = part.end == self->taken->entries.n_sections;
        if (is_last_part) {
            Outcome outcome = next_names(principals, room, part.n_bound, &names);
            if (outcome != DONE)
                return outcome;
        } else {
            names = (Names){0};
        }
        if (part.n_channels || names.end > names.first) {
            PyObject *frame = write_frame(self, head, &part, principals, names);
            int failed = frame == NULL ? -1 : PyList_Append(frames, frame);
            Py_XDECREF(frame);
            if (failed)
                return FAILED;
        }
        if (is_last_part && names.end == PyList_Size(principals))
            return DONE;
    }
}

/* What `frames.pack_frames` makes of the same entries; None where one section alone has no room in a frame. */
static PyObject *sections_frames(SectionsObject *self, PyObject *args) {
    enum { HEAD_BYTES = 32 };
    unsigned long long epoch;
    const char *group;
    Py_ssize_t group_size, max_bytes;
    PyObject *principals;
    if (!PyArg_ParseTuple(args, "Ks#O!n", &epoch, &group, &group_size, &PyList_Type, &principals, &max_bytes))
        return NULL;
    if (max_bytes < HEAD_BYTES + group_size)
        Py_RETURN_NONE;
    Head head = {epoch, {(const uint8_t *)group, (size_t)group_size}};
    PyObject *frames = PyList_New(0);
    if (frames == NULL)
        return NULL;
    switch (write_frames(self, head, principals, (size_t)(max_bytes - HEAD_BYTES - group_size), frames)) {
    case DONE:
        return frames;
    case LEFT:
        Py_DECREF(frames);
        Py_RETURN_NONE;
    default:
        Py_DECREF(frames);
        return NULL;
    }
}

static PyMethodDef round_methods[] = {
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

static PyMethodDef sections_methods[] = {
    {"mapping", (PyCFunction)sections_mapping, METH_NOARGS, NULL},
    {"frames", (PyCFunction)sections_frames, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot sections_slots[] = {
    {Py_tp_dealloc, sections_dealloc},
    {Py_sq_length, sections_length},
    {Py_tp_methods, sections_methods},
    {0, NULL},
};

PyType_Spec sections_spec = {"channelindex._kernel.Sections", sizeof(SectionsObject), 0,
                             Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION, sections_slots};
