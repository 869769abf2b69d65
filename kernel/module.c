/* The compiled kernel of the feed: what it is for, and what it leaves to Python, is in docs/design/016-kernel.md. */
#include "batch.h"
#include "events.h"

#include <string.h>

/* Raised with every change of what Python expects of it; channelindex/kernel.py takes no other. */
enum { VERSION = 10 };

PyObject *attr_seqno, *attr_snap_start, *attr_snap_end, *attr_purge_seqno, *attr_reach, *attr_vb, *attr_words,
    *attr_is_empty, *attr_enter_snapshot, *sections_type;
uint64_t secret[2];

/* decode(key, datatype, value) -> None where it is Python's, () for no entry, else what the index is to have of it. */
static PyObject *decode_document(PyObject *module, PyObject *args) {
    (void)module;
    const char *key, *value;
    Py_ssize_t key_size, value_size;
    unsigned datatype;
    Revision revision;
    if (!PyArg_ParseTuple(args, "y#Iy#", &key, &key_size, &datatype, &value, &value_size))
        return NULL;
    switch (decode((Span){(const uint8_t *)key, (size_t)key_size}, datatype,
                   (Span){(const uint8_t *)value, (size_t)value_size}, &revision)) {
    case PYTHONS:
        Py_RETURN_NONE;
    case NO_ENTRY:
        return PyTuple_New(0);
    default:
        return Py_BuildValue("(s#iKII)", revision.rev.start, (Py_ssize_t)revision.rev.size, (int)revision.flags,
                             (unsigned long long)revision.sequence, revision.n_channels, revision.n_left);
    }
}

/* crc32(bytes, before) -> as that of zlib */
static PyObject *crc32_of_bytes(PyObject *module, PyObject *args) {
    (void)module;
    Py_buffer bytes;
    unsigned before;
    if (!PyArg_ParseTuple(args, "y*I", &bytes, &before))
        return NULL;
    uint32_t sum = crc32_of((Span){bytes.buf, (size_t)bytes.len}, before);
    PyBuffer_Release(&bytes);
    return PyLong_FromUnsignedLong(sum);
}

static PyMethodDef methods[] = {
    {"crc32", crc32_of_bytes, METH_VARARGS, NULL},
    {"take_run", take_run, METH_VARARGS, NULL},
    {"merge", merge_payloads, METH_VARARGS, NULL},
    {"batch_of", batch_of, METH_VARARGS, NULL},
    {"pack_clock", pack_clock, METH_O, NULL},
    {"decode", decode_document, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_kernel", NULL, -1, methods, NULL, NULL, NULL, NULL};

/* Makes the name of an attribute; false if there is no memory. */
static bool make_name(PyObject **name, const char *text) {
    *name = PyUnicode_InternFromString(text);
    return *name != NULL;
}

static bool make_names(void) {
    return make_name(&attr_seqno, "seqno") && make_name(&attr_snap_start, "snap_start") &&
           make_name(&attr_snap_end, "snap_end") && make_name(&attr_purge_seqno, "purge_seqno") &&
           make_name(&attr_reach, "reach") && make_name(&attr_vb, "vb") && make_name(&attr_words, "words") &&
           make_name(&attr_is_empty, "is_empty") && make_name(&attr_enter_snapshot, "enter_snapshot");
}

static bool make_secret(void) {
    PyObject *os = PyImport_ImportModule("os");
    PyObject *bytes = os != NULL ? PyObject_CallMethod(os, "urandom", "n", (Py_ssize_t)sizeof(secret)) : NULL;
    char *start;
    Py_ssize_t size;
    bool is_made = bytes != NULL && PyBytes_AsStringAndSize(bytes, &start, &size) == 0 && size == sizeof(secret);
    if (is_made)
        memcpy(secret, start, sizeof(secret));
    Py_XDECREF(os);
    Py_XDECREF(bytes);
    return is_made;
}

static bool add_type(PyObject *module, const char *name, PyType_Spec *spec, PyObject **type) {
    *type = PyType_FromSpec(spec);
    return *type != NULL && PyModule_AddObjectRef(module, name, *type) == 0;
}

PyMODINIT_FUNC PyInit__kernel(void) {
    prepare_checksums();
    PyObject *module = make_names() && make_secret() ? PyModule_Create(&definition) : NULL;
    PyObject *round_type = NULL, *active_type = NULL;
    if (module != NULL &&
        (!add_type(module, "Events", &events_spec, &events_type) ||
         !add_type(module, "Entries", &round_spec, &round_type) ||
         !add_type(module, "Sections", &sections_spec, &sections_type) ||
         !add_type(module, "Batch", &batch_spec, &batch_type) ||
         !add_type(module, "Selection", &selection_spec, &selection_type) ||
         !add_type(module, "ActiveBlocks", &active_spec, &active_type) ||
         PyModule_AddIntConstant(module, "VERSION", VERSION) < 0))
        Py_CLEAR(module);
    Py_XDECREF(round_type);
    Py_XDECREF(active_type);
    return module;
}
