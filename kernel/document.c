#include "document.h"

#include <string.h>

enum { REV = 1, FLAGS = 2, SEQUENCE = 4, CHANNELS = 8, IS_DELETED = 16 };

/* Notes that a field has come; false if it came before: which of the two counts is for Python to say. */
static bool note(unsigned *seen, unsigned field) {
    bool is_new = !(*seen & field);
    *seen |= field;
    return is_new;
}

/* Takes the text of a revision id: it alone, or as the member "rev" of an object. */
static bool take_rev(Cursor *cursor, Span *rev, unsigned depth) {
    String text, key;
    skip_space(cursor);
    if (cursor->at < cursor->end && *cursor->at == '{') {
        cursor->at++;
        unsigned seen = 0;
        *rev = (Span){cursor->at, 0};
        for (bool is_first = true;; is_first = false) {
            Next next = next_member(cursor, is_first, &key);
            if (next != MEMBER)
                return next == NO_MORE;
            if (key.made_of & ESCAPED)
                return false;
            if (!span_is(key.text, "rev")) {
                if (!skip_value(cursor, depth + 1))
                    return false;
                continue;
            }
            if (!note(&seen, REV) || !take_string(cursor, &text) || text.made_of || text.text.size > MOST_REV_BYTES)
                return false;
            *rev = text.text;
        }
    }
    if (!take_string(cursor, &text) || text.made_of || text.text.size > MOST_REV_BYTES)
        return false;
    *rev = text.text;
    return true;
}

/* Takes the value of a channel in the map: null, or how the document left it. */
static bool take_channel(Cursor *cursor, Channel *channel, unsigned depth) {
    String key;
    unsigned seen = 0;
    if (take_null(cursor))
        return true;
    if (!take_byte(cursor, '{'))
        return false;
    channel->is_left = true;
    for (bool is_first = true;; is_first = false) {
        Next next = next_member(cursor, is_first, &key);
        if (next != MEMBER)
            return next == NO_MORE;
        if (key.made_of & ESCAPED)
            return false;
        bool is_taken;
        if (span_is(key.text, "seq"))
            is_taken = note(&seen, SEQUENCE) && take_natural(cursor, &channel->sequence);
        else if (span_is(key.text, "rev"))
            is_taken = note(&seen, REV) && take_rev(cursor, &channel->rev, depth + 1);
        else if (span_is(key.text, "del"))
            is_taken = note(&seen, IS_DELETED) && take_bool(cursor, &channel->is_deleted);
        else
            is_taken = skip_value(cursor, depth + 1);
        if (!is_taken)
            return false;
    }
}

static bool take_channels(Cursor *cursor, Revision *revision, unsigned depth) {
    String name;
    if (take_null(cursor))
        return true;
    if (!take_byte(cursor, '{'))
        return false;
    for (bool is_first = true;; is_first = false) {
        Next next = next_member(cursor, is_first, &name);
        if (next != MEMBER)
            return next == NO_MORE;
        if (name.made_of & ESCAPED || name.text.size > MOST_CHANNEL_BYTES || revision->n_channels == MOST_CHANNELS)
            return false;
        Channel *channel = &revision->channels[revision->n_channels++];
        *channel = (Channel){.name = name.text, .rev = {name.text.start, 0}};
        if (!take_channel(cursor, channel, depth + 1))
            return false;
        revision->n_left += channel->is_left;
    }
}

/* Takes the object `_sync`. */
static bool take_sync(Cursor *cursor, Revision *revision, unsigned depth) {
    String key;
    unsigned seen = 0;
    uint64_t flags = 0;
    bool is_deleted = false;
    revision->rev.size = 0;
    revision->sequence = 0;
    revision->n_channels = revision->n_left = 0;
    if (!take_byte(cursor, '{'))
        return false;
    for (bool is_first = true;; is_first = false) {
        Next next = next_member(cursor, is_first, &key);
        if (next == NO_MORE)
            break;
        if (next == ODD || key.made_of & ESCAPED)
            return false;
        bool is_taken;
        if (span_is(key.text, "rev"))
            is_taken = note(&seen, REV) && take_rev(cursor, &revision->rev, depth + 1);
        else if (span_is(key.text, "flags"))
            is_taken = note(&seen, FLAGS) && take_natural(cursor, &flags);
        else if (span_is(key.text, "sequence"))
            is_taken = note(&seen, SEQUENCE) && take_natural(cursor, &revision->sequence);
        else if (span_is(key.text, "channels"))
            is_taken = note(&seen, CHANNELS) && take_channels(cursor, revision, depth + 1);
        else if (span_is(key.text, "deleted"))
            is_taken = note(&seen, IS_DELETED) && take_bool(cursor, &is_deleted);
        else
            is_taken = skip_value(cursor, depth + 1);
        if (!is_taken)
            return false;
    }
    revision->flags = (uint16_t)((flags & 0xFFFF & ~(uint64_t)REMOVED) | (is_deleted ? DELETED : 0));
    return revision->rev.size > 0;
}

static bool is_at_end(Cursor *cursor) {
    skip_space(cursor);
    return cursor->at == cursor->end;
}

static Decoded decode_body(Span body, Revision *revision) {
    Cursor cursor = cursor_over(body);
    String key;
    bool has_sync = false;
    if (!take_byte(&cursor, '{'))
        return PYTHONS;
    for (bool is_first = true;; is_first = false) {
        Next next = next_member(&cursor, is_first, &key);
        if (next == NO_MORE)
            break;
        if (next == ODD || key.made_of & ESCAPED)
            return PYTHONS;
        if (!span_is(key.text, "_sync")) {
            if (!skip_value(&cursor, 1))
                return PYTHONS;
            continue;
        }
        if (has_sync || !take_sync(&cursor, revision, 1))
            return PYTHONS;
        has_sync = true;
    }
    if (!is_at_end(&cursor))
        return PYTHONS;
    return has_sync ? ENTRY : NO_ENTRY;
}

