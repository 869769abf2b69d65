#include "python.h"

#include <string.h>

/* As in channelindex/decode/removals.py. */
enum { ROW_WORDS = 32, DIGEST = 1, FIRST = 2, MOST = ROW_WORDS - FIRST };

bool removals_open(Removals *removals, PyObject *memory) {
    removals->memory = memory;
    PyObject *is_empty = PyObject_GetAttr(memory, attr_is_empty);
    if (is_empty == NULL)
        return false;
    int truth = PyObject_IsTrue(is_empty);
    Py_DECREF(is_empty);
    if (truth < 0)
        return false;
    removals->is_empty = truth;
    PyObject *words = PyObject_GetAttr(memory, attr_words);
    if (words == NULL)
        return false;
    int failed = PyObject_GetBuffer(words, &removals->table, PyBUF_WRITABLE);
    Py_DECREF(words);
    if (failed)
        return false;
    size_t n_rows = (size_t)removals->table.len / (ROW_WORDS * sizeof(uint64_t));
    if (n_rows == 0 || (n_rows & (n_rows - 1)) || (uintptr_t)removals->table.buf % sizeof(uint64_t)) {
        PyErr_SetString(PyExc_ValueError, "the table of removals has no power of two of rows");
        PyBuffer_Release(&removals->table);
        return false;
    }
    removals->words = removals->table.buf;
    removals->mask = n_rows - 1;
    return true;
}

void removals_close(Removals *removals) { PyBuffer_Release(&removals->table); }

/* Python's hash of *object*, which is taken over; false if there is none. */
static bool hash_of(PyObject *object, uint64_t *hash) {
    if (object == NULL)
        return false;
    Py_hash_t found = PyObject_Hash(object);
    Py_DECREF(object);
    if (found == -1)
        return false;
    *hash = (uint64_t)found;
    return true;
}

static PyObject *text_of(Span text) { return PyUnicode_DecodeUTF8((const char *)text.start, (Py_ssize_t)text.size, NULL); }

static bool hash_removal(const Channel *channel, uint64_t *hash) {
    PyObject *name = text_of(channel->name), *rev = text_of(channel->rev);
    PyObject *sequence = PyLong_FromUnsignedLongLong(channel->sequence);
    bool is_hashed = name && rev && sequence &&
                     hash_of(PyTuple_Pack(4, name, sequence, rev, channel->is_deleted ? Py_True : Py_False), hash);
    Py_XDECREF(name);
    Py_XDECREF(rev);
    Py_XDECREF(sequence);
    *hash |= 1;
    return is_hashed;
}

/* One hash of all *hashes*, whatever their order: that of a frozenset of them. */
static bool digest_of(const uint64_t *hashes, unsigned count, uint64_t *digest) {
    PyObject *list = PyList_New(count);
    if (list == NULL)
        return false;
    for (unsigned i = 0; i < count; i++) {
        PyObject *hash = PyLong_FromUnsignedLongLong(hashes[i]);
        if (hash == NULL || PyList_SetItem(list, i, hash) < 0) {
            Py_DECREF(list);
            return false;
        }
    }
    PyObject *set = PyFrozenSet_New(list);
    Py_DECREF(list);
    return hash_of(set, digest);
}

static bool has(const uint64_t *row, uint64_t hash) {
    for (int i = FIRST; i < ROW_WORDS; i++)
        if (row[i] == hash)
            return true;
    return false;
}

static bool remember(Removals *removals, uint64_t *row, uint64_t name, const uint64_t *hashes, unsigned count, uint64_t digest) {
    if (removals->is_empty && PyObject_SetAttr(removals->memory, attr_is_empty, Py_False) < 0)
        return false;
    removals->is_empty = false;
    memset(row, 0, ROW_WORDS * sizeof(uint64_t));
    row[0] = name;
    row[DIGEST] = digest;
    if (count <= MOST)
        memcpy(row + FIRST, hashes, count * sizeof(uint64_t));
    return true;
}

/* Python's hash of (vbucket, key). */
static bool hash_document(uint16_t vb, Span key, uint64_t *hash) {
    return hash_of(Py_BuildValue("(iy#)", (int)vb, (const char *)key.start, (Py_ssize_t)key.size), hash);
}

Outcome removals_due(Removals *removals, uint16_t vb, Span key, const Revision *revision, bool *is_due) {
    uint64_t hashes[MOST_CHANNELS], name, digest;
    unsigned count = 0;
    if (!revision->n_left && removals->is_empty)
        return DONE;
    for (unsigned i = 0; i < revision->n_channels; i++)
        if (revision->channels[i].is_left && !hash_removal(&revision->channels[i], &hashes[count++]))
            return FAILED;
    if (!hash_document(vb, key, &name))
        return FAILED;
    name |= 1;
    uint64_t *row = removals->words + (name >> 1 & removals->mask) * ROW_WORDS;
    bool is_known = row[0] == name;
    if (count == 0) {
        if (is_known)
            row[0] = 0;
        return DONE;
    }
    if (!digest_of(hashes, count, &digest))
        return FAILED;
    bool is_same = is_known && row[DIGEST] == digest;
    if (is_known && !is_same && row[FIRST] == 0)
        return LEFT;
    for (unsigned i = 0, removal = 0; i < revision->n_channels; i++)
        if (revision->channels[i].is_left)
            is_due[i] = !is_same && !(is_known && has(row, hashes[removal])), removal++;
    return remember(removals, row, name, hashes, count, digest) ? DONE : FAILED;
}
