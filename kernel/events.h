/* Events of a feed: documents and markers where they lie in what was received, and whatever else came as an object of Python. */
#ifndef CHANNELINDEX_EVENTS_H
#define CHANNELINDEX_EVENTS_H

#include "python.h"

enum { SNAPSHOT = 4 };

/* As `channelindex/feeds/base.py` has it; *key* and *value* lie in a source. The value of a snapshot marker is what it says:
 * start, end, type, and more by its version. */
typedef struct {
    PyObject *object; /* ours; NULL for what lies in a source and has none yet */
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
    PyObject *sources; /* ours: a list of the bytes that events lie in */
} EventsObject;

/* Sizes of a marker's value by its version. The purge seqno is that of 2.2 alone. */
enum { MARKER_1_BYTES = 20, MARKER_2_0_BYTES = 36, MARKER_2_2_BYTES = 52, PURGE_AT = 36 };

static inline uint64_t marker_start(const Event *marker) { return read_big(marker->value.start, 8); }
static inline uint64_t marker_end(const Event *marker) { return read_big(marker->value.start + 8, 8); }
static inline bool has_purge(const Event *marker) { return marker->value.size == MARKER_2_2_BYTES; }
static inline uint64_t marker_purge(const Event *marker) { return read_big(marker->value.start + PURGE_AT, 8); }

/* Adds *event*, whose bytes lie in *source*. */
bool add_received(EventsObject *events, const Event *event, PyObject *source);
bool add_object(EventsObject *events, PyObject *object);

/* The event as Python has it. */
PyObject *object_of(const Event *event);

extern PyObject *events_type;
extern PyType_Spec events_spec;

#endif