static uint32_t read_u32(const uint8_t *at) {
    return (uint32_t)at[0] << 24 | (uint32_t)at[1] << 16 | (uint32_t)at[2] << 8 | at[3];
}

/* Decodes a value that begins with extended attributes. */
static Decoded decode_attributes(unsigned datatype, Span value, Revision *revision) {
    if (value.size < 4)
        return PYTHONS;
    uint64_t body_start = (uint64_t)4 + read_u32(value.start);
    if (body_start > value.size)
        return PYTHONS;
    uint64_t start = 4;
    while (start + 6 <= body_start) {
        uint64_t end = start + 4 + read_u32(value.start + start);
        if (end < start + 6 || end > body_start || value.start[end - 1] != 0)
            return PYTHONS;
        if (end - start >= 10 && memcmp(value.start + start + 4, "_sync", 6) == 0) {
            if (end - start == 10) /* its text would begin behind its end */
                return PYTHONS;
            Cursor cursor = cursor_over((Span){value.start + start + 10, end - start - 11});
            return take_sync(&cursor, revision, 0) && is_at_end(&cursor) ? ENTRY : PYTHONS;
        }
        start = end;
    }
    if (start != body_start)
        return PYTHONS;
    if (!(datatype & JSON_VALUE) || value.size == body_start)
        return NO_ENTRY;
    return decode_body((Span){value.start + body_start, value.size - body_start}, revision);
}

static bool begins_with(Span text, const char *prefix) {
    size_t size = strlen(prefix);
    return text.size >= size && memcmp(text.start, prefix, size) == 0;
}

Decoded decode(Span key, unsigned datatype, Span value, Revision *revision) {
    if (key.size > MOST_KEY_BYTES)
        return PYTHONS;
    if (begins_with(key, "_")) {
        if (begins_with(key, "_sync:user:") || begins_with(key, "_sync:role:"))
            return PYTHONS;
        if (begins_with(key, "_sync:") || begins_with(key, "_idx") || begins_with(key, "_txn:") ||
            begins_with(key, "_connector:"))
            return NO_ENTRY;
    }
    if (value.size == 0 || datatype == 0)
        return NO_ENTRY;
    if (datatype == JSON_VALUE)
        return decode_body(value, revision);
    if (datatype == XATTR_VALUE || datatype == (XATTR_VALUE | JSON_VALUE))
        return decode_attributes(datatype, value, revision);
    return PYTHONS;
}

/* By lower-case hex digit its value, and that it is one. */
enum { IS_DIGIT = 16 };
#define DIGIT(value) (IS_DIGIT | (value))
static const uint8_t low_hex_digits[256] = {
    ['0'] = DIGIT(0), ['1'] = DIGIT(1), ['2'] = DIGIT(2),  ['3'] = DIGIT(3),  ['4'] = DIGIT(4),  ['5'] = DIGIT(5),
    ['6'] = DIGIT(6), ['7'] = DIGIT(7), ['8'] = DIGIT(8),  ['9'] = DIGIT(9),  ['a'] = DIGIT(10), ['b'] = DIGIT(11),
    ['c'] = DIGIT(12), ['d'] = DIGIT(13), ['e'] = DIGIT(14), ['f'] = DIGIT(15),
};

/* Packs "N-<32 hex digits>"; false where *rev* is not of this form. */
static bool pack_digest(Span rev, uint8_t *stored) {
    if (rev.size < 34 || rev.size > 43 || rev.start[rev.size - 33] != '-')
        return false;
    uint64_t generation = 0;
    size_t n_digits = rev.size - 33;
    for (size_t i = 0; i < n_digits; i++) {
        if (rev.start[i] < '0' || rev.start[i] > '9')
            return false;
        generation = generation * 10 + (rev.start[i] - '0');
    }
    if ((n_digits > 1 && rev.start[0] == '0') || generation > UINT32_MAX)
        return false;
    for (int i = 0; i < 4; i++)
        stored[i] = (uint8_t)(generation >> (24 - 8 * i));
    const uint8_t *digest = rev.start + rev.size - 32;
    unsigned all = IS_DIGIT;
    for (int i = 0; i < 16; i++) {
        unsigned high = low_hex_digits[digest[2 * i]], low = low_hex_digits[digest[2 * i + 1]];
        all &= high & low;
        stored[4 + i] = (uint8_t)(high << 4 | (low & 15));
    }
    return (all & IS_DIGIT) != 0;
}

uint8_t pack_rev(Span rev, uint8_t *stored, size_t *size) {
    if (pack_digest(rev, stored)) {
        *size = PACKED_REV_BYTES;
        return PACKED_REV;
    }
    memcpy(stored, rev.start, rev.size);
    *size = rev.size;
    return (uint8_t)rev.size;
}

size_t entry_size(Span bytes) {
    if (bytes.size < ENTRY_HEAD_BYTES)
        return 0;
    uint8_t key_size = bytes.start[12], rev_size = bytes.start[13];
    size_t size = ENTRY_HEAD_BYTES + (size_t)key_size + (rev_size == PACKED_REV ? PACKED_REV_BYTES : (size_t)rev_size);
    return size <= bytes.size ? size : 0;
}
