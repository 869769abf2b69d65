#include "batch.h"
#include "known.h"

/* The blocks that a writer knows, and what they say of a batch: `sort` in `channelindex/stores/block_writer.py`
 * and `learn` in `channelindex/stores/active.py` have the rules. */

typedef struct {
    PyObject_HEAD
    PyObject *block_type, *locating_type;
    Blocks blocks;
} ActiveObject;

enum { MOST_OF_SELDOM = 1 };

static PyObject *block_of(const ActiveObject *self, const Row *row) {
    const Sum *sum = row->sum;
    if (sum == NULL)
        return PyObject_CallFunction(self->block_type, "KKKKK", row->epoch, row->number, row->size, row->upto, row->limit);
    if (sum->since)
        return PyObject_CallFunction(self->block_type, "KKKKKO(KN)", row->epoch, row->number, row->size, row->upto, row->limit,
                                     Py_None, sum->since, clock_of((Span){sum->pairs, sum->size}));
    return PyObject_CallFunction(self->block_type, "KKKKK(KKKN)", row->epoch, row->number, row->size, row->upto, row->limit,
                                 sum->before, sum->first, sum->dropped, clock_of((Span){sum->pairs, sum->size}));
}

static Span entries_of(const Item *item) {
    return (Span){item->frame.start + FRAME_HEAD_BYTES, item->frame.size - FRAME_HEAD_BYTES};
}

/* Adds (append, active block) to *due*. */
static bool add_due(const ActiveObject *self, const BatchObject *batch, size_t index, const Row *row, PyObject *due) {
    PyObject *pair = Py_BuildValue("(NN)", item_append(batch, index), block_of(self, row));
    bool is_added = pair != NULL && PyList_Append(due, pair) == 0;
    Py_XDECREF(pair);
    return is_added;
}

/* Whether the directory of a block stays as it is. What was noted since the block was found makes its first move no dearer
 * when it comes later. */
static bool is_short(const Row *row, uint64_t tail_bytes) {
    uint64_t most = row->sum != NULL && row->sum->since && tail_bytes <= UINT64_MAX / 2 ? 2 * tail_bytes : tail_bytes;
    return row->size < row->limit && (row->size < row->upto || row->size - row->upto < most);
}

/* What became of a batch: picks of known blocks, with their rows, and of unknown ones. */
typedef struct {
    Pick *known, *unknown;
    size_t *rows;
    size_t n_known, n_unknown;
} Sorted;

static bool sort_items(ActiveObject *self, const BatchObject *batch, uint64_t tail_bytes, Sorted *sorted, PyObject *due) {
    for (size_t i = 0; i < batch->n_items; i++) {
        const Item *item = &batch->items[i];
        Row *row = find_block(&self->blocks, item->hash, item->channel, item->group);
        if (row != NULL)
            use_block(&self->blocks, row);
        if (row == NULL || row->epoch != item->epoch) {
            sorted->unknown[sorted->n_unknown++] = (Pick){.item = i};
        } else if (is_short(row, tail_bytes)) {
            sorted->rows[sorted->n_known] = (size_t)(row - self->blocks.rows);
            sorted->known[sorted->n_known++] = (Pick){.item = i, .number = row->number};
        } else if (!add_due(self, batch, i, row, due)) {
            return false;
        }
    }
    /* Not before: what comes twice must go the same way. */
    for (size_t i = 0; i < sorted->n_known; i++) {
        const Item *item = &batch->items[sorted->known[i].item];
        Row *row = &self->blocks.rows[sorted->rows[i]];
        sorted->known[i].size = row->size += item->frame.size;
        add_to_sum(&self->blocks, row, entries_of(item));
    }
    if (forget_if_full(&self->blocks))
        return true;
    PyErr_NoMemory();
    return false;
}

