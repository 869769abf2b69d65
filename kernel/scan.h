/* Scans JSON text: strictly, or not at all.
 *
 * All functions move a cursor over text that they do not own and never read at or behind its end. They return false where
 * the text is not plain JSON as RFC 8259 has it, and also where it is, but in a form that Python is to look at: nested
 * deeper than MOST_DEPTH, an unpaired surrogate, a number that hardly is one. The cursor is then anywhere. No Python here.
 */
#ifndef CHANNELINDEX_SCAN_H
#define CHANNELINDEX_SCAN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum { MOST_DEPTH = 64, TEXT_BLOCK = 64 };

typedef struct {
    const uint8_t *at;
    const uint8_t *end;
    const uint8_t *block; /* what was looked at last: it begins at *at*, or before */
    uint64_t odd;         /* bytes of it that are not plain, the first one's bit lowest: `kernel/plain.h` */
} Cursor;

/* A piece of somebody else's text. */
typedef struct {
    const uint8_t *start;
    size_t size;
} Span;

/* A cursor that may take strings, at the beginning of *text*. */
Cursor cursor_over(Span text);

/* What a string is made of besides plain ASCII. */
enum { ESCAPED = 1, WIDE = 2 };

typedef struct {
    Span text; /* between the quotes, as it stands: escapes are not resolved, UTF-8 is whole */
    unsigned made_of;
} String;

void skip_white_space(Cursor *cursor);

/* The same, and the next one, here because they are called for each byte that means something. */
static inline void skip_space(Cursor *cursor) {
    if (cursor->at < cursor->end && *cursor->at <= ' ')
        skip_white_space(cursor);
}

/* Takes *byte*, with white space before it. */
static inline bool take_byte(Cursor *cursor, uint8_t byte) {
    skip_space(cursor);
    if (cursor->at >= cursor->end || *cursor->at != byte)
        return false;
    cursor->at++;
    return true;
}

/* Takes a string, white space before it allowed. */
bool take_string(Cursor *cursor, String *string);

/* Takes a whole number from 0 to 2^64 - 1, written as digits alone. */
bool take_natural(Cursor *cursor, uint64_t *number);

/* Takes true or false. */
bool take_bool(Cursor *cursor, bool *value);

/* Takes null if it stands here. */
bool take_null(Cursor *cursor);

/* Takes any value inside of *depth* others, of which there is one at least. */
bool skip_value(Cursor *cursor, unsigned depth);

typedef enum { MEMBER, NO_MORE, ODD } Next;

/* Takes the next key and its colon, behind the brace of an object (*is_first*) or behind a member's value. */
Next next_member(Cursor *cursor, bool is_first, String *key);

/* Whether it is UTF-8 as Python takes it. */
bool is_text(Span bytes);

/* Here, so that nothing is left of it but a comparison with a constant. */
static inline bool span_is(Span span, const char *text) {
    return span.size == strlen(text) && memcmp(span.start, text, span.size) == 0;
}

#endif
