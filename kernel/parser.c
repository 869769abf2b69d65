#include "events.h"

enum { HEAD_BYTES = 32, HEADER_BYTES = 24, MUTATION_EXTRAS = 31, LEAST_EXTRAS = 18, MOST_EXTRAS = 63 };
enum { MARKER_KIND = 0x8056, FIRST_KIND = 0x8057, LAST_KIND = 0x8059 };
enum { MARKER_2_0 = 0, MARKER_2_2 = 2 };

/* The head of a document frame, or of a snapshot marker, which has no seqno. */
typedef struct {
    unsigned kind, key_size, extras_size, datatype, vb;
    uint32_t body_size, opaque;
    uint64_t seqno;
} FrameHead;

/* The stream that the last frame was of, and where it was before its last document. */
typedef struct {
    PyObject *stream; /* ours */
    uint32_t opaque;
    uint64_t vb, snap_end, newest;
    uint64_t seqno; /* its newest now */
    bool has_moved; /* and the stream itself has not been told */
    bool is_document; /* what was taken last */
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

static Outcome write_number(PyObject *object, PyObject *name, uint64_t number) {
    PyObject *value = PyLong_FromUnsignedLongLong(number);
    bool is_written = value != NULL && PyObject_SetAttr(object, name, value) == 0;
    Py_XDECREF(value);
    return is_written ? DONE : FAILED;
}

/* Tells the stream its newest seqno. An error that is on its way stays. */
static Outcome tell_stream(Current *current) {
    if (!current->has_moved)
        return DONE;
    PyObject *type, *value, *trace;
    PyErr_Fetch(&type, &value, &trace);
    Outcome outcome = write_number(current->stream, attr_seqno, current->seqno);
    current->has_moved = false;
    if (type != NULL)
        PyErr_Restore(type, value, trace);
    return outcome;
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

/* Takes the document at *start*: adds its event, and moves its stream on, which is told later. LEFT: it is not in order. */
static Outcome take_document(const Input *input, const FrameHead *head, Current *current, const uint8_t *start) {
    if (head->seqno <= current->seqno || head->seqno > current->snap_end || head->vb != current->vb)
        return LEFT;
    size_t cut = input->prefix_bytes < head->key_size ? input->prefix_bytes : head->key_size;
    size_t rest = (size_t)head->extras_size + head->key_size;
    Span key = {start + HEADER_BYTES + head->extras_size + cut, head->key_size - cut};
    Span value = {start + HEADER_BYTES + rest, head->body_size - rest};
    const Event event = {.key = key, .value = value, .seqno = head->seqno, .vb = (uint16_t)head->vb,
                         .kind = (uint8_t)(head->kind - FIRST_KIND), .datatype = (uint8_t)head->datatype};
    bool is_taken;
    if (head->datatype & input->unusual) {
        PyObject *object = looked_at(input, head, &event);
        is_taken = object != NULL && add_object(input->events, object);
        Py_XDECREF(object);
    } else {
        is_taken = add_received(input->events, &event, input->source);
    }
    if (!is_taken)
        return FAILED;
    current->newest = current->seqno;
    current->seqno = head->seqno;
    current->has_moved = true;
    current->is_document = true;
    return DONE;
}

/* Reads the marker at *start*; false where it has not exactly the shape of version 1, 2.0 or 2.2. */
static bool read_marker(const FrameHead *head, const uint8_t *start, Event *marker) {
    const uint8_t *extras = start + HEADER_BYTES;
    uint32_t in_extras = head->extras_size == 1 ? 1 : 0, size = head->body_size - in_extras;
    if (head->key_size != 0)
        return false;
    if (in_extras && !(extras[0] == MARKER_2_0 && size == MARKER_2_0_BYTES) &&
        !(extras[0] == MARKER_2_2 && size == MARKER_2_2_BYTES))
        return false;
    if (!in_extras && !(head->extras_size == MARKER_1_BYTES && size == MARKER_1_BYTES))
        return false;
    *marker = (Event){.value = {extras + in_extras, size}, .vb = (uint16_t)head->vb, .kind = SNAPSHOT};
    return marker_start(marker) <= marker_end(marker);
}

/* Takes a marker of the current stream, as `Stream.enter_snapshot` does. LEFT: it is an odd one, or the stream goes on
 * in the snapshot in which it resumed. */
static Outcome take_marker(const Input *input, const FrameHead *head, Current *current, const uint8_t *start) {
    Event marker;
    uint64_t reach;
    if (head->vb != current->vb || !read_marker(head, start, &marker))
        return LEFT;
    if (read_number(current->stream, attr_reach, &reach) == FAILED)
        return FAILED;
    if (current->seqno < reach)
        return LEFT;
    if (write_number(current->stream, attr_snap_start, marker_start(&marker)) == FAILED ||
        write_number(current->stream, attr_snap_end, marker_end(&marker)) == FAILED ||
        (has_purge(&marker) && write_number(current->stream, attr_purge_seqno, marker_purge(&marker)) == FAILED) ||
        !add_received(input->events, &marker, input->source))
        return FAILED;
    current->snap_end = marker_end(&marker);
    current->is_document = false;
    return DONE;
}

/* Takes the frame at *offset* and moves it behind. LEFT: it is not whole, no document or marker, or not in order. */
static Outcome take_frame(const Input *input, size_t *offset, Current *current) {
    if (input->size < HEAD_BYTES || *offset > input->size - HEAD_BYTES)
        return LEFT;
    const uint8_t *start = input->data + *offset;
    FrameHead head = read_head(start);
    size_t left = input->size - *offset - HEADER_BYTES, rest = (size_t)head.extras_size + head.key_size;
    if (head.kind < MARKER_KIND || head.kind > LAST_KIND || head.body_size > left || rest > head.body_size)
        return LEFT;
    bool is_document = head.kind != MARKER_KIND;
    if (is_document && (head.extras_size < LEAST_EXTRAS || head.extras_size > MOST_EXTRAS))
        return LEFT;
    if (current->stream == NULL || current->opaque != head.opaque) {
        Outcome outcome = enter_stream(current, input->streams, head.opaque);
        if (outcome != DONE)
            return outcome;
    }
    Outcome outcome = (is_document ? take_document : take_marker)(input, &head, current, start);
    if (outcome == DONE)
        *offset += HEADER_BYTES + (size_t)head.body_size;
    return outcome;
}

/* take_run(data, offset, prefix_bytes, unusual, streams, events, look_closer) -> (offset, stream, newest)
 *
 * Takes whole documents and snapshot markers from *offset* on, up to the first frame that is for Python to see. Stream and
 * its newest seqno before are those of the last document; None if it was a marker that was taken last, or nothing. */
PyObject *take_run(PyObject *module, PyObject *args) {
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
    if (!current.is_document)
        Py_CLEAR(last);
    if (outcome == LEFT)
        result = Py_BuildValue("(nOK)", (Py_ssize_t)at, last == NULL ? Py_None : last, (unsigned long long)newest);
    Py_XDECREF(last);
    Py_XDECREF(current.stream);
    return result;
}