/* sort(batch, tail_bytes) -> (known, due, unknown): as `sort` has it, the first and the last as selections */
static PyObject *active_sort(ActiveObject *self, PyObject *args) {
    BatchObject *batch;
    unsigned long long tail_bytes;
    if (!PyArg_ParseTuple(args, "O!K", batch_type, &batch, &tail_bytes))
        return NULL;
    Sorted sorted = {
        .known = PyMem_Malloc((batch->n_items + 1) * sizeof(Pick)),
        .unknown = PyMem_Malloc((batch->n_items + 1) * sizeof(Pick)),
        .rows = PyMem_Malloc((batch->n_items + 1) * sizeof(size_t)),
    };
    PyObject *due = PyList_New(0);
    bool is_done = false;
    if (sorted.known == NULL || sorted.unknown == NULL || sorted.rows == NULL)
        PyErr_NoMemory();
    else
        is_done = due != NULL && sort_items(self, batch, tail_bytes, &sorted, due);
    PyMem_Free(sorted.rows);
    if (!is_done) {
        PyMem_Free(sorted.known);
        PyMem_Free(sorted.unknown);
        Py_XDECREF(due);
        return NULL;
    }
    PyObject *known = new_selection(batch, sorted.known, sorted.n_known, NULL);
    PyObject *unknown = new_selection(batch, sorted.unknown, sorted.n_unknown, self->locating_type);
    return Py_BuildValue("(NNN)", known, due, unknown);
}

/* Remembers a block that is as *block* says, and where that is known, what is summed up of it: *pairs* and *entries*. */
static bool put_block(ActiveObject *self, uint64_t hash, Span channel, Span group, const Row *block, const Sum *sum,
                      Span pairs, Span entries) {
    Row *row = remember_block(&self->blocks, hash, channel, group);
    if (row != NULL) {
        row->epoch = block->epoch;
        row->number = block->number;
        row->size = block->size;
        row->upto = block->upto;
        row->limit = block->limit;
        if (sum != NULL)
            begin_sum(&self->blocks, row, sum, pairs);
        add_to_sum(&self->blocks, row, entries);
    }
    if (row != NULL && forget_if_full(&self->blocks))
        return true;
    PyErr_NoMemory();
    return false;
}

/* Reads item *index* of *location*, a whole number. */
static bool read_item(PyObject *location, Py_ssize_t index, uint64_t *number) {
    PyObject *item = PySequence_GetItem(location, index);
    if (item == NULL)
        return false;
    *number = PyLong_AsUnsignedLongLong(item);
    Py_DECREF(item);
    return !PyErr_Occurred();
}

/* Whether there are more entries than a channel brings that will not soon fill a block: a sum would be for nothing. */
static bool is_busy(Span entries) {
    size_t count = 0;
    for (size_t at = 0, size; at < entries.size && count <= MOST_OF_SELDOM; at += size, count++) {
        size = entry_size((Span){entries.start + at, entries.size - at});
        if (!size)
            return false;
    }
    return count > MOST_OF_SELDOM;
}

/* Remembers where *item* was appended to. A group that begins with it has nothing else, and so is summed up; of another one, what
 * comes from now on is noted. */
static bool learn_item(ActiveObject *self, const Item *item, PyObject *location, uint64_t block_bytes, PyObject *full_at) {
    uint64_t number, size, upto, live, limit = block_bytes;
    if (!read_item(location, 0, &number) || !read_item(location, 1, &size) || !read_item(location, 2, &upto) ||
        !read_item(location, 3, &live))
        return false;
    if (live) {
        PyObject *full = PyObject_CallFunction(full_at, "KK", live, block_bytes);
        limit = full == NULL ? 0 : PyLong_AsUnsignedLongLong(full);
        Py_XDECREF(full);
        if (PyErr_Occurred())
            return false;
    }
    const Row block = {.epoch = item->epoch, .number = number, .size = size, .upto = upto, .limit = limit};
    bool begins = !upto && size == FRAME_HEAD_BYTES + item->frame.size;
    bool is_noted = size > item->frame.size && is_busy(entries_of(item));
    const Sum sum = {.first = number, .since = begins ? 0 : size - item->frame.size};
    return put_block(self, item->hash, item->channel, item->group, &block, is_noted ? &sum : NULL, (Span){NULL, 0},
                     entries_of(item));
}

