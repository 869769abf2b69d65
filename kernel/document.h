/* Finds and reads `_sync` of a document, inline or as an extended attribute. No Python here.
 *
 * `channelindex/decode/sync_gateway.py` says what a document means; this says the same of the plain ones, and nothing of
 * all others.
 */
#ifndef CHANNELINDEX_DOCUMENT_H
#define CHANNELINDEX_DOCUMENT_H

#include "scan.h"

enum {
    MOST_CHANNELS = 128, /* more are Python's: it is checked in pairs that none comes twice */
    MOST_CHANNEL_BYTES = 1024,
    MOST_REV_BYTES = 254,
    PACKED_REV = 255, /* the revision length byte of a packed one */
    PACKED_REV_BYTES = 20,
    MOST_KEY_BYTES = 255,
    ENTRY_HEAD_BYTES = 14,
};

enum { JSON_VALUE = 1, XATTR_VALUE = 4 }; /* bits of a datatype */
enum { DELETED = 1, REMOVED = 2 };        /* bits of an entry's flags */

/* A channel in which the document is, or which it left. */
typedef struct {
    Span name;
    bool is_left;
    bool is_deleted;
    uint64_t sequence;
    Span rev;
} Channel;

typedef struct {
    Span rev;
    uint16_t flags;
    uint64_t sequence;
    unsigned n_channels;
    unsigned n_left;
    Channel channels[MOST_CHANNELS];
} Revision;

typedef enum { PYTHONS, NO_ENTRY, ENTRY } Decoded;

/* Reads a document. *revision* is of an ENTRY alone, and points into *value*. */
Decoded decode(Span key, unsigned datatype, Span value, Revision *revision);

/* The size of the entry with which *bytes* begin, 0 where it is cut off. */
size_t entry_size(Span bytes);

/* Writes the stored form of a revision id to *stored*, of MOST_REV_BYTES; returns its revision length byte. */
uint8_t pack_rev(Span rev, uint8_t *stored, size_t *size);

#endif
