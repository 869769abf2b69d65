#include "plain.h"

enum { MOST_NUMBER = 32, MOST_EXPONENT = 2 };

static bool is_digit(uint8_t byte) { return byte >= '0' && byte <= '9'; }

void skip_white_space(Cursor *cursor) {
    while (cursor->at < cursor->end &&
           (*cursor->at == ' ' || *cursor->at == '\n' || *cursor->at == '\r' || *cursor->at == '\t'))
        cursor->at++;
}

Cursor cursor_over(Span text) {
    Cursor cursor = {.at = text.start, .end = text.start + text.size};
    enter_block(&cursor, text.start);
    return cursor;
}

static bool is_tail(const uint8_t *at) { return (*at & 0xC0) == 0x80; }

/* Moves over one character beyond ASCII, in UTF-8 as RFC 3629 has it: shortest form, no surrogates, up to U+10FFFF. */
static bool skip_wide(Cursor *cursor) {
    const uint8_t *at = cursor->at;
    ptrdiff_t left = cursor->end - at;
    if (at[0] >= 0xC2 && at[0] <= 0xDF) {
        if (left < 2 || !is_tail(at + 1))
            return false;
        cursor->at += 2;
    } else if (at[0] >= 0xE0 && at[0] <= 0xEF) {
        if (left < 3 || !is_tail(at + 1) || !is_tail(at + 2))
            return false;
        if ((at[0] == 0xE0 && at[1] < 0xA0) || (at[0] == 0xED && at[1] > 0x9F))
            return false;
        cursor->at += 3;
    } else if (at[0] >= 0xF0 && at[0] <= 0xF4) {
        if (left < 4 || !is_tail(at + 1) || !is_tail(at + 2) || !is_tail(at + 3))
            return false;
        if ((at[0] == 0xF0 && at[1] < 0x90) || (at[0] == 0xF4 && at[1] > 0x8F))
            return false;
        cursor->at += 4;
    } else {
        return false;
    }
    return true;
}

bool is_text(Span bytes) {
    Cursor cursor = {.at = bytes.start, .end = bytes.start + bytes.size};
    while (cursor.at < cursor.end) {
        if (*cursor.at < 0x80)
            cursor.at++;
        else if (!skip_wide(&cursor))
            return false;
    }
    return true;
}

static int hex_digit(uint8_t byte) {
    if (is_digit(byte))
        return byte - '0';
    byte |= 0x20;
    return byte >= 'a' && byte <= 'f' ? byte - 'a' + 10 : -1;
}

/* Moves over an escape; the cursor is at its backslash. */
static bool skip_escape(Cursor *cursor) {
    if (cursor->end - cursor->at < 2)
        return false;
    switch (cursor->at[1]) {
    case '"': case '\\': case '/': case 'b': case 'f': case 'n': case 'r': case 't':
        cursor->at += 2;
        return true;
    case 'u':
        break;
    default:
        return false;
    }
    if (cursor->end - cursor->at < 6)
        return false;
    unsigned code = 0;
    for (int i = 2; i < 6; i++) {
        int digit = hex_digit(cursor->at[i]);
        if (digit < 0)
            return false;
        code = code << 4 | (unsigned)digit;
    }
    if (code >= 0xD800 && code <= 0xDFFF)
        return false;
    cursor->at += 6;
    return true;
}

/* Moves over an escape, characters beyond ASCII, or one byte of another kind; false where it is odd. */
static __attribute__((noinline)) bool skip_special(Cursor *cursor, unsigned *made_of) {
    uint8_t byte = *cursor->at;
    if (byte < 0x20)
        return false;
    if (byte == '\\') {
        *made_of |= ESCAPED;
        return skip_escape(cursor);
    }
    if (byte < 0x80) {
        cursor->at++;
        return true;
    }
    *made_of |= WIDE;
    do {
        if (!skip_wide(cursor))
            return false;
    } while (cursor->at < cursor->end && *cursor->at >= 0x80);
    return true;
}

/* Moves over the text of a string and the quote behind it; false where there is none, or the text is odd. */
static inline __attribute__((always_inline)) bool skip_text(Cursor *cursor, unsigned *made_of) {
    for (;;) {
        skip_plain(cursor);
        if (cursor->at >= cursor->end)
            return false;
        if (*cursor->at == '"')
            break;
        if (!skip_special(cursor, made_of))
            return false;
    }
    cursor->at++;
    return true;
}

bool take_string(Cursor *cursor, String *string) {
    if (!take_byte(cursor, '"'))
        return false;
    unsigned made_of = 0;
    const uint8_t *start = cursor->at;
    if (!skip_text(cursor, &made_of))
        return false;
    *string = (String){{start, (size_t)(cursor->at - start) - 1}, made_of};
    return true;
}

