#include "events.h"

enum { HEAD_BYTES = 32, HEADER_BYTES = 24, MUTATION_EXTRAS = 31, LEAST_EXTRAS = 18, MOST_EXTRAS = 63 };
enum { FIRST_KIND = 0x8057, LAST_KIND = 0x8059 };

/* The head of a document frame. */
typedef struct {
    unsigned kind, key_size, extras_size, datatype, vb;
    uint32_t body_size, opaque;
    uint64_t seqno;
} FrameHead;

/* The stream that the last document was of, and where it was before. */
typedef struct {
    PyObject *stream; /* ours */
    uint32_t opaque;
    uint64_t vb, snap_end, newest;
    uint64_t seqno; /* its newest now */
    bool has_moved; /* and the stream itself has not been told */
} Current;

/* What the caller gave. */
typedef struct {
    const uint8_t *data;
    size_t size;
    size_t prefix_bytes;
    unsigned unusual;
    EventsObject *events;
    PyObject *source, *streams, *look_closer;
} Input;

static FrameHead read_head(const uint8_t *at) {
    return (FrameHead){
        .kind = (unsigned)read_big(at, 2),
        .key_size = (unsigned)read_big(at + 2, 2),
        .extras_size = at[4],
        .datatype = at[5],
        .vb = (unsigned)read_big(at + 6, 2),
        .body_size = (uint32_t)read_big(at + 8, 4),
        .opaque = (uint32_t)read_big(at + 12, 4),
        .seqno = read_big(at + HEADER_BYTES, 8),
    };
}

/* Tells the stream its newest seqno. An error that is on its way stays. */
static Outcome tell_stream(Current *current) {
    if (!current->has_moved)
        return DONE;
    PyObject *type, *value, *trace;
    PyErr_Fetch(&type, &value, &trace);
    PyObject *seqno = PyLong_FromUnsignedLongLong(current->seqno);
    bool is_told = seqno != NULL && PyObject_SetAttr(current->stream, attr_seqno, seqno) == 0;
    Py_XDECREF(seqno);
    current->has_moved = false;
    if (type != NULL)
        PyErr_Restore(type, value, trace);
    return is_told ? DONE : FAILED;
}

static Outcome read_number(PyObject *object, PyObject *name, uint64_t *number) {
    PyObject *value = PyObject_GetAttr(object, name);
    if (value == NULL)
        return FAILED;
    *number = PyLong_AsUnsignedLongLong(value);
    Py_DECREF(value);
    return *number == (uint64_t)-1 && PyErr_Occurred() ? FAILED : DONE;
}

/* Makes the open stream with *opaque* the current one. LEFT: there is none. */
static Outcome enter_stream(Current *current, PyObject *streams, uint32_t opaque) {
    PyObject *number = PyLong_FromUnsignedLong(opaque);
    if (number == NULL)
        return FAILED;
    PyObject *stream = PyDict_GetItemWithError(streams, number);
    Py_DECREF(number);
    if (stream == NULL)
        return PyErr_Occurred() ? FAILED : LEFT;
    Py_INCREF(stream);
    if (tell_stream(current) == FAILED) {
        Py_DECREF(stream);
        return FAILED;
    }
    Py_XDECREF(current->stream);
    current->stream = stream;
    current->opaque = opaque;
    if (read_number(stream, attr_vb, &current->vb) == FAILED ||
        read_number(stream, attr_snap_end, &current->snap_end) == FAILED)
        return FAILED;
    return read_number(stream, attr_seqno, &current->seqno);
}

/* The event of a document whose datatype is unusual: Python looks at it more closely. */
static PyObject *looked_at(const Input *input, const FrameHead *head, const Event *event) {
    PyObject *key = PyBytes_FromStringAndSize((const char *)event->key.start, (Py_ssize_t)event->key.size);
    if (key == NULL)
        return NULL;
    PyObject *pair = PyObject_CallFunction(input->look_closer, "IOIy#", head->kind, key, head->datatype,
                                           (const char *)event->value.start, (Py_ssize_t)event->value.size);
    PyObject *found = NULL;
    if (pair != NULL && (!PyTuple_Check(pair) || PyTuple_Size(pair) != 2))
        PyErr_SetString(PyExc_TypeError, "no datatype and value");
    else if (pair != NULL)
        found = Py_BuildValue("(iiKOOO)", (int)event->kind, (int)event->vb, (unsigned long long)event->seqno, key,
                              PyTuple_GetItem(pair, 0), PyTuple_GetItem(pair, 1));
    Py_XDECREF(pair);
    Py_DECREF(key);
    return found;
}