/* learn(selection, locations, block_bytes, full_at) -> the epochs that were refused: those without a location */
static PyObject *active_learn(ActiveObject *self, PyObject *args) {
    PyObject *selection, *locations, *full_at;
    unsigned long long block_bytes;
    const Pick *picks;
    size_t n_picks;
    if (!PyArg_ParseTuple(args, "OOKO", &selection, &locations, &block_bytes, &full_at))
        return NULL;
    const BatchObject *batch = selected(selection, &picks, &n_picks);
    if (batch == NULL)
        return NULL;
    if (PySequence_Size(locations) != (Py_ssize_t)n_picks)
        return PyErr_Format(PyExc_ValueError, "a location for each append");
    PyObject *stale = PySet_New(NULL);
    for (size_t i = 0; stale != NULL && i < n_picks; i++) {
        const Item *item = &batch->items[picks[i].item];
        PyObject *location = PySequence_GetItem(locations, (Py_ssize_t)i);
        bool is_learnt;
        if (location == Py_None) {
            PyObject *epoch = PyLong_FromUnsignedLongLong(item->epoch);
            is_learnt = epoch != NULL && PySet_Add(stale, epoch) == 0;
            Py_XDECREF(epoch);
        } else {
            is_learnt = location != NULL && learn_item(self, item, location, block_bytes, full_at);
        }
        Py_XDECREF(location);
        if (!is_learnt)
            Py_CLEAR(stale);
    }
    return stale;
}

/* Reads (channel, group), and their hash. */
static bool read_key(PyObject *key, Span *channel, Span *group, uint64_t *hash) {
    const Entries secrets = {.secret = {secret[0], secret[1]}};
    const char *name, *group_name;
    Py_ssize_t size, group_size;
    if (!PyTuple_Check(key)) {
        PyErr_SetString(PyExc_TypeError, "no channel and group");
        return false;
    }
    if (!PyArg_ParseTuple(key, "s#s#", &name, &size, &group_name, &group_size))
        return false;
    *channel = (Span){(const uint8_t *)name, (size_t)size};
    *group = (Span){(const uint8_t *)group_name, (size_t)group_size};
    *hash = hash_group(hash_name(&secrets, *channel), *group);
    return true;
}

static PyObject *active_get(ActiveObject *self, PyObject *key) {
    Span channel, group;
    uint64_t hash;
    if (!read_key(key, &channel, &group, &hash))
        return NULL;
    Row *row = find_block(&self->blocks, hash, channel, group);
    if (row == NULL)
        Py_RETURN_NONE;
    use_block(&self->blocks, row);
    PyObject *block = block_of(self, row);
    if (!forget_if_full(&self->blocks)) {
        Py_XDECREF(block);
        return PyErr_NoMemory();
    }
    return block;
}

static bool read_attribute(PyObject *object, const char *name, uint64_t *number) {
    PyObject *value = PyObject_GetAttrString(object, name);
    if (value == NULL)
        return false;
    *number = PyLong_AsUnsignedLongLong(value);
    Py_DECREF(value);
    return !PyErr_Occurred();
}

/* Reads what `ActiveBlock.summed` has, whose pairs stay that block's. False with no error set where that is nothing. */
static bool read_sum(PyObject *block, Sum *sum, Span *pairs) {
    PyObject *summed = PyObject_GetAttrString(block, "summed");
    char *start = NULL;
    Py_ssize_t size = 0;
    bool is_read = summed != NULL && summed != Py_None;
    if (is_read && !PyTuple_Check(summed))
        PyErr_SetString(PyExc_TypeError, "no sum of a block");
    is_read = is_read && PyTuple_Check(summed) &&
              PyArg_ParseTuple(summed, "KKKy#", &sum->before, &sum->first, &sum->dropped, &start, &size);
    *pairs = (Span){(const uint8_t *)start, (size_t)size};
    Py_XDECREF(summed);
    return is_read;
}

