#include "events.h"

enum { FIRST_ROOM = 64 };

PyObject *events_type;

static bool make_room(EventsObject *events, size_t more) {
    if (more <= events->room - events->n_items)
        return true;
    size_t most = SIZE_MAX / 4 / sizeof(Event);
    if (events->n_items > most || more > most - events->n_items) {
        PyErr_NoMemory();
        return false;
    }
    size_t room = events->room < FIRST_ROOM ? FIRST_ROOM : events->room;
    while (room < events->n_items + more)
        room *= 2;
    Event *items = PyMem_Realloc(events->items, room * sizeof(Event));
    if (items == NULL) {
        PyErr_NoMemory();
        return false;
    }
    events->items = items;
    events->room = room;
    return true;
}

/* Keeps *source* as long as the events; once, if its events come one after the other. */
static bool keep_source(EventsObject *events, PyObject *source) {
    Py_ssize_t count = PyList_Size(events->sources);
    if (count > 0 && PyList_GetItem(events->sources, count - 1) == source)
        return true;
    return PyList_Append(events->sources, source) == 0;
}

bool add_received(EventsObject *events, const Event *event, PyObject *source) {
    if (!make_room(events, 1) || !keep_source(events, source))
        return false;
    events->items[events->n_items++] = *event;
    return true;
}

bool add_object(EventsObject *events, PyObject *object) {
    if (!make_room(events, 1))
        return false;
    Py_INCREF(object);
    events->items[events->n_items++] = (Event){.object = object};
    return true;
}

static PyObject *object_of_marker(const Event *marker) {
    unsigned long long start = marker_start(marker), end = marker_end(marker);
    if (!has_purge(marker))
        return Py_BuildValue("(iiKK)", SNAPSHOT, (int)marker->vb, start, end);
    return Py_BuildValue("(iiKKK)", SNAPSHOT, (int)marker->vb, start, end, (unsigned long long)marker_purge(marker));
}

PyObject *object_of(const Event *event) {
    if (event->object != NULL) {
        Py_INCREF(event->object);
        return event->object;
    }
    if (event->kind == SNAPSHOT)
        return object_of_marker(event);
    return Py_BuildValue("(iiKy#iy#)", (int)event->kind, (int)event->vb, (unsigned long long)event->seqno,
                         (const char *)event->key.start, (Py_ssize_t)event->key.size, (int)event->datatype,
                         (const char *)event->value.start, (Py_ssize_t)event->value.size);
}

static Py_ssize_t events_length(EventsObject *self) { return (Py_ssize_t)self->n_items; }

static PyObject *events_item(EventsObject *self, Py_ssize_t index) {
    if (index < 0 || (size_t)index >= self->n_items) {
        PyErr_SetString(PyExc_IndexError, "no event of these");
        return NULL;
    }
    return object_of(&self->items[index]);
}

static PyObject *events_append(EventsObject *self, PyObject *event) {
    if (!add_object(self, event))
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *events_pop(EventsObject *self, PyObject *unused) {
    (void)unused;
    if (self->n_items == 0) {
        PyErr_SetString(PyExc_IndexError, "there is no event");
        return NULL;
    }
    PyObject *event = object_of(&self->items[self->n_items - 1]);
    if (event == NULL)
        return NULL;
    PyObject *object = self->items[--self->n_items].object;
    Py_XDECREF(object);
    return event;
}

/* Adds the events of another object of this type, none of which becomes an object. */
static bool add_all(EventsObject *self, const EventsObject *more) {
    size_t count = more->n_items;
    Py_ssize_t n_sources = PyList_Size(more->sources);
    if (!make_room(self, count))
        return false;
    for (Py_ssize_t i = 0; i < n_sources; i++)
        if (!keep_source(self, PyList_GetItem(more->sources, i)))
            return false;
    for (size_t i = 0; i < count; i++) {
        Py_XINCREF(more->items[i].object);
        self->items[self->n_items++] = more->items[i];
    }
    return true;
}

static PyObject *events_extend(EventsObject *self, PyObject *more) {
    if (Py_TYPE(more) == (PyTypeObject *)events_type) {
        if (!add_all(self, (EventsObject *)more))
            return NULL;
        Py_RETURN_NONE;
    }
    PyObject *each = PyObject_GetIter(more), *event;
    if (each == NULL)
        return NULL;
    while ((event = PyIter_Next(each)) != NULL) {
        bool is_added = add_object(self, event);
        Py_DECREF(event);
        if (!is_added)
            break;
    }
    Py_DECREF(each);
    if (PyErr_Occurred())
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *events_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    PyObject *given = NULL;
    (void)kwargs;
    if (!PyArg_ParseTuple(args, "|O", &given))
        return NULL;
    allocfunc allocate = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    EventsObject *self = (EventsObject *)allocate(type, 0);
    if (self == NULL)
        return NULL;
    self->sources = PyList_New(0);
    PyObject *extended = self->sources == NULL ? NULL : given == NULL ? Py_NewRef(Py_None) : events_extend(self, given);
    if (extended == NULL) {
        Py_DECREF((PyObject *)self);
        return NULL;
    }
    Py_DECREF(extended);
    return (PyObject *)self;
}

static void events_dealloc(EventsObject *self) {
    for (size_t i = 0; i < self->n_items; i++)
        Py_XDECREF(self->items[i].object);
    PyMem_Free(self->items);
    Py_XDECREF(self->sources);
    free_object((PyObject *)self);
}

static PyMethodDef events_methods[] = {
    {"append", (PyCFunction)events_append, METH_O, NULL},
    {"pop", (PyCFunction)events_pop, METH_NOARGS, NULL},
    {"extend", (PyCFunction)events_extend, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot events_slots[] = {
    {Py_tp_new, events_new},
    {Py_tp_dealloc, events_dealloc},
    {Py_tp_methods, events_methods},
    {Py_sq_length, events_length},
    {Py_sq_item, events_item},
    {0, NULL},
};

PyType_Spec events_spec = {"channelindex._kernel.Events", sizeof(EventsObject), 0, Py_TPFLAGS_DEFAULT, events_slots};