bool take_natural(Cursor *cursor, uint64_t *number) {
    skip_space(cursor);
    const uint8_t *start = cursor->at;
    uint64_t value = 0;
    while (cursor->at < cursor->end && is_digit(*cursor->at)) {
        unsigned digit = *cursor->at - '0';
        if (value > (UINT64_MAX - digit) / 10)
            return false;
        value = value * 10 + digit;
        cursor->at++;
    }
    size_t n_digits = (size_t)(cursor->at - start);
    if (n_digits == 0 || (n_digits > 1 && *start == '0'))
        return false;
    if (cursor->at < cursor->end && (*cursor->at == '.' || (*cursor->at | 0x20) == 'e'))
        return false;
    *number = value;
    return true;
}

static size_t skip_digits(Cursor *cursor) {
    const uint8_t *start = cursor->at;
    while (cursor->at < cursor->end && is_digit(*cursor->at))
        cursor->at++;
    return (size_t)(cursor->at - start);
}

static bool skip_number(Cursor *cursor) {
    const uint8_t *start = cursor->at;
    if (cursor->at < cursor->end && *cursor->at == '-')
        cursor->at++;
    const uint8_t *first = cursor->at;
    size_t n_digits = skip_digits(cursor);
    if (n_digits == 0 || (n_digits > 1 && *first == '0'))
        return false;
    if (cursor->at < cursor->end && *cursor->at == '.') {
        cursor->at++;
        if (skip_digits(cursor) == 0)
            return false;
    }
    if (cursor->at < cursor->end && (*cursor->at | 0x20) == 'e') {
        cursor->at++;
        if (cursor->at < cursor->end && (*cursor->at == '+' || *cursor->at == '-'))
            cursor->at++;
        size_t n_exponent = skip_digits(cursor);
        if (n_exponent == 0 || n_exponent > MOST_EXPONENT)
            return false;
    }
    return cursor->at - start <= MOST_NUMBER;
}

static inline bool take_word(Cursor *cursor, const char *word) {
    size_t size = strlen(word);
    if ((size_t)(cursor->end - cursor->at) < size || memcmp(cursor->at, word, size) != 0)
        return false;
    cursor->at += size;
    return true;
}

bool take_bool(Cursor *cursor, bool *value) {
    skip_space(cursor);
    *value = take_word(cursor, "true");
    return *value || take_word(cursor, "false");
}

bool take_null(Cursor *cursor) {
    skip_space(cursor);
    return take_word(cursor, "null");
}

Next next_member(Cursor *cursor, bool is_first, String *key) {
    if (take_byte(cursor, '}'))
        return NO_MORE;
    if (!is_first && !take_byte(cursor, ','))
        return ODD;
    return take_string(cursor, key) && take_byte(cursor, ':') ? MEMBER : ODD;
}

/* Moves over a key and its colon. */
static __attribute__((noinline)) bool skip_key(Cursor *cursor) {
    unsigned made_of = 0;
    return take_byte(cursor, '"') && skip_text(cursor, &made_of) && take_byte(cursor, ':');
}

/* Moves over a value that has no others in it. */
static inline bool skip_scalar(Cursor *cursor) {
    unsigned made_of = 0;
    switch (*cursor->at) {
    case '"':
        cursor->at++;
        return skip_text(cursor, &made_of);
    case 't':
        return take_word(cursor, "true");
    case 'f':
        return take_word(cursor, "false");
    case 'n':
        return take_word(cursor, "null");
    default:
        return skip_number(cursor);
    }
}

/* Where a value is, and of what: by nesting, the innermost lowest, whether it is in an object. */
typedef struct {
    unsigned depth;
    uint64_t objects;
} Nesting;

/* Moves to the next value, behind one: over the ends of what it is in, up to *depth*. NO_MORE: that was the last. */
static inline Next next_value(Cursor *cursor, Nesting *in, unsigned depth) {
    for (; in->depth > depth; in->depth--, in->objects >>= 1) {
        bool is_object = in->objects & 1;
        if (take_byte(cursor, ','))
            return !is_object || skip_key(cursor) ? MEMBER : ODD;
        if (!take_byte(cursor, is_object ? '}' : ']'))
            return ODD;
    }
    return NO_MORE;
}

/* Without calling itself: what it knows stays in registers. */
bool skip_value(Cursor *cursor, unsigned depth) {
    Nesting in = {depth, 0};
    for (;;) {
        skip_space(cursor);
        if (in.depth > MOST_DEPTH || cursor->at >= cursor->end)
            return false;
        bool is_object = *cursor->at == '{';
        if (is_object || *cursor->at == '[') {
            cursor->at++;
            if (!take_byte(cursor, is_object ? '}' : ']')) {
                in = (Nesting){in.depth + 1, in.objects << 1 | is_object};
                if (is_object && !skip_key(cursor))
                    return false;
                continue;
            }
        } else if (!skip_scalar(cursor)) {
            return false;
        }
        Next next = next_value(cursor, &in, depth);
        if (next != MEMBER)
            return next == NO_MORE;
    }
}