/* put(key, block[, entries]): *entries* came to the block behind what is summed up of it */
static PyObject *active_put(ActiveObject *self, PyObject *args) {
    PyObject *key, *block;
    const char *start = NULL;
    Py_ssize_t n_bytes = 0;
    Span channel, group;
    uint64_t hash;
    Row read;
    if (!PyArg_ParseTuple(args, "OO|y#", &key, &block, &start, &n_bytes) || !read_key(key, &channel, &group, &hash) ||
        !read_attribute(block, "epoch", &read.epoch) || !read_attribute(block, "number", &read.number) ||
        !read_attribute(block, "size", &read.size) || !read_attribute(block, "upto", &read.upto) ||
        !read_attribute(block, "limit", &read.limit))
        return NULL;
    Sum sum = {0};
    Span pairs;
    bool is_summed = read_sum(block, &sum, &pairs);
    if (PyErr_Occurred() || !put_block(self, hash, channel, group, &read, is_summed ? &sum : NULL, pairs,
                                       (Span){(const uint8_t *)start, (size_t)n_bytes}))
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *active_drop(ActiveObject *self, PyObject *key) {
    Span channel, group;
    uint64_t hash;
    if (!read_key(key, &channel, &group, &hash))
        return NULL;
    drop_block(&self->blocks, hash, channel, group);
    Py_RETURN_NONE;
}

static PyObject *active_clear(ActiveObject *self, PyObject *unused) {
    (void)unused;
    forget_all(&self->blocks);
    Py_RETURN_NONE;
}

static Py_ssize_t active_length(ActiveObject *self) { return (Py_ssize_t)count_blocks(&self->blocks); }

static PyObject *active_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    Py_ssize_t limit, most_sum_bytes = 0;
    PyObject *block_type, *locating_type;
    (void)kwargs;
    if (!PyArg_ParseTuple(args, "nOO!|n", &limit, &block_type, &PyType_Type, &locating_type, &most_sum_bytes))
        return NULL;
    if (!PyType_IsSubtype((PyTypeObject *)locating_type, &PyTuple_Type))
        return PyErr_Format(PyExc_TypeError, "an append is a tuple");
    allocfunc allocate = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    ActiveObject *self = (ActiveObject *)allocate(type, 0);
    if (self == NULL)
        return NULL;
    Py_INCREF(block_type);
    Py_INCREF(locating_type);
    self->block_type = block_type;
    self->locating_type = locating_type;
    self->blocks.half = limit < 2 ? 1 : (size_t)limit / 2;
    self->blocks.generation = 1;
    self->blocks.most_sum_bytes = most_sum_bytes < 0 ? 0 : (size_t)most_sum_bytes;
    return (PyObject *)self;
}

static void active_dealloc(ActiveObject *self) {
    forget_all(&self->blocks);
    Py_XDECREF(self->block_type);
    Py_XDECREF(self->locating_type);
    free_object((PyObject *)self);
}

static PyMethodDef active_methods[] = {
    {"sort", (PyCFunction)active_sort, METH_VARARGS, NULL},
    {"learn", (PyCFunction)active_learn, METH_VARARGS, NULL},
    {"get", (PyCFunction)active_get, METH_O, NULL},
    {"put", (PyCFunction)active_put, METH_VARARGS, NULL},
    {"drop", (PyCFunction)active_drop, METH_O, NULL},
    {"clear", (PyCFunction)active_clear, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyObject *active_sums_up(ActiveObject *self, void *unused) {
    (void)unused;
    return PyBool_FromLong(self->blocks.most_sum_bytes > 0);
}

static PyGetSetDef active_attributes[] = {
    {"sums_up", (getter)active_sums_up, NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot active_slots[] = {
    {Py_tp_new, active_new},
    {Py_tp_dealloc, active_dealloc},
    {Py_tp_methods, active_methods},
    {Py_tp_getset, active_attributes},
    {Py_sq_length, active_length},
    {0, NULL},
};

PyType_Spec active_spec = {"channelindex._kernel.ActiveBlocks", sizeof(ActiveObject), 0, Py_TPFLAGS_DEFAULT, active_slots};
