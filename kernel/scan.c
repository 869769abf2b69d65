#include "scan.h"

#include <string.h>

#define EACH(byte) (UINT64_C(0x0101010101010101) * (byte))

enum { MOST_NUMBER = 32, MOST_EXPONENT = 2 };

static bool is_digit(uint8_t byte) { return byte >= '0' && byte <= '9'; }

void skip_white_space(Cursor *cursor) {
    while (cursor->at < cursor->end &&
           (*cursor->at == ' ' || *cursor->at == '\n' || *cursor->at == '\r' || *cursor->at == '\t'))
        cursor->at++;
}

/* Moves over bytes that are neither control characters, quotes, backslashes nor beyond ASCII, eight at a time, up to the
 * first other one or near it. The lowest high bit of *odd* is exact; a borrow may set further ones. */
static void skip_plain(Cursor *cursor) {
    while (cursor->end - cursor->at >= 8) {
        uint64_t word;
        memcpy(&word, cursor->at, 8);
        uint64_t quote = word ^ EACH('"'), slash = word ^ EACH('\\');
        uint64_t odd = ((word - EACH(0x20)) | (quote - EACH(1)) | (slash - EACH(1)) | word) & EACH(0x80);
        if (odd) {
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
            cursor->at += __builtin_ctzll(odd) / 8;
#endif
            return;
        }
        cursor->at += 8;
    }
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
    Cursor cursor = {bytes.start, bytes.start + bytes.size};
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

bool take_string(Cursor *cursor, String *string) {
    if (!take_byte(cursor, '"'))
        return false;
    const uint8_t *start = cursor->at;
    string->made_of = 0;
    for (;;) {
        skip_plain(cursor);
        if (cursor->at >= cursor->end)
            return false;
        uint8_t byte = *cursor->at;
        if (byte == '"')
            break;
        if (byte < 0x20)
            return false;
        if (byte == '\\') {
            string->made_of |= ESCAPED;
            if (!skip_escape(cursor))
                return false;
        } else if (byte >= 0x80) {
            string->made_of |= WIDE;
            if (!skip_wide(cursor))
                return false;
        } else {
            cursor->at++;
        }
    }
    string->text = (Span){start, (size_t)(cursor->at - start)};
    cursor->at++;
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

static bool take_word(Cursor *cursor, const char *word) {
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

static bool skip_object(Cursor *cursor, unsigned depth) {
    String key;
    for (bool is_first = true;; is_first = false) {
        Next next = next_member(cursor, is_first, &key);
        if (next != MEMBER)
            return next == NO_MORE;
        if (!skip_value(cursor, depth + 1))
            return false;
    }
}

static bool skip_array(Cursor *cursor, unsigned depth) {
    if (take_byte(cursor, ']'))
        return true;
    do {
        if (!skip_value(cursor, depth + 1))
            return false;
    } while (take_byte(cursor, ','));
    return take_byte(cursor, ']');
}

bool skip_value(Cursor *cursor, unsigned depth) {
    String string;
    if (depth > MOST_DEPTH)
        return false;
    skip_space(cursor);
    if (cursor->at >= cursor->end)
        return false;
    switch (*cursor->at) {
    case '"':
        return take_string(cursor, &string);
    case '{':
        cursor->at++;
        return skip_object(cursor, depth);
    case '[':
        cursor->at++;
        return skip_array(cursor, depth);
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