/* Adds the document's event, and moves its stream on, which is told later. */
static Outcome take_document(const Input *input, const FrameHead *head, Current *current, Span key, Span value) {
    const Event event = {.key = key, .value = value, .seqno = head->seqno, .vb = (uint16_t)head->vb,
                         .kind = (uint8_t)(head->kind - FIRST_KIND), .datatype = (uint8_t)head->datatype};
    bool is_taken;
    if (head->datatype & input->unusual) {
        PyObject *object = looked_at(input, head, &event);
        is_taken = object != NULL && add_object(input->events, object);
        Py_XDECREF(object);
    } else {
        is_taken = add_document(input->events, &event, input->source);
    }
    if (!is_taken)
        return FAILED;
    current->newest = current->seqno;
    current->seqno = head->seqno;
    current->has_moved = true;
    return DONE;
}

/* Takes the frame at *offset* and moves it behind. LEFT: it is not whole, no document, or not in order. */
static Outcome take_frame(const Input *input, size_t *offset, Current *current) {
    if (input->size < HEAD_BYTES || *offset > input->size - HEAD_BYTES)
        return LEFT;
    const uint8_t *start = input->data + *offset;
    FrameHead head = read_head(start);
    size_t left = input->size - *offset - HEADER_BYTES, rest = (size_t)head.extras_size + head.key_size;
    if (head.kind < FIRST_KIND || head.kind > LAST_KIND || head.body_size > left || rest > head.body_size ||
        head.extras_size < LEAST_EXTRAS || head.extras_size > MOST_EXTRAS)
        return LEFT;
    if (current->stream == NULL || current->opaque != head.opaque) {
        Outcome outcome = enter_stream(current, input->streams, head.opaque);
        if (outcome != DONE)
            return outcome;
    }
    if (head.seqno <= current->seqno || head.seqno > current->snap_end || head.vb != current->vb)
        return LEFT;
    size_t cut = input->prefix_bytes < head.key_size ? input->prefix_bytes : head.key_size;
    Span key = {start + HEADER_BYTES + head.extras_size + cut, head.key_size - cut};
    Span value = {start + HEADER_BYTES + rest, head.body_size - rest};
    Outcome outcome = take_document(input, &head, current, key, value);
    if (outcome == DONE)
        *offset += HEADER_BYTES + (size_t)head.body_size;
    return outcome;
}

/* take_documents(data, offset, prefix_bytes, unusual, streams, events, look_closer) -> (offset, stream, newest)
 *
 * Takes whole documents from *offset* on, up to the first frame that is for Python to see. The last one's stream, None if
 * there was none, and its newest seqno before. */
PyObject *take_documents(PyObject *module, PyObject *args) {
    (void)module;
    Input input;
    Current current = {0};
    char *data;
    Py_ssize_t size, offset, prefix_bytes;
    if (!PyArg_ParseTuple(args, "O!nnIO!O!O", &PyBytes_Type, &input.source, &offset, &prefix_bytes, &input.unusual,
                          &PyDict_Type, &input.streams, events_type, &input.events, &input.look_closer) ||
        PyBytes_AsStringAndSize(input.source, &data, &size) < 0)
        return NULL;
    if (offset < 0 || offset > size || prefix_bytes < 0) {
        PyErr_SetString(PyExc_ValueError, "the offset is none of the data");
        return NULL;
    }
    input.data = (const uint8_t *)data;
    input.size = (size_t)size;
    input.prefix_bytes = (size_t)prefix_bytes;
    size_t at = (size_t)offset;
    PyObject *last = NULL;
    uint64_t newest = 0;
    Outcome outcome;
    while ((outcome = take_frame(&input, &at, &current)) == DONE) {
        if (last != current.stream) {
            Py_XDECREF(last);
            last = current.stream;
            Py_INCREF(last);
        }
        newest = current.newest;
    }
    if (tell_stream(&current) == FAILED)
        outcome = FAILED;
    PyObject *result = NULL;
    if (outcome == LEFT)
        result = Py_BuildValue("(nOK)", (Py_ssize_t)at, last == NULL ? Py_None : last, (unsigned long long)newest);
    Py_XDECREF(last);
    Py_XDECREF(current.stream);
    return result;
}
