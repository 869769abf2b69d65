/* What the Python-facing parts share. The stable ABI of Python 3.11: one build for it and all later ones. */
#ifndef CHANNELINDEX_PYTHON_H
#define CHANNELINDEX_PYTHON_H

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>

#if PY_VERSION_HEX >= 0x030D0000
/* Older Pythons take the size of a "#" as a Py_ssize_t from these functions alone. The headers of 3.13 name them no more, and
 * what was built with them would fail at its first call on 3.11 and 3.12. All are in the stable ABI. */
PyAPI_FUNC(int) _PyArg_ParseTuple_SizeT(PyObject *, const char *, ...);
PyAPI_FUNC(int) _PyArg_ParseTupleAndKeywords_SizeT(PyObject *, PyObject *, const char *, char **, ...);
PyAPI_FUNC(PyObject *) _Py_BuildValue_SizeT(const char *, ...);
PyAPI_FUNC(PyObject *) _PyObject_CallFunction_SizeT(PyObject *, const char *, ...);
PyAPI_FUNC(PyObject *) _PyObject_CallMethod_SizeT(PyObject *, const char *, const char *, ...);
#define PyArg_ParseTuple _PyArg_ParseTuple_SizeT
#define PyArg_ParseTupleAndKeywords _PyArg_ParseTupleAndKeywords_SizeT
#define Py_BuildValue _Py_BuildValue_SizeT
#define PyObject_CallFunction _PyObject_CallFunction_SizeT
#define PyObject_CallMethod _PyObject_CallMethod_SizeT
#endif

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
