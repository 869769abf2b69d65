/* What the Python-facing parts share. The stable ABI of Python 3.11: one build for it and all later ones. */
#ifndef CHANNELINDEX_PYTHON_H
#define CHANNELINDEX_PYTHON_H

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>

#include "document.h"
#include "entries.h"

/* Attribute names, made once. */
extern PyObject *attr_seqno, *attr_snap_start, *attr_snap_end, *attr_purge_seqno, *attr_reach, *attr_vb, *attr_words,
    *attr_is_empty, *attr_enter_snapshot;

/* Of this process: what names are hashed with. */
extern uint64_t secret[2];

extern PyType_Spec round_spec, sections_spec;
extern PyObject *sections_type;

/* Gives an object back, and the reference to its type that each object of a heap type has. */
void free_object(PyObject *self);

/* Takes all *entries* out: (sections by writer, number of entries). */
PyObject *take_sections(Entries *entries, uint32_t n_writers);

PyObject *take_run(PyObject *module, PyObject *args);
PyObject *merge_payloads(PyObject *module, PyObject *args);
PyObject *pack_clock(PyObject *module, PyObject *frames);

/* The removals that a document brings and the index has not had: `RemovalMemory.due`, on the same table. */
typedef struct {
    PyObject *memory; /* a `RemovalMemory`; borrowed */
    Py_buffer table;
    uint64_t *words;
    size_t mask; /* of row numbers */
    bool is_empty;
} Removals;

bool removals_open(Removals *removals, PyObject *memory);
void removals_close(Removals *removals);

typedef enum { FAILED = -1, LEFT = 0, DONE = 1 } Outcome;

/* Puts into *is_due*, by channel of *revision*, which removals are; remembers them all. LEFT: it is for Python to say, and
 * nothing was remembered. A channel named *star*, if any, is none that the document left. */
Outcome removals_due(Removals *removals, uint16_t vb, Span key, const Revision *revision, bool *is_due);

#endif
