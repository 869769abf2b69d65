/* Events of a feed: documents where they lie in what was received, and whatever else came as an object of Python. */
#ifndef CHANNELINDEX_EVENTS_H
#define CHANNELINDEX_EVENTS_H

#include "python.h"

/* As `channelindex/feeds/base.py` has it; *key* and *value* lie in a source. */
typedef struct {
    PyObject *object; /* ours; NULL for a document that has no object yet */
    Span key, value;
    uint64_t seqno;
    uint16_t vb;
    uint8_t kind, datatype;
} Event;

/* Looks like a list of events to Python: what is looked at becomes an object, each time anew. */
typedef struct {
    PyObject_HEAD
    Event *items;
    size_t n_items, room;
    PyObject *sources; /* ours: a list of the bytes that documents lie in */
} EventsObject;

/* Adds *event*; a document's bytes lie in *source*. */
bool add_document(EventsObject *events, const Event *event, PyObject *source);
bool add_object(EventsObject *events, PyObject *object);

/* The event as Python has it. */
PyObject *object_of(const Event *event);

extern PyObject *events_type;
extern PyType_Spec events_spec;

#endif
