#include "python.h"

#include <string.h>

/* What a round adds to the channels of each writer: as ring frames, or as Python has it. */

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

PyObject *take_sections(Entries *entries, uint32_t n_writers) {
    Taken *taken = PyMem_Malloc(sizeof(Taken));
    if (taken == NULL)
        return PyErr_NoMemory();
    *taken = (Taken){.entries = *entries, .n_owners = 1};
    *entries = (Entries){.secret = {taken->entries.secret[0], taken->entries.secret[1]}};
    PyObject *by_writer = PyList_New(n_writers);
    for (uint32_t writer = 0; by_writer != NULL && writer < n_writers; writer++) {
        PyObject *sections = new_sections(taken, writer, n_writers);
        if (sections == NULL || PyList_SetItem(by_writer, writer, sections) < 0)
            Py_CLEAR(by_writer);
    }
    PyObject *result = by_writer == NULL ? NULL : Py_BuildValue("(Nn)", by_writer, (Py_ssize_t)taken->entries.n_links);
    leave(taken);
    return result;
}

void free_object(PyObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(self);
    Py_DECREF(type);
}

static void sections_dealloc(SectionsObject *self) {
    leave(self->taken);
    free_object((PyObject *)self);
}

static Py_ssize_t sections_length(SectionsObject *self) { return (Py_ssize_t)self->count; }

static PyObject *entries_of(const Entries *entries, const Section *section) {
    PyObject *list = PyList_New(section->n_links);
    uint32_t link = section->last_link;
    for (uint32_t i = section->n_links; list != NULL && i-- > 0; link = entries->links[link].before) {
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
