/* dcz.c reads .dcz files of format versions 1 and 2 (../FORMAT.md) where there is no Python: C99 and its library alone
 * (on POSIX systems the program makes its output by open() and fsync() too).
 *
 * As a program:
 *
 *     cc -std=c99 -O2 -o dcz-decode dcz.c
 *     dcz-decode IN.dcz OUT.safetensors      decodes
 *     dcz-decode IN.dcz                      verifies: decodes all and writes nothing
 *
 * `--max-bytes N` refuses a file whose tensors, those that equal earlier ones too, take more than N bytes together
 * (4 GiB where not given), or that is itself larger than N and 256 MiB. Metadata goes to OUT too; edits
 * do not, of which a line on stderr tells. It exits with 0; with 2 and one line on stderr where the file is not sound or too large; with 1 where this machine fails it
 * (memory, disk, arguments).
 *
 * As a library: include it once, with DCZ_NO_MAIN defined.
 *
 *     dcz_error error;
 *     dcz *file = dcz_open(bytes, size, max_bytes, &error);           NULL: error.text says why
 *     for (size_t i = 0; i < dcz_count(file); i++) {
 *         void *out = malloc(dcz_bytes(file, i));
 *         if (dcz_decode(file, i, out, &error) != DCZ_OK) ...
 *     }
 *     dcz_close(file);
 *
 * The bytes given to dcz_open must stay as they are until dcz_close. A file is for one thread at a time; several may be
 * open. Elements come out in row-major order, each as little-endian bytes, on every machine. No floating-point unit is
 * used. Whatever the bytes are, time and memory stay within a constant times the file and its decoded tensors.
 */
#if !defined(DCZ_NO_MAIN) && (defined(__unix__) || defined(__APPLE__))
#define DCZ_POSIX
#define _POSIX_C_SOURCE 200809L
#endif

#include <errno.h>
#include <inttypes.h>
#include <setjmp.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#ifdef DCZ_POSIX
#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>
#endif

typedef struct dcz dcz;

typedef enum {
    DCZ_OK, DCZ_NOT_DCZ, DCZ_VERSION, DCZ_TRUNCATED, DCZ_CHECKSUM, DCZ_MALFORMED, DCZ_TOO_LARGE, DCZ_NO_MEMORY
} dcz_status;

typedef struct {
    dcz_status status;
    char text[256]; /* one line of printable ASCII */
} dcz_error;

enum { DCZ_MAX_DIMENSIONS = 64 };

/* All index checks are done here, a tensor's own in dcz_decode. `error` may be NULL. */
dcz *dcz_open(const void *bytes, size_t size, uint64_t max_bytes, dcz_error *error);
size_t dcz_count(const dcz *file);
/* UTF-8, which may hold zeros; one zero more stands behind it. */
const char *dcz_name(const dcz *file, size_t tensor, size_t *length);
/* As safetensors calls it: "F32", "BF16", ... */
const char *dcz_dtype(const dcz *file, size_t tensor);
/* Fills `shape` and gives the number of dimensions. */
unsigned dcz_shape(const dcz *file, size_t tensor, uint64_t shape[DCZ_MAX_DIMENSIONS]);
size_t dcz_bytes(const dcz *file, size_t tensor);
/* The earlier tensor that this one equals, where the file says so; else the tensor itself. */
size_t dcz_same_as(const dcz *file, size_t tensor);
/* `out` has room for dcz_bytes(file, tensor); what it holds after an error means nothing. */
dcz_status dcz_decode(dcz *file, size_t tensor, void *out, dcz_error *error);
/* A key and its text, both UTF-8 that may hold zeros, with none behind them. */
typedef struct {
    const char *key, *text;
    size_t key_length, text_length;
} dcz_metadata;
/* The next of the file's metadata, keys ascending; `*at` is 0 at first. 0 where there is no more. */
int dcz_next_metadata(const dcz *file, size_t *at, dcz_metadata *found);
void dcz_close(dcz *file);

/* ---- What is open, and how it fails ------------------------------------------------------------------------------ */

enum {
    NO_TENSOR = -1,
    MAX_BITS = 19, /* of a Huffman code: width(65,536) + 3 */
    FAST_BITS = 10,
    MAX_VALUES = 65536,
    MAX_COLUMNS = 1 << 22, /* of arithmetic code */
    BLOCK = 16384,                 /* tuples of a Huffman-coded stream */
    MAX_NAMES = 100 * 1000 * 1000, /* as much as a safetensors header; a short index can ask for any length */
    MAX_TENSORS = 1 << 20,
    MAX_INDEX = 1 << 28,
    MAX_METADATA = 1 << 20,
    MAX_HEAD = 100 * 1000 * 1000, /* of safetensors, as its readers have it */
    METADATA = 2, /* tag */
    EDITS = 4,
    MAX_TILE_ROW = 1 << 22,
    MAX_HELD = 48
};

struct dtype {
    const char *name;
    unsigned size, kind; /* kind: 'f'loat, 'i'nteger, 'u'nsigned, 'b'ool, float'8' */
    unsigned mantissa, exponent;
};

static const struct dtype DTYPES[20] = {
    {NULL, 0, 0, 0, 0},
    {"F32", 4, 'f', 23, 8}, {"F16", 2, 'f', 10, 5}, {"BF16", 2, 'f', 7, 8}, {"F64", 8, 'f', 52, 11},
    {"BOOL", 1, 'b', 0, 0}, {"U8", 1, 'u', 0, 0}, {"I8", 1, 'i', 0, 0}, {"U16", 2, 'u', 0, 0}, {"I16", 2, 'i', 0, 0},
    {"U32", 4, 'u', 0, 0}, {"I32", 4, 'i', 0, 0}, {"U64", 8, 'u', 0, 0}, {"I64", 8, 'i', 0, 0}, {NULL, 0, 0, 0, 0},
    {"F8_E4M3", 1, '8', 0, 0}, {"F8_E5M2", 1, '8', 0, 0}, {"F8_E4M3FNUZ", 1, '8', 0, 0},
    {"F8_E5M2FNUZ", 1, '8', 0, 0}, {"F8_E8M0", 1, '8', 0, 0},
};
#define FLOAT32 (&DTYPES[1])
#define BFLOAT16 (&DTYPES[3])
#define FLOAT64 (&DTYPES[4])

struct span {
    const uint8_t *at, *end;
};

struct tensor {
    size_t name, name_length;
    const struct dtype *dtype;
    const uint8_t *shape; /* varints of the index, already checked */
    unsigned dimensions;
    size_t elements, same_as;
    struct span blob;
    uint32_t crc;
};

struct huffman {
    uint32_t count[MAX_BITS + 1];
    uint32_t fast[1 << FAST_BITS]; /* by the next bits: symbol << 5 | length, or 0 where the code is longer */
    uint16_t *symbol;              /* sorted by length, then symbol */
    unsigned longest;
};

/* A cell of another epoch counts as fresh: a chunk of one element may have 458,752 cells, too many to clear. */
struct cell {
    uint32_t state, epoch;
};

struct dcz {
    struct tensor *tensors;
    size_t count;
    uint64_t max_bytes;
    char *names;
    size_t names_used, names_room;
    struct span metadata; /* already checked */
    int has_edits;        /* which are passed over */
    unsigned version;
    uint32_t crc[256], rate[512];
    struct cell *cells;
    size_t cells_room;
    uint32_t epoch;
    struct huffman literals, distances;
    int fixed; /* these are the codes of RFC 1951, 3.2.6 */
    uint16_t literal_symbols[288], distance_symbols[32];
    void *held[MAX_HELD];
    unsigned holding;
    ptrdiff_t at; /* the tensor that an error is about */
    dcz_error *error;
    jmp_buf escape;
};

static void say(dcz_error *error, dcz_status status, const char *text) {
    if (error == NULL)
        return;
    error->status = status;
    (void)snprintf(error->text, sizeof error->text, "%s", text);
}

/* Does not return. */
static void fail(dcz *d, dcz_status status, const char *field, const char *what) {
    char name[64] = "", text[256];
    if (d->at == NO_TENSOR) {
        (void)snprintf(text, sizeof text, "%s: %s", field, what);
    } else {
        const struct tensor *tensor = &d->tensors[d->at];
        for (size_t i = 0; i < tensor->name_length && i + 1 < sizeof name; i++) {
            char c = d->names[tensor->name + i];
            name[i] = ' ' <= c && c <= '~' ? c : '?';
        }
        (void)snprintf(text, sizeof text, "tensor %td '%s': %s: %s", d->at, name, field, what);
    }
    say(d->error, status, text);
    longjmp(d->escape, 1);
}

static void must(dcz *d, int holds, const char *field, const char *or_else) {
    if (!holds)
        fail(d, DCZ_MALFORMED, field, or_else);
}

static void *checked(dcz *d, void *memory) {
    if (memory == NULL)
        fail(d, DCZ_NO_MEMORY, "memory", "not enough");
    return memory;
}

/* Memory that release() takes back, and so does every failure. */
static void *hold(dcz *d, size_t count, size_t size) {
    int fits = d->holding < MAX_HELD && count <= SIZE_MAX / size;
    void *memory = checked(d, fits ? malloc(count > 0 ? count * size : 1) : NULL);
    d->held[d->holding++] = memory;
    return memory;
}

static void release(dcz *d, unsigned down_to) {
    while (d->holding > down_to)
        free(d->held[--d->holding]);
}

/* ---- Bytes ------------------------------------------------------------------------------------------------------- */

static size_t left(struct span in) {
    return (size_t)(in.end - in.at);
}

static struct span part(dcz *d, struct span *in, uint64_t length, const char *field) {
    struct span found = {in->at, in->at};
    must(d, length <= left(*in), field, "cut short");
    found.end = in->at += (size_t)length;
    return found;
}

static unsigned u8(dcz *d, struct span *in, const char *field) {
    return *part(d, in, 1, field).at;
}

static uint64_t get_le(const uint8_t *bytes, unsigned size) {
    uint64_t value = 0;
    for (unsigned i = 0; i < size; i++)
        value |= (uint64_t)bytes[i] << 8 * i;
    return value;
}

static void put_le(uint8_t *bytes, uint64_t value, unsigned size) {
    for (unsigned i = 0; i < size; i++)
        bytes[i] = (uint8_t)(value >> 8 * i);
}

static uint64_t varint(dcz *d, struct span *in, const char *field) {
    uint64_t value = 0;
    for (unsigned shift = 0;; shift += 7) {
        unsigned byte = u8(d, in, field);
        int shortest = shift == 0 || byte > 0, below = shift < 63 || byte <= 1;
        must(d, shortest && below, field, "not a varint in its shortest form below 2^64");
        value |= (uint64_t)(byte & 127) << shift;
        if (byte < 128)
            return value;
    }
}

static size_t number(dcz *d, struct span *in, uint64_t least, uint64_t most, const char *field) {
    uint64_t value = varint(d, in, field);
    must(d, value >= least && value <= most, field, "out of range");
    return (size_t)value;
}

/* So many bytes as a varint before them says. */
static struct span counted(dcz *d, struct span *in, const char *field) {
    uint64_t length = varint(d, in, field);
    return part(d, in, length, field);
}

static uint32_t crc32(const dcz *d, uint32_t crc, struct span in) {
    crc = ~crc;
    while (in.at < in.end)
        crc = d->crc[(crc ^ *in.at++) & 255] ^ crc >> 8;
    return ~crc;
}

static void fill_tables(dcz *d) {
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t crc = i;
        for (unsigned bit = 0; bit < 8; bit++)
            crc = crc & 1 ? crc >> 1 ^ 0xEDB88320u : crc >> 1;
        d->crc[i] = crc;
    }
    for (uint32_t i = 0; i < 512; i++)
        d->rate[i] = 131072 / (2 * i + 3);
}

/* floor(log2 x), x >= 1 */
static unsigned top_bit(uint64_t x) {
    unsigned top = 0;
    for (unsigned step = 32; step > 0; step /= 2)
        if (x >> step) {
            x >>= step;
            top += step;
        }
    return top;
}

static unsigned width(size_t k) {
    return k < 2 ? 0 : top_bit(k - 1) + 1;
}

/* ---- Bits and canonical Huffman codes ---------------------------------------------------------------------------- */

struct bits {
    struct span in;
    const char *field;
    uint64_t ahead; /* the next bits, the first lowest; zeros above */
    unsigned count;
};

static struct bits begin_bits(struct span in, const char *field) {
    struct bits b = {in, field, 0, 0};
    return b;
}

static void refill(struct bits *b) {
    while (b->count <= 56 && b->in.at < b->in.end) {
        b->ahead |= (uint64_t)*b->in.at++ << b->count;
        b->count += 8;
    }
}

static void drop(dcz *d, struct bits *b, unsigned count) {
    must(d, count <= b->count, b->field, "cut short");
    b->ahead >>= count;
    b->count -= count;
}

static unsigned take(dcz *d, struct bits *b, unsigned count) {
    refill(b);
    unsigned value = (unsigned)(b->ahead & ((1u << count) - 1));
    drop(d, b, count);
    return value;
}

/* What follows the last byte that a bit was taken from. */
static struct span behind(const struct bits *b) {
    struct span rest = {b->in.at - b->count / 8, b->in.end};
    return rest;
}

static struct span end_padded(dcz *d, const struct bits *b) {
    must(d, !(b->ahead & ((1u << b->count % 8) - 1)), b->field, "padding is not zero");
    return behind(b);
}

static void end_exactly(dcz *d, const struct bits *b) {
    must(d, left(end_padded(d, b)) == 0, b->field, "ends before its last byte");
}

static uint32_t mirrored(uint32_t code, unsigned length) {
    uint32_t mirror = 0;
    for (unsigned i = 0; i < length; i++)
        mirror |= (code >> i & 1) << (length - 1 - i);
    return mirror;
}

/* Of the canonical code of these lengths, 0 for no code. The result is what it leaves of the code space, in units of
 * 2^-MAX_BITS: 0 where it is whole, negative (and the code useless) where it is overfull. */
static int32_t build(struct huffman *h, const uint8_t *length, size_t symbols) {
    uint32_t place[MAX_BITS + 2] = {0}, code = 0, at = 0;
    int64_t room = 1 << MAX_BITS;
    memset(h->count, 0, sizeof h->count);
    memset(h->fast, 0, sizeof h->fast);
    for (size_t i = 0; i < symbols; i++)
        h->count[length[i]]++;
    h->count[0] = h->longest = 0;
    for (unsigned bits = 1; bits <= MAX_BITS; bits++) {
        place[bits + 1] = place[bits] + h->count[bits];
        room -= (int64_t)h->count[bits] << (MAX_BITS - bits);
        if (h->count[bits] > 0)
            h->longest = bits;
        if (room < 0)
            return -1;
    }
    for (size_t i = 0; i < symbols; i++)
        if (length[i] > 0)
            h->symbol[place[length[i]]++] = (uint16_t)i;
    for (unsigned bits = 1; bits <= FAST_BITS; bits++, code <<= 1)
        for (uint32_t i = 0; i < h->count[bits]; i++, code++, at++)
            for (uint32_t next = mirrored(code, bits); next < 1 << FAST_BITS; next += 1u << bits)
                h->fast[next] = (uint32_t)h->symbol[at] << 5 | bits;
    return (int32_t)room;
}

static unsigned symbol(dcz *d, const struct huffman *h, struct bits *b) {
    refill(b);
    uint32_t entry = h->fast[b->ahead & ((1 << FAST_BITS) - 1)], code = 0, first = 0, at = 0;
    if (entry > 0) {
        drop(d, b, entry & 31);
        return entry >> 5;
    }
    for (unsigned length = 1; length <= h->longest; length++) {
        code = code << 1 | (uint32_t)(b->ahead >> (length - 1) & 1);
        first <<= 1;
        if (code - first < h->count[length]) {
            drop(d, b, length);
            return h->symbol[at + code - first];
        }
        first += h->count[length];
        at += h->count[length];
    }
    must(d, 0, b->field, "bits that are no code");
    return 0;
}

/* ---- Inflate (RFC 1951) ------------------------------------------------------------------------------------------ */

struct window {
    uint8_t *bytes;
    size_t used, room;
};

static void inflate_stored(dcz *d, struct bits *b, struct window *out) {
    struct span rest = behind(b);
    uint64_t length = get_le(part(d, &rest, 2, b->field).at, 2), inverse = get_le(part(d, &rest, 2, b->field).at, 2);
    struct span from = part(d, &rest, length, b->field);
    must(d, (length ^ inverse) == 0xFFFF, b->field, "deflate: a stored block of a wrong length");
    must(d, length <= out->room - out->used, b->field, "deflate: more bytes than the values have");
    if (length > 0)
        memcpy(out->bytes + out->used, from.at, (size_t)length);
    out->used += (size_t)length;
    *b = begin_bits(rest, b->field);
}

static void inflate_copy(dcz *d, struct bits *b, struct window *out, unsigned code) {
    static const uint16_t LENGTH[29] = {3,  4,  5,  6,  7,  8,  9,  10, 11,  13,  15,  17,  19,  23, 27,
                                        31, 35, 43, 51, 59, 67, 83, 99, 115, 131, 163, 195, 227, 258};
    static const uint16_t DISTANCE[30] = {1,    2,    3,    4,    5,    7,    9,    13,   17,    25,
                                          33,   49,   65,   97,   129,  193,  257,  385,  513,   769,
                                          1025, 1537, 2049, 3073, 4097, 6145, 8193, 12289, 16385, 24577};
    must(d, code <= 285, b->field, "deflate: a length that is none");
    code -= 257;
    size_t length = LENGTH[code] + (code < 4 || code == 28 ? 0u : take(d, b, code / 4 - 1));
    unsigned far = symbol(d, &d->distances, b);
    must(d, far <= 29, b->field, "deflate: a distance that is none");
    size_t distance = DISTANCE[far] + (far < 2 ? 0u : take(d, b, far / 2 - 1));
    must(d, distance <= out->used, b->field, "deflate: a distance from before the start");
    must(d, length <= out->room - out->used, b->field, "deflate: more bytes than the values have");
    for (uint8_t *to = out->bytes + out->used, *end = to + length; to < end; to++)
        *to = *(to - distance);
    out->used += length;
}

static void inflate_coded(dcz *d, struct bits *b, struct window *out) {
    for (;;) {
        unsigned code = symbol(d, &d->literals, b);
        if (code == 256)
            return;
        if (code > 256) {
            inflate_copy(d, b, out, code);
            continue;
        }
        must(d, out->used < out->room, b->field, "deflate: more bytes than the values have");
        out->bytes[out->used++] = (uint8_t)code;
    }
}

static void fixed_codes(dcz *d) {
    uint8_t length[288];
    if (d->fixed)
        return;
    for (unsigned i = 0; i < 288; i++)
        length[i] = i < 144 ? 8 : i < 256 ? 9 : i < 280 ? 7 : 8;
    (void)build(&d->literals, length, 288);
    memset(length, 5, 32);
    (void)build(&d->distances, length, 32);
    d->fixed = 1;
}

/* As zlib has it, a code may be incomplete where it is a single one, of one bit, or none. */
static int usable(const struct huffman *h, int32_t room) {
    return room == 0 || (room > 0 && h->longest <= 1);
}

static void own_codes(dcz *d, struct bits *b) {
    static const uint8_t ORDER[19] = {16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15};
    uint8_t length[288 + 32] = {0}, of_lengths[19] = {0};
    unsigned literals = 257 + take(d, b, 5), all = literals + 1 + take(d, b, 5), given = 4 + take(d, b, 4);
    d->fixed = 0;
    for (unsigned i = 0; i < given; i++)
        of_lengths[ORDER[i]] = (uint8_t)take(d, b, 3);
    must(d, literals <= 286 && all <= literals + 30, b->field, "deflate: more codes than there are");
    must(d, build(&d->literals, of_lengths, 19) == 0, b->field, "deflate: a table of codes that is none");
    for (unsigned i = 0; i < all;) {
        unsigned code = symbol(d, &d->literals, b), times = 1;
        if (code >= 16)
            times = code == 16 ? 3 + take(d, b, 2) : code == 17 ? 3 + take(d, b, 3) : 11 + take(d, b, 7);
        must(d, (code != 16 || i > 0) && times <= all - i, b->field, "deflate: a table of codes that is none");
        memset(length + i, code < 16 ? (int)code : code == 16 ? length[i - 1] : 0, times);
        i += times;
    }
    int32_t room = build(&d->literals, length, literals);
    int32_t room_far = build(&d->distances, length + literals, all - literals);
    int sound = length[256] > 0 && usable(&d->literals, room) && usable(&d->distances, room_far);
    must(d, sound, b->field, "deflate: a table of codes that is none");
}

static void inflate(dcz *d, struct span in, uint8_t *bytes, size_t size, const char *field) {
    struct bits b = begin_bits(in, field);
    struct window out = {bytes, 0, size};
    d->literals.symbol = d->literal_symbols;
    d->distances.symbol = d->distance_symbols;
    for (unsigned last = 0; !last;) {
        last = take(d, &b, 1);
        unsigned how = take(d, &b, 2);
        must(d, how < 3, field, "deflate: a block of an unknown type");
        if (how == 1)
            fixed_codes(d);
        else if (how == 2)
            own_codes(d, &b);
        if (how == 0)
            inflate_stored(d, &b, &out);
        else
            inflate_coded(d, &b, &out);
    }
    must(d, left(behind(&b)) == 0 && out.used == size, field, "deflate: ends before the bytes or the values do");
}

/* ---- Arithmetic code --------------------------------------------------------------------------------------------- */

struct arithmetic {
    uint64_t range, code;
    struct span in;
    const char *field;
};

enum { P_BITS = 22 };
/* The state of a cell: P, and above it the count. */
#define CELL(p, count) ((uint32_t)(p) | (uint32_t)(count) << P_BITS)

static void next_bytes(struct arithmetic *a, unsigned count) {
    for (unsigned i = 0; i < count; i++)
        a->code = a->code << 8 | (a->in.at < a->in.end ? *a->in.at++ : 0);
}

static struct arithmetic begin_arithmetic(dcz *d, struct span in, const char *field) {
    struct arithmetic a = {((uint64_t)1 << 48) - 1, 0, in, field};
    must(d, left(in) == 0 || in.end[-1] > 0, field, "arithmetic code ends in a byte of zero");
    next_bytes(&a, 6);
    must(d, a.code < a.range, field, "arithmetic code begins with six bytes FF");
    return a;
}

static void end_arithmetic(dcz *d, const struct arithmetic *a) {
    must(d, left(a->in) == 0, a->field, "arithmetic code goes on behind its end");
}

static unsigned decide(const dcz *d, struct arithmetic *a, uint32_t *cell) {
    uint32_t p = *cell & ((1u << P_BITS) - 1), count = *cell >> P_BITS, q = p >> 6;
    uint64_t bound = (a->range >> 16) * (q > 0 ? q : 1), rate = d->rate[count];
    unsigned bit = a->code < bound;
    if (bit) {
        a->range = bound;
        p += (uint32_t)(((1u << P_BITS) - p) * rate >> 16);
    } else {
        a->code -= bound;
        a->range -= bound;
        p -= (uint32_t)((p * rate + 65535) >> 16);
    }
    *cell = CELL(p, count < 511 ? count + 1 : count);
    if (a->range >> 32 == 0) {
        a->range <<= 16;
        next_bytes(a, 2);
    }
    return bit;
}

/* ---- The arithmetic code's model of flags ------------------------------------------------------------------------ */

enum { LEVELS = 33, NEIGHBOURS = 16 };

struct flags {
    uint8_t *flag; /* of the whole chunk, 1 is stored */
    size_t columns, row, stored_before, stored; /* in the rows above, and in all so far */
    uint32_t *stored_above;                     /* t_j; NULL where there is one row */
    unsigned prior_column, prior_row, near;     /* a, b and n */
    uint64_t all, row_share;                    /* G, 2^32 // (i + A) */
    int32_t log_all, likely;                    /* log(G), L */
    uint32_t cells[LEVELS * NEIGHBOURS];
};

/* 16 log2 of x >= 1, linear between powers of 2 */
static int32_t logarithm(uint64_t x) {
    unsigned floor = top_bit(x);
    return (int32_t)(16 * floor + (unsigned)(16 * x >> floor)) - 16;
}

static void begin_row(struct flags *f, size_t row) {
    f->row = row;
    f->stored_before = f->stored;
    f->all = (((uint64_t)2 * f->stored + 1) << 16) / ((uint64_t)2 * row * f->columns + 20);
    f->all = f->all > 0 ? f->all : 1;
    f->row_share = ((uint64_t)1 << 32) / (row + ((uint64_t)1 << f->prior_column));
    f->log_all = logarithm(f->all);
}

static struct flags *begin_flags(dcz *d, uint8_t *flag, size_t rows, size_t columns, unsigned prior, unsigned near) {
    struct flags *f = hold(d, 1, sizeof *f);
    memset(f, 0, sizeof *f);
    f->flag = flag;
    f->columns = columns;
    f->prior_column = prior & 15;
    f->prior_row = prior >> 4;
    f->near = near;
    if (rows > 1) {
        f->stored_above = hold(d, columns, sizeof *f->stored_above);
        memset(f->stored_above, 0, columns * sizeof *f->stored_above);
    }
    for (unsigned i = 0; i < LEVELS * NEIGHBOURS; i++) {
        uint32_t x = 8 * (i / NEIGHBOURS) + 4, p = (16 + x % 16) << (x / 16 + 2), most = (1u << 22) - (1u << 16);
        f->cells[i] = CELL(p < most ? p : most, 4);
    }
    begin_row(f, 0);
    return f;
}

/* w */
static unsigned neighbours(const struct flags *f, size_t column) {
    const uint8_t *here = f->flag + f->row * f->columns + column, *above = here - (f->row > 0 ? f->columns : 0);
    unsigned w = f->near > 0 && column > 0 ? here[-1] : 0;
    if (f->near == 0 || f->row == 0)
        return w;
    w += 2u * above[0];
    if (f->near == 1)
        return w;
    return w + (column > 0 ? 4u * above[-1] : 0) + (column + 1 < f->columns ? 8u * above[1] : 0);
}

static unsigned read_flag(dcz *d, struct arithmetic *a, struct flags *f, size_t column) {
    uint64_t column_share = ((uint64_t)1 << 32) / (column + ((uint64_t)1 << f->prior_row));
    uint64_t above = f->stored_above != NULL ? f->stored_above[column] : 0;
    uint64_t in_column = (above << 16) + (f->all << f->prior_column);
    uint64_t in_row = ((uint64_t)(f->stored - f->stored_before) << 16) + (f->all << f->prior_row);
    uint64_t x = in_column * f->row_share >> 32, y = in_row * column_share >> 32;
    f->likely = logarithm(x > 0 ? x : 1) + logarithm(y > 0 ? y : 1) - f->log_all;
    int32_t level = (f->likely < 0 ? 0 : f->likely > 263 ? 263 : f->likely) >> 3;
    unsigned stored = decide(d, a, &f->cells[(unsigned)level * NEIGHBOURS + neighbours(f, column)]);
    f->flag[f->row * f->columns + column] = (uint8_t)stored;
    f->stored += stored;
    if (f->stored_above != NULL)
        f->stored_above[column] += stored;
    return stored;
}

/* ---- Values ------------------------------------------------------------------------------------------------------ */

/* A float as sign, and fraction * 2^exponent. */
struct real {
    uint64_t negative, fraction;
    int exponent;
    int infinite;
};

static struct real taken_apart(uint64_t bits, const struct dtype *from) {
    int top = (1 << from->exponent) - 1, exponent = (int)(bits >> from->mantissa) & top;
    struct real x = {bits >> (8 * from->size - 1), bits & (((uint64_t)1 << from->mantissa) - 1), 0, exponent == top};
    if (exponent > 0)
        x.fraction |= (uint64_t)1 << from->mantissa;
    x.exponent = (exponent > 0 ? exponent : 1) - (top >> 1) - (int)from->mantissa;
    return x;
}

/* To nearest, ties to even. */
static uint64_t rounded(struct real x, const struct dtype *to) {
    uint64_t sign = x.negative << (8 * to->size - 1);
    int top = (1 << to->exponent) - 1, cut = 63 - (int)to->mantissa;
    if (x.fraction == 0 && !x.infinite)
        return sign;
    int up = x.infinite ? 0 : 63 - (int)top_bit(x.fraction), biased = x.exponent - up + 63 + (top >> 1);
    if (x.infinite || biased >= top)
        return sign | (uint64_t)top << to->mantissa;
    x.fraction <<= up;
    if (biased < 1) {
        cut += 1 - biased;
        biased = 1;
    }
    if (cut > 64)
        return sign;
    uint64_t kept = cut < 64 ? x.fraction >> cut : 0, half = (uint64_t)1 << (cut - 1), rest = x.fraction & (half - 1);
    kept += (x.fraction & half) > 0 && (rest > 0 || (kept & 1));
    /* What carries out of the fraction lands in the exponent, as it should. */
    return sign | (((uint64_t)(biased - 1) << to->mantissa) + kept);
}

/* A finite float times an integer, in its own type. By integers: what compilers and processors think of precision shall
 * not show in the bits. */
static uint64_t times(uint64_t bits, int32_t integer, const struct dtype *type) {
    struct real x = taken_apart(bits, type);
    uint64_t factor = (uint64_t)(integer < 0 ? -integer : integer);
    uint64_t low = (x.fraction & UINT32_MAX) * factor, high = (x.fraction >> 32) * factor + (low >> 32);
    low &= UINT32_MAX;
    x.negative ^= integer < 0;
    x.fraction = high << 32 | low;
    if (high >> 31) { /* up to 70 bits: of those below the rounding, only whether they are zero counts */
        x.fraction = high << 24 | low >> 8 | ((low & 255) > 0);
        x.exponent += 8;
    }
    return rounded(x, type);
}

static uint64_t widened(dcz *d, uint64_t bits, const struct dtype *from, const struct dtype *to, const char *field) {
    uint64_t top = (uint64_t)1 << (8 * from->size - 1), infinity = ((uint64_t)1 << from->exponent) - 1;
    must(d, to->kind != 'b' || bits <= 1, field, "a bool is neither 0 nor 1");
    if (from == to)
        return bits;
    if (from == BFLOAT16 && to == FLOAT32)
        return bits << 16;
    if (from->kind == 'f') {
        must(d, (bits & (top - 1)) <= infinity << from->mantissa, field, "a narrowed NaN");
        return rounded(taken_apart(bits, from), to);
    }
    if (from->kind == 'i')
        bits = (bits ^ top) - top;
    return bits & UINT64_MAX >> (64 - 8 * to->size);
}

/* Values as they are stored: byte b of value i is at i * step + b * plane. */
struct values {
    const uint8_t *bytes;
    size_t step, plane;
    const struct dtype *from, *to;
    const char *field;
    int rotated; /* left by one bit */
};

static uint64_t value_at(dcz *d, const struct values *v, size_t i) {
    uint64_t bits = 0;
    for (unsigned b = 0; b < v->from->size; b++)
        bits |= (uint64_t)v->bytes[i * v->step + b * v->plane] << 8 * b;
    if (v->rotated)
        bits = bits >> 1 | (bits & 1) << (8 * v->from->size - 1);
    return widened(d, bits, v->from, v->to, v->field);
}

static const struct dtype *stored_type(dcz *d, unsigned type, const struct dtype *to, const char *field) {
    if (type == 0)
        return to;
    const struct dtype *from = &DTYPES[type < 20 ? type : 0];
    int floats = from->kind == 'f' && (to == FLOAT32 || to == FLOAT64);
    int integers = (from->kind == 'i' || from->kind == 'u') && (to->kind == 'i' || to->kind == 'u');
    must(d, (floats || integers) && from->size < to->size, field, "of a type that is not widened to the dtype");
    return from;
}

/* All of `in` are planes of count values. */
static struct values read_planes(dcz *d, struct span in, size_t count, const struct dtype *from, const char *field) {
    struct values v = {in.at, 1, count, from, from, field, 0};
    /* Deflate makes at most 258 bytes of two bits. */
    must(d, count <= SIZE_MAX / 16 && count * from->size / 1032 <= left(in), field, "deflate: fewer bytes than can be");
    uint8_t *planes = hold(d, count, from->size);
    inflate(d, in, planes, count * from->size, field);
    v.bytes = planes;
    return v;
}

/* An Array of values, widened, `to->size` bytes each. */
static uint8_t *read_array(dcz *d, struct span *in, uint64_t count, const struct dtype *to, const char *field) {
    unsigned type = u8(d, in, field);
    const struct dtype *from = stored_type(d, type & 127, to, field);
    if (count > d->max_bytes / to->size)
        fail(d, DCZ_TOO_LARGE, field, "too large: more than the bytes allowed");
    struct values v = {in->at, from->size, 1, from, to, field, 0};
    if (type & 128) {
        v = read_planes(d, counted(d, in, field), (size_t)count, from, field);
        v.to = to;
    } else {
        (void)part(d, in, count * from->size, field);
    }
    uint8_t *array = hold(d, (size_t)count, to->size);
    for (size_t i = 0; i < count; i++)
        put_le(array + i * to->size, value_at(d, &v, i), to->size);
    return array;
}

/* ---- Streams of symbols ------------------------------------------------------------------------------------------ */

struct stream {
    uint32_t k, t, tuples; /* symbols, symbols a tuple, K */
    unsigned coded, width;
    struct huffman table;
    const char *field;
};

/* A difference from the length before: ones and signs by turns, all signs alike. */
static unsigned next_length(dcz *d, struct bits *b, unsigned length, unsigned longest) {
    if (!take(d, b, 1))
        return length;
    unsigned shorter = take(d, b, 1);
    for (;;) {
        length = shorter ? length - 1 : length + 1;
        must(d, length >= 1 && length <= longest, b->field, "a code length is out of range");
        if (!take(d, b, 1))
            return length;
        must(d, take(d, b, 1) == shorter, b->field, "a code length goes up and down");
    }
}

static void read_table(dcz *d, struct span *in, struct stream *s) {
    struct bits b = begin_bits(*in, s->field);
    unsigned longest = s->width + 3 > 12 ? s->width + 3 : 12, length = take(d, &b, 5);
    uint8_t *lengths = hold(d, s->tuples, 1);
    must(d, length >= 1 && length <= longest, s->field, "a code length is out of range");
    for (uint32_t i = 0; i < s->tuples; i++)
        lengths[i] = (uint8_t)(length = i > 0 ? next_length(d, &b, length, longest) : length);
    *in = end_padded(d, &b);
    s->table.symbol = hold(d, s->tuples, sizeof *s->table.symbol);
    must(d, build(&s->table, lengths, s->tuples) == 0, s->field, "the code lengths make no whole code");
}

static void read_header(dcz *d, struct span *in, size_t k, struct stream *s, const char *field) {
    s->k = (uint32_t)k;
    s->field = field;
    s->tuples = 1;
    if (k == 1)
        return;
    unsigned how = u8(d, in, field);
    s->t = how & 31;
    s->coded = how >> 7;
    must(d, s->t > 0 && !(how & 0x60), field, "unknown");
    for (unsigned i = 0; i < s->t; i++) {
        s->tuples *= s->k;
        must(d, s->t == 1 || s->tuples <= 4096, field, "more than 4,096 tuples");
    }
    s->width = width(s->tuples);
    if (s->coded)
        read_table(d, in, s);
}

static void read_tuples(dcz *d, const struct stream *s, struct span in, uint16_t *out, size_t count) {
    struct bits b = begin_bits(in, s->field);
    for (size_t i = 0; i < count;) {
        uint32_t tuple = s->coded ? symbol(d, &s->table, &b) : take(d, &b, s->width);
        must(d, tuple < s->tuples, s->field, "a tuple that is none");
        for (uint32_t j = 0; j < s->t && i < count; j++, tuple /= s->k)
            out[i++] = (uint16_t)(tuple % s->k);
        must(d, tuple == 0, s->field, "the last tuple is not filled up with zeros");
    }
    end_exactly(d, &b);
}

static void read_stream(dcz *d, const struct stream *s, struct span *in, uint16_t *out, size_t count) {
    if (s->k == 1) {
        memset(out, 0, count * sizeof *out);
        return;
    }
    size_t tuples = (count + s->t - 1) / s->t, block = (size_t)BLOCK * s->t;
    if (!s->coded) {
        read_tuples(d, s, part(d, in, (tuples * s->width + 7) / 8, s->field), out, count);
        return;
    }
    struct span sizes = *in;
    for (size_t i = 0; i < tuples; i += BLOCK)
        (void)varint(d, in, s->field);
    for (size_t i = 0; i < count; i += block)
        read_tuples(d, s, part(d, in, varint(d, &sizes, s->field), s->field), out + i,
                    block < count - i ? block : count - i);
}

/* ---- A blob's head ----------------------------------------------------------------------------------------------- */

enum { DENSE, BITMAP, GAPS, FLAGS };
enum { RAW, CODEBOOK, GRID, PLANES };
enum { BLOCKS = 1, PATTERNS };
enum { PLAIN, STREAM, DEFLATED, ARITHMETIC };

struct plane {
    unsigned coding, context;
    uint32_t k;
    uint8_t used[256]; /* the bytes that symbols stand for */
    struct stream stream;
};

struct blob {
    const struct dtype *dtype;
    uint8_t *out;
    size_t elements, columns, kept_columns, kept;          /* n, C, C', N */
    unsigned positions, values, adaptive, masked, grouped; /* the form */
    uint8_t *rows_kept, *columns_kept;                     /* masks: a byte each */
    unsigned tiles, sparse, negative;                      /* kind; no stored zero; -0.0 is on the grid */
    size_t tile_rows, tile_columns, most;                  /* r, c, P */
    uint32_t alphabet;                                     /* K of patterns, else 2 */
    uint16_t *patterns;
    size_t group, groups, channels, rounds;                /* g, G, h, s */
    unsigned raw;                                          /* type */
    uint32_t k, high; /* codes are below k, what is coded of them below high */
    unsigned low, has_low;
    int32_t lowest;
    uint8_t *book; /* values of a codebook, scales of a grid */
    size_t longest_gap;
    struct stream places, codes;
    unsigned prior, near, context, code_context; /* near: n, context: v, code_context: v in tiles */
    struct plane planes[8];
    size_t at, row, column; /* the next element that masks keep: of all, and in the matrix */
    size_t next;            /* tile by tile */
};

static uint8_t *read_mask(dcz *d, struct span *in, size_t count, size_t *kept) {
    unsigned how = u8(d, in, "mask");
    must(d, how <= 2, "mask", "of an unknown kind");
    uint8_t *keep = hold(d, count, 1);
    memset(keep, 1, count);
    if (how == 1) {
        struct bits b = begin_bits(part(d, in, count / 8 + (count % 8 > 0), "mask"), "mask");
        for (size_t i = 0; i < count; i++)
            keep[i] = (uint8_t)take(d, &b, 1);
        end_exactly(d, &b);
    } else if (how == 2) {
        must(d, count <= MAX_COLUMNS, "mask", "too long for its kind");
        struct arithmetic a = begin_arithmetic(d, counted(d, in, "mask"), "mask");
        unsigned mark = d->holding;
        struct flags *f = begin_flags(d, keep, 1, count, 0, 1);
        for (size_t i = 0; i < count; i++)
            (void)read_flag(d, &a, f, i);
        end_arithmetic(d, &a);
        release(d, mark);
    }
    *kept = 0;
    for (size_t i = 0; i < count; i++)
        *kept += keep[i];
    must(d, *kept > 0, "mask", "keeps nothing");
    return keep;
}

/* From (row, column) to the next element that masks keep, or behind the last. */
static void settle(struct blob *b) {
    size_t rows = b->elements / b->columns;
    for (;; b->column++) {
        if (b->column == b->columns) {
            b->column = 0;
            b->row++;
        }
        while (b->column == 0 && b->row < rows && !b->rows_kept[b->row])
            b->row++;
        if (b->row == rows || b->columns_kept[b->column])
            break;
    }
    b->at = b->row * b->columns + b->column;
}

/* Of the element that is `next`, tile by tile. */
static size_t tile_place(const struct blob *b) {
    size_t size = b->tile_rows * b->tile_columns, across = b->columns / b->tile_columns;
    size_t tile = b->next / size, inner = b->next % size;
    size_t row = tile / across * b->tile_rows + inner / b->tile_columns;
    return row * b->columns + tile % across * b->tile_columns + inner % b->tile_columns;
}

static void advance(struct blob *b) {
    b->at++;
    b->next++;
    if (b->tiles && b->tile_rows > 1)
        b->at = tile_place(b);
    if (b->masked) {
        b->column++;
        settle(b);
    }
}

static void read_columns(dcz *d, struct span *in, struct blob *b) {
    size_t rows;
    b->kept = b->elements;
    if (b->positions != FLAGS && !b->adaptive && !b->masked && !b->tiles)
        return;
    b->columns = b->kept_columns = number(d, in, 1, b->elements, "columns");
    must(d, b->elements % b->columns == 0, "columns", "do not divide the elements");
    if (b->masked) {
        b->rows_kept = read_mask(d, in, b->elements / b->columns, &rows);
        b->columns_kept = read_mask(d, in, b->columns, &b->kept_columns);
        b->kept = rows * b->kept_columns;
        settle(b);
    }
    int coded = !b->tiles && (b->positions == FLAGS || b->adaptive);
    must(d, !coded || b->kept_columns <= MAX_COLUMNS, "columns", "too many");
}

static unsigned bits_set(uint32_t x) {
    unsigned count = 0;
    for (; x > 0; x &= x - 1)
        count++;
    return count;
}

static void read_tiles(dcz *d, struct span *in, struct blob *b) {
    size_t rows = b->elements / b->columns, most = b->tiles == PATTERNS ? 16 : 65536;
    b->alphabet = 2;
    b->tile_rows = number(d, in, 1, most, "rows of a tile");
    b->tile_columns = number(d, in, 1, most, "columns of a tile");
    size_t size = b->tile_rows * b->tile_columns;
    must(d, size >= 2 && size <= most, "tile", "of too few or too many elements");
    must(d, rows % b->tile_rows == 0 && b->columns % b->tile_columns == 0, "tile", "does not divide the matrix");
    must(d, b->columns <= MAX_TILE_ROW / b->tile_rows, "tile", "in too long a row");
    if (b->tiles == BLOCKS)
        return;
    b->most = number(d, in, 1, size - 1, "most elements of a tile");
    b->patterns = hold(d, (size_t)1 << size, sizeof *b->patterns);
    b->alphabet = 0;
    for (uint32_t pattern = 0; pattern < (uint32_t)1 << size; pattern++)
        if (bits_set(pattern) <= b->most)
            b->patterns[b->alphabet++] = (uint16_t)pattern;
}

static void read_groups(dcz *d, struct span *in, struct blob *b) {
    b->channels = b->rounds = 1;
    b->group = b->grouped ? number(d, in, 1, b->elements - 1, "elements a group") : b->elements;
    if (b->grouped > 1) {
        b->channels = number(d, in, 2, b->elements, "channels");
        b->rounds = number(d, in, 1, b->elements, "runs a group");
        size_t runs = b->elements / b->group, spans = runs / b->channels / b->rounds;
        int whole = spans > 0 && spans * b->channels * b->rounds * b->group == b->elements;
        must(d, whole, "channels", "do not divide the elements");
    }
    b->groups = (b->elements - 1) / (b->group * b->rounds) + 1;
}

/* Of the element that is next. */
static size_t group_of(const struct blob *b) {
    size_t run = b->at / b->group;
    return run / (b->channels * b->rounds) * b->channels + run % b->channels;
}

static uint64_t key(uint64_t bits, const struct dtype *dtype) {
    uint64_t top = (uint64_t)1 << (8 * dtype->size - 1), all = top | (top - 1);
    if (dtype->kind == 'u' || dtype->kind == 'b')
        return bits;
    return dtype->kind != 'i' && bits & top ? ~bits & all : bits ^ top;
}

static void read_codebook(dcz *d, struct span *in, struct blob *b) {
    unsigned size = b->dtype->size;
    size_t most = b->group * b->rounds < MAX_VALUES ? b->group * b->rounds : MAX_VALUES;
    b->k = (uint32_t)number(d, in, 0, most - 1, "codebook size") + 1;
    b->book = read_array(d, in, (uint64_t)b->groups * b->k, b->dtype, "codebook");
    uint64_t before = 0;
    for (size_t i = 0; i < b->groups * b->k; i++) {
        uint64_t bits = get_le(b->book + i * size, size), now = key(bits, b->dtype);
        must(d, bits > 0 || !b->sparse, "codebook", "holds zero, which positions leave out");
        must(d, i % b->k == 0 || before < now || (before == now && b->grouped), "codebook", "does not ascend");
        before = now;
    }
}

static const struct dtype *scale_type(const struct blob *b) {
    return b->dtype == FLOAT64 ? FLOAT64 : FLOAT32;
}

static uint64_t grid_value(const struct blob *b, size_t group, int32_t integer) {
    const struct dtype *type = scale_type(b);
    uint64_t product = times(get_le(b->book + group * type->size, type->size), integer, type);
    return type == b->dtype ? product : rounded(taken_apart(product, type), b->dtype);
}

static int32_t grid_integer(const struct blob *b, uint32_t code) {
    int32_t integer = b->lowest + (int32_t)code;
    if (b->negative) /* 0 is -0.0 */
        return integer - (!b->sparse && integer > 0);
    return integer + (b->sparse && integer >= 0 && b->lowest <= 0);
}

static void read_grid(dcz *d, struct span *in, struct blob *b) {
    const struct dtype *type = scale_type(b);
    uint64_t infinity = (((uint64_t)1 << type->exponent) - 1) << type->mantissa;
    must(d, b->dtype->kind == 'f', "grid", "of a dtype that has none");
    int32_t z = (int32_t)number(d, in, 0, 2 * 65536, "grid's lowest integer");
    b->lowest = z % 2 ? -(z + 1) / 2 : z / 2;
    b->k = (uint32_t)number(d, in, 0, MAX_VALUES - 1, "grid size") + 1;
    int32_t highest = grid_integer(b, b->k - 1), least = b->lowest > 0 ? b->lowest : 1;
    must(d, highest <= 65536, "grid", "goes beyond 65,536");
    must(d, !b->negative || (b->lowest <= 0 && b->lowest + (int32_t)b->k > 0), "grid", "is without its -0.0");
    b->book = read_array(d, in, b->groups, type, "grid");
    for (size_t i = 0; i < b->groups; i++) {
        uint64_t bits = get_le(b->book + i * type->size, type->size);
        must(d, bits > 0 && bits < infinity, "grid", "a scale is not finite and above 0");
        int zero = highest >= least && grid_value(b, i, least) == 0;
        must(d, !b->sparse || !zero, "grid", "holds zero, which positions leave out");
    }
}

static void read_more(dcz *d, struct span *in, struct blob *b) {
    unsigned more = u8(d, in, "form");
    must(d, d->version > 1 && more >> 5 == 0 && (more >> 2 & 3) < 3, "form", "unknown");
    must(d, more > 0 || b->values == PLANES, "form", "longer than needed");
    must(d, !(more & 1) || b->grouped, "form", "channels without groups");
    must(d, !(more & 2) || b->values == GRID, "form", "-0.0 without a grid");
    b->grouped += more & 1;
    b->negative = more >> 1 & 1;
    b->tiles = more >> 2 & 3;
    b->has_low = more >> 4 & 1;
    must(d, !b->tiles || (!b->masked && b->positions != DENSE), "form", "tiles with masks, or dense");
    must(d, b->tiles != PATTERNS || b->positions != GAPS, "form", "patterns as gaps");
}

static void read_form(dcz *d, struct span *in, struct blob *b) {
    unsigned form = u8(d, in, "form");
    b->positions = form & 3;
    b->values = form >> 2 & 3;
    b->adaptive = form >> 4 & 1;
    b->masked = form >> 5 & 1;
    b->grouped = form >> 6 & 1;
    int coded = b->values == CODEBOOK || b->values == GRID;
    if (form >> 7)
        read_more(d, in, b);
    else
        must(d, b->values != PLANES, "form", "unknown");
    b->sparse = b->positions != DENSE && b->tiles != BLOCKS;
    must(d, coded || (!b->adaptive && !b->grouped && !b->has_low), "form", "adaptive codes or groups of raw values");
    if (b->tiles)
        return;
    must(d, !b->adaptive || b->positions == DENSE || b->positions == FLAGS, "form", "adaptive codes, not flags");
    must(d, b->adaptive || b->positions != FLAGS || !coded, "form", "flags beside other codes");
}

static void read_contexts(dcz *d, struct span *in, struct blob *b) {
    b->prior = u8(d, in, "prior");
    unsigned both = u8(d, in, "context");
    b->near = both & 3;
    b->context = both >> 2;
    int flags = b->positions == FLAGS && b->tiles != PATTERNS;
    int codes = b->tiles == PATTERNS || (b->adaptive && !b->tiles);
    must(d, b->near <= 2 && b->context <= 3, "context", "unknown");
    must(d, flags || (b->near == 0 && b->context != 1), "context", "of flags, without flags");
    must(d, codes || b->context == 0, "context", "of adaptive codes, without adaptive codes");
    must(d, b->tiles != PATTERNS || b->prior == 0, "context", "of flags, without flags");
}

static unsigned read_context(dcz *d, struct span *in) {
    unsigned context = u8(d, in, "context");
    must(d, context == 0 || context == 3, "context", "unknown");
    return context;
}

static void read_plane(dcz *d, struct span *in, struct plane *plane) {
    size_t kept;
    plane->coding = u8(d, in, "plane");
    must(d, plane->coding <= ARITHMETIC, "plane", "of an unknown coding");
    if (plane->coding == PLAIN || plane->coding == DEFLATED)
        return;
    unsigned mark = d->holding;
    const uint8_t *keep = read_mask(d, in, 256, &kept);
    for (unsigned byte = 0; byte < 256; byte++)
        if (keep[byte])
            plane->used[plane->k++] = (uint8_t)byte;
    release(d, mark);
    if (plane->coding == STREAM)
        read_header(d, in, plane->k, &plane->stream, "plane");
    else
        plane->context = read_context(d, in);
}

static void read_raw_head(dcz *d, struct span *in, struct blob *b) {
    b->raw = u8(d, in, "raw values");
    const struct dtype *from = stored_type(d, b->raw & 127, b->dtype, "raw values");
    if (b->values == RAW)
        return;
    must(d, b->raw < 128, "planes", "deflated together");
    must(d, from->kind == 'f' || from->kind == '8', "planes", "of values that are no floats");
    for (unsigned i = 0; i < from->size; i++)
        read_plane(d, in, &b->planes[i]);
}

static void read_head(dcz *d, struct span *in, struct blob *b) {
    read_form(d, in, b);
    read_columns(d, in, b);
    if (b->tiles)
        read_tiles(d, in, b);
    read_groups(d, in, b);
    if (b->values == RAW || b->values == PLANES)
        read_raw_head(d, in, b);
    else if (b->values == CODEBOOK)
        read_codebook(d, in, b);
    else
        read_grid(d, in, b);
    if (b->has_low) {
        b->low = u8(d, in, "low bits");
        must(d, b->low >= 1 && b->low <= 15 && (b->k - 1) >> b->low > 0, "low bits", "too few or too many");
    }
    b->high = b->k > 0 ? ((b->k - 1) >> b->low) + 1 : 0;
    if (b->positions == GAPS)
        b->longest_gap = number(d, in, 1, 65535, "longest gap");
    if (b->positions == GAPS)
        read_header(d, in, b->longest_gap + 1, &b->places, "stream of positions");
    if (b->positions == BITMAP)
        read_header(d, in, b->tiles ? b->alphabet : 2, &b->places, "stream of positions");
    if (b->k > 0 && !b->adaptive)
        read_header(d, in, b->high, &b->codes, "stream of codes");
    if (b->positions == FLAGS || (b->adaptive && !b->tiles))
        read_contexts(d, in, b);
    if (b->adaptive && b->tiles)
        b->code_context = read_context(d, in);
}

/* ---- Chunks ------------------------------------------------------------------------------------------------------ */

static void put(struct blob *b, uint64_t bits) {
    put_le(b->out + b->at * b->dtype->size, bits, b->dtype->size);
}

static void put_code(struct blob *b, uint32_t code) {
    size_t group = b->grouped ? group_of(b) : 0, size = b->dtype->size;
    if (b->negative && b->lowest + (int32_t)code == 0)
        put(b, (uint64_t)1 << (8 * size - 1));
    else if (b->values == CODEBOOK)
        memcpy(b->out + b->at * size, b->book + (group * b->k + code) * size, size);
    else
        put(b, grid_value(b, group, grid_integer(b, code)));
}

static void read_gaps(dcz *d, const struct blob *b, struct span *in, uint16_t *symbols, uint8_t *flag,
                      size_t elements) {
    size_t count = number(d, in, 0, elements, "gaps"), at = 0;
    read_stream(d, &b->places, in, symbols, count);
    memset(flag, 0, elements);
    for (size_t i = 0; i < count; i++) {
        unsigned stored = symbols[i] < b->longest_gap;
        must(d, symbols[i] + stored <= elements - at, "gaps", "pass the end");
        at += symbols[i];
        must(d, stored || i + 1 < count, "gaps", "the last stores nothing");
        if (stored)
            flag[at++] = 1;
    }
}

static void begin_codes(dcz *d, uint32_t k, unsigned context) {
    size_t contexts = context == 0 ? 1 : context == 1 ? 7 : 4, needed = contexts << width(k);
    if (needed > d->cells_room) {
        free(d->cells);
        d->cells = NULL;
        d->cells_room = 0;
        d->cells = checked(d, calloc(needed, sizeof *d->cells));
        d->cells_room = needed;
        d->epoch = 0;
    }
    if (++d->epoch == 0) {
        memset(d->cells, 0, d->cells_room * sizeof *d->cells);
        d->epoch = 1;
    }
}

static uint32_t read_code(dcz *d, uint32_t k, struct arithmetic *a, uint32_t s) {
    unsigned bit = width(k);
    uint32_t node = 1, leaves = (uint32_t)1 << bit;
    while (bit-- > 0) {
        struct cell *cell = &d->cells[s * leaves + node];
        node *= 2;
        if (((node + 1) << bit) - leaves >= k)
            continue;
        if (cell->epoch != d->epoch) {
            cell->epoch = d->epoch;
            cell->state = CELL(1 << 21, 1);
        }
        node += decide(d, a, &cell->state);
    }
    return node - leaves;
}

/* s; `y` of v = 2 or 3 */
static uint32_t code_context(const struct blob *b, const struct flags *f, uint32_t y) {
    if (b->context == 0)
        return 0;
    if (b->context > 1)
        return 4 * y / b->high;
    int32_t s = ((f->likely - f->log_all + 512) >> 3) - 512 / 8 + 3; /* 512: nothing negative is shifted */
    return (uint32_t)(s < 0 ? 0 : s > 6 ? 6 : s);
}

static uint32_t whole_code(dcz *d, const struct blob *b, uint32_t high, struct bits *low) {
    if (!b->low)
        return high;
    uint32_t code = high << b->low | take(d, low, b->low);
    must(d, code < b->k, "low bits", "of a code that is none");
    return code;
}

/* Flags, codes or both of a chunk, row by row; codes go to where they belong, flags into `flag`. */
static void read_rows(dcz *d, struct blob *b, struct span rest, uint8_t *flag, size_t elements) {
    struct span in = b->low ? counted(d, &rest, "flags and codes") : rest;
    struct arithmetic a = begin_arithmetic(d, in, b->adaptive ? "flags and codes" : "flags");
    size_t columns = b->kept_columns, rows = elements / columns;
    struct flags *f = flag != NULL ? begin_flags(d, flag, rows, columns, b->prior, b->near) : NULL;
    uint16_t *code_above = NULL;
    uint32_t last = b->high / 2;
    struct bits low = begin_bits(rest, "low bits");
    if (b->adaptive)
        begin_codes(d, b->high, b->context);
    if (b->context == 2) {
        code_above = hold(d, columns, sizeof *code_above);
        for (size_t j = 0; j < columns; j++)
            code_above[j] = (uint16_t)last;
    }
    for (size_t row = 0; row < rows; row++) {
        if (f != NULL)
            begin_row(f, row);
        for (size_t j = 0; j < columns; j++) {
            unsigned stored = f == NULL || read_flag(d, &a, f, j);
            if (!b->adaptive)
                continue;
            if (stored) {
                last = read_code(d, b->high, &a, code_context(b, f, code_above != NULL ? code_above[j] : last));
                if (code_above != NULL)
                    code_above[j] = (uint16_t)last;
                put_code(b, whole_code(d, b, last, &low));
            }
            advance(b);
        }
    }
    end_arithmetic(d, &a);
    if (b->low)
        end_exactly(d, &low);
}

/* Codes below k of a matrix, without flags. */
static void read_coded(dcz *d, struct span in, uint16_t *out, size_t rows, size_t columns, uint32_t k, unsigned context,
                       const char *field) {
    if (rows * columns == 0) {
        must(d, left(in) == 0, field, "bytes of no symbols");
        return;
    }
    struct arithmetic a = begin_arithmetic(d, in, field);
    uint32_t last = k / 2;
    begin_codes(d, k, context);
    for (size_t i = 0; i < rows * columns; i++) {
        uint32_t y = context == 2 ? (i < columns ? k / 2 : out[i - columns]) : last;
        last = read_code(d, k, &a, context > 0 ? 4 * y / k : 0);
        out[i] = (uint16_t)last;
    }
    end_arithmetic(d, &a);
}

static void read_plane_bytes(dcz *d, const struct plane *plane, struct span *in, uint8_t *out, size_t count) {
    if (plane->coding == PLAIN) {
        struct span bytes = part(d, in, count, "plane");
        if (count > 0)
            memcpy(out, bytes.at, count);
        return;
    }
    if (plane->coding == DEFLATED) {
        struct span bytes = counted(d, in, "plane");
        must(d, count / 1032 <= left(bytes), "plane", "deflate: fewer bytes than can be");
        inflate(d, bytes, out, count, "plane");
        return;
    }
    unsigned mark = d->holding;
    uint16_t *symbols = hold(d, count, sizeof *symbols);
    if (plane->coding == STREAM) {
        read_stream(d, &plane->stream, in, symbols, count);
    } else {
        struct span bytes = counted(d, in, "plane");
        memset(symbols, 0, count * sizeof *symbols);
        read_coded(d, bytes, symbols, 1, plane->k > 1 ? count : 0, plane->k, plane->context, "plane");
    }
    for (size_t i = 0; i < count; i++)
        out[i] = plane->used[symbols[i]];
    release(d, mark);
}

static struct values read_parted(dcz *d, const struct blob *b, struct span *in, size_t count,
                                 const struct dtype *from) {
    uint8_t *bytes = hold(d, count, from->size);
    struct values v = {bytes, 1, count, from, from, "planes", 1};
    for (unsigned i = 0; i < from->size; i++)
        read_plane_bytes(d, &b->planes[i], in, bytes + (from->size - 1 - i) * count, count);
    must(d, left(*in) == 0, "planes", "bytes behind the last");
    return v;
}

static void read_raw(dcz *d, struct blob *b, struct span in, const uint8_t *flag, size_t elements, size_t count) {
    const struct dtype *from = stored_type(d, b->raw & 127, b->dtype, "raw values");
    struct values v = {in.at, from->size, 1, from, b->dtype, "raw values", 0};
    if (b->values == PLANES)
        v = read_parted(d, b, &in, count, from);
    else if (b->raw & 128)
        v = read_planes(d, in, count, from, "raw values");
    else
        must(d, left(in) == count * from->size, "raw values", "too few or too many bytes");
    v.to = b->dtype;
    for (size_t i = 0, next = 0; i < elements; i++, advance(b)) {
        if (flag != NULL && !flag[i])
            continue;
        uint64_t bits = value_at(d, &v, next++);
        must(d, bits > 0 || !b->sparse, "raw values", "zero, which positions leave out");
        put(b, bits);
    }
}

static void read_codes(dcz *d, struct blob *b, struct span in, const uint8_t *flag, size_t elements, size_t count) {
    uint16_t *codes = hold(d, count, sizeof *codes);
    if (b->adaptive) {
        struct span code = b->low ? counted(d, &in, "codes") : part(d, &in, left(in), "codes");
        read_coded(d, code, codes, 1, count, b->high, b->code_context, "codes");
    } else {
        read_stream(d, &b->codes, &in, codes, count);
    }
    struct bits low = begin_bits(in, "low bits");
    must(d, b->low || left(in) == 0, "chunk", "bytes behind its end");
    for (size_t i = 0; i < count; i++)
        codes[i] = (uint16_t)whole_code(d, b, codes[i], &low);
    if (b->low)
        end_exactly(d, &low);
    for (size_t i = 0, next = 0; i < elements; i++, advance(b))
        if (flag == NULL || flag[i])
            put_code(b, codes[next++]);
}

static void read_tile_flags(dcz *d, const struct blob *b, struct span in, uint16_t *symbols, size_t count) {
    size_t across = b->columns / b->tile_columns, rows = count / across;
    if (b->tiles == PATTERNS) {
        read_coded(d, in, symbols, rows, across, b->alphabet, b->context, "patterns");
        return;
    }
    struct arithmetic a = begin_arithmetic(d, in, "flags");
    struct flags *f = begin_flags(d, hold(d, count, 1), rows, across, b->prior, b->near);
    for (size_t row = 0, i = 0; row < rows; row++) {
        begin_row(f, row);
        for (size_t j = 0; j < across; j++)
            symbols[i++] = (uint16_t)read_flag(d, &a, f, j);
    }
    end_arithmetic(d, &a);
}

/* Of elements in their order, tile by tile. */
static uint8_t *read_tile_positions(dcz *d, const struct blob *b, struct span *in, size_t elements) {
    size_t size = b->tile_rows * b->tile_columns, count = elements / size;
    uint8_t *flag = hold(d, elements, 1), *gaps = b->positions == GAPS ? hold(d, count, 1) : NULL;
    uint16_t *symbols = hold(d, count, sizeof *symbols);
    if (b->positions == FLAGS)
        read_tile_flags(d, b, counted(d, in, "flags"), symbols, count);
    else if (b->positions == GAPS)
        read_gaps(d, b, in, symbols, gaps, count);
    else
        read_stream(d, &b->places, in, symbols, count);
    for (size_t i = 0; i < count; i++) {
        unsigned stored = gaps != NULL ? gaps[i] : symbols[i];
        for (size_t j = 0; j < size; j++)
            flag[i * size + j] = (uint8_t)(b->tiles == BLOCKS ? stored : (unsigned)b->patterns[stored] >> j & 1u);
    }
    return flag;
}

/* As bytes, 1 is stored; NULL where all are. */
static uint8_t *read_positions(dcz *d, struct blob *b, struct span *in, size_t elements) {
    if (b->positions == DENSE)
        return NULL;
    if (b->tiles)
        return read_tile_positions(d, b, in, elements);
    uint8_t *flag = hold(d, elements, 1);
    if (b->positions == FLAGS) {
        read_rows(d, b, counted(d, in, "flags"), flag, elements);
        return flag;
    }
    uint16_t *symbols = hold(d, elements, sizeof *symbols);
    if (b->positions == GAPS) {
        read_gaps(d, b, in, symbols, flag, elements);
        return flag;
    }
    read_stream(d, &b->places, in, symbols, elements);
    for (size_t i = 0; i < elements; i++)
        flag[i] = (uint8_t)symbols[i];
    return flag;
}

static void read_chunk(dcz *d, struct blob *b, struct span in, size_t elements) {
    unsigned mark = d->holding;
    if (b->adaptive && !b->tiles) {
        read_rows(d, b, in, b->positions == FLAGS ? hold(d, elements, 1) : NULL, elements);
    } else {
        uint8_t *flag = read_positions(d, b, &in, elements);
        size_t count = flag != NULL ? 0 : elements;
        for (size_t i = 0; flag != NULL && i < elements; i++)
            count += flag[i];
        if (b->values == RAW || b->values == PLANES)
            read_raw(d, b, in, flag, elements, count);
        else
            read_codes(d, b, in, flag, elements, count);
    }
    release(d, mark);
}

/* N elements in chunks of so many, the last may be shorter. */
static size_t chunk_elements(const struct blob *b) {
    if (b->tiles) {
        size_t row = b->tile_rows * b->columns, rows = ((size_t)1 << 20) / row;
        return (rows > 0 ? rows : 1) * row;
    }
    if (b->positions != FLAGS && !b->adaptive)
        return (size_t)1 << 20;
    size_t rows = ((size_t)1 << 22) / b->kept_columns;
    return (rows > 0 ? rows : 1) * b->kept_columns;
}

static void read_blob(dcz *d, struct blob *b, struct span in) {
    read_head(d, &in, b);
    size_t most = chunk_elements(b), chunks = (b->kept - 1) / most + 1;
    struct span sizes = in;
    for (size_t i = 0; chunks > 1 && i < chunks; i++)
        (void)varint(d, &in, "chunk");
    for (size_t done = 0; done < b->kept; done += most) {
        uint64_t size = chunks > 1 ? varint(d, &sizes, "chunk") : left(in);
        read_chunk(d, b, part(d, &in, size, "chunk"), most < b->kept - done ? most : b->kept - done);
    }
    must(d, left(in) == 0, "blob", "bytes behind its last chunk");
}

/* ---- The index --------------------------------------------------------------------------------------------------- */

/* Bytes of a character whose first byte this is; 0 where none begins so. */
static unsigned utf8_length(unsigned lead) {
    return lead < 0x80 ? 1 : lead < 0xC2 ? 0 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : lead < 0xF5 ? 4 : 0;
}

/* Strictly: no longer form than needed, no surrogate, nothing above U+10FFFF, nothing cut short. */
static int is_utf8(struct span text) {
    static const uint32_t LEAST[5] = {0, 0, 0x80, 0x800, 0x10000};
    while (text.at < text.end) {
        unsigned length = utf8_length(*text.at);
        if (length == 0 || length > left(text))
            return 0;
        uint32_t c = length == 1 ? *text.at : *text.at & 0x7Fu >> length;
        for (unsigned i = 1; i < length; i++) {
            if (text.at[i] >> 6 != 2)
                return 0;
            c = c << 6 | (text.at[i] & 0x3F);
        }
        if (c < LEAST[length] || c > 0x10FFFF || c >> 11 == 0xD800 >> 11)
            return 0;
        text.at += length;
    }
    return 1;
}

static void read_name(dcz *d, struct span *in, struct tensor *tensor, const struct tensor *before) {
    size_t shared = number(d, in, 0, before != NULL ? before->name_length : 0, "name");
    struct span own = counted(d, in, "name");
    size_t length = shared + left(own), needed = d->names_used + length + 1, zeros = (size_t)(tensor - d->tensors) + 1;
    if (length > MAX_NAMES || needed - zeros > MAX_NAMES)
        fail(d, DCZ_TOO_LARGE, "name", "too large: more than 100,000,000 bytes of names");
    if (needed > d->names_room) {
        d->names = checked(d, realloc(d->names, 2 * needed));
        d->names_room = 2 * needed;
    }
    char *name = d->names + d->names_used;
    if (shared > 0)
        memcpy(name, d->names + before->name, shared);
    if (left(own) > 0)
        memcpy(name + shared, own.at, left(own));
    name[length] = 0;
    tensor->name = d->names_used;
    tensor->name_length = length;
    d->names_used = needed;
    struct span text = {(const uint8_t *)name, (const uint8_t *)name + length};
    must(d, is_utf8(text), "name", "not UTF-8");
}

static void read_shape(dcz *d, struct span *in, struct tensor *tensor) {
    uint64_t most = ((uint64_t)1 << 62) / tensor->dtype->size, product = 1;
    int empty = 0;
    tensor->dimensions = (unsigned)number(d, in, 0, DCZ_MAX_DIMENSIONS, "dimensions");
    tensor->shape = in->at;
    for (unsigned i = 0; i < tensor->dimensions; i++) {
        uint64_t dimension = varint(d, in, "shape");
        empty |= dimension == 0;
        must(d, dimension <= most / product, "shape", "more than 2^62 bytes");
        product *= dimension > 0 ? dimension : 1;
    }
    if (!empty && product > d->max_bytes / tensor->dtype->size)
        fail(d, DCZ_TOO_LARGE, "shape", "too large: more than the bytes allowed");
    tensor->elements = empty ? 0 : (size_t)product;
}

static void read_reference(dcz *d, struct span *in, struct tensor *tensor, size_t place) {
    struct tensor own = *tensor;
    size_t earlier = (size_t)varint(d, in, "reference");
    must(d, earlier < place, "reference", "to no earlier tensor");
    must(d, d->tensors[earlier].same_as == earlier, "reference", "to a tensor that is one itself");
    *tensor = d->tensors[earlier];
    tensor->name = own.name;
    tensor->name_length = own.name_length;
}

static void read_tensor(dcz *d, struct span *in, size_t place, struct span *blobs) {
    struct tensor *tensor = &d->tensors[place];
    read_name(d, in, tensor, place > 0 ? tensor - 1 : NULL);
    unsigned dtype = u8(d, in, "dtype");
    if (dtype == 0) {
        read_reference(d, in, tensor, place);
        return;
    }
    must(d, dtype < 20 && DTYPES[dtype].size > 0, "dtype", "unknown");
    tensor->dtype = &DTYPES[dtype];
    tensor->same_as = place;
    read_shape(d, in, tensor);
    uint64_t size = varint(d, in, "blob");
    tensor->crc = (uint32_t)get_le(part(d, in, 4, "blob").at, 4);
    must(d, tensor->elements > 0 || size == 0, "blob", "not empty, and the tensor is");
    if (size > left(*blobs))
        fail(d, DCZ_TRUNCATED, "blob", "truncated: the file ends before it");
    tensor->blob = part(d, blobs, size, "blob");
}

static void read_tensors(dcz *d, struct span *in, struct span *blobs) {
    uint64_t room = d->max_bytes;
    /* A tensor takes at least four bytes of index. */
    size_t count = number(d, in, 0, left(*in) / 4, "number of tensors");
    if (count > MAX_TENSORS)
        fail(d, DCZ_TOO_LARGE, "number of tensors", "too large: more than 1,048,576");
    d->tensors = checked(d, calloc(count > 0 ? count : 1, sizeof *d->tensors));
    d->count = count;
    for (size_t i = 0; i < count; i++) {
        d->at = (ptrdiff_t)i;
        read_tensor(d, in, i, blobs);
        if (dcz_bytes(d, i) > room)
            fail(d, DCZ_TOO_LARGE, "shape", "too large: more than the bytes allowed");
        room -= dcz_bytes(d, i);
    }
    d->at = NO_TENSOR;
}

static int compare_bytes(const void *a, size_t a_length, const void *b, size_t b_length) {
    size_t common = a_length < b_length ? a_length : b_length;
    int order = common > 0 ? memcmp(a, b, common) : 0;
    return order != 0 ? order : (a_length > b_length) - (a_length < b_length);
}

static void check_metadata(dcz *d, struct span in) {
    struct span last = {NULL, NULL};
    must(d, left(in) <= MAX_METADATA, "metadata", "more than 1,048,576 bytes");
    while (left(in) > 0) {
        struct span key = counted(d, &in, "metadata"), text = counted(d, &in, "metadata");
        must(d, is_utf8(key) && is_utf8(text), "metadata", "not UTF-8");
        must(d, last.at == NULL || compare_bytes(last.at, left(last), key.at, left(key)) < 0, "metadata",
             "keys do not ascend");
        last = key;
    }
}

static void read_extensions(dcz *d, struct span *in) {
    uint64_t least = 0;
    while (left(*in) > 0) {
        uint64_t tag = varint(d, in, "extension");
        struct span record = counted(d, in, "extension");
        must(d, tag >= least, "extension", "tags do not ascend");
        must(d, tag % 2 == 0, "extension", "an odd tag, which is not known");
        if (tag == METADATA) {
            check_metadata(d, record);
            d->metadata = record;
        }
        d->has_edits |= tag == EDITS;
        least = tag + 1;
    }
}

static int compare_names(const dcz *d, size_t a, size_t b) {
    const struct tensor *x = &d->tensors[a], *y = &d->tensors[b];
    return compare_bytes(d->names + x->name, x->name_length, d->names + y->name, y->name_length);
}

/* By a merge sort of its own: a C library's qsort may take squared time, and so may a hash that is known. */
static void check_names_differ(dcz *d) {
    size_t *from = hold(d, d->count, sizeof *from), *to = hold(d, d->count, sizeof *to);
    for (size_t i = 0; i < d->count; i++)
        from[i] = i;
    for (size_t run = 1; run < d->count; run *= 2) {
        for (size_t low = 0, middle, high; low < d->count; low = high) {
            middle = run < d->count - low ? low + run : d->count;
            high = run < d->count - middle ? middle + run : d->count;
            for (size_t a = low, b = middle, at = low; at < high; at++) {
                int order = a == middle ? 1 : b == high ? -1 : compare_names(d, from[a], from[b]);
                d->at = (ptrdiff_t)from[b < high ? b : a];
                must(d, order != 0, "name", "that of another tensor too");
                to[at] = from[order < 0 ? a++ : b++];
            }
        }
        size_t *sorted = to;
        to = from;
        from = sorted;
    }
    d->at = NO_TENSOR;
}

static void read_file(dcz *d, struct span in) {
    static const uint8_t MAGIC[4] = {0x89, 'D', 'C', 'Z'};
    const uint8_t *start = in.at;
    if (left(in) == 0 || memcmp(start, MAGIC, left(in) < 4 ? left(in) : 4) != 0)
        fail(d, DCZ_NOT_DCZ, "magic", "not a .dcz file");
    if (left(in) > 4 && start[4] != 1 && start[4] != 2)
        fail(d, DCZ_VERSION, "version", "unknown: only 1 and 2 are read here");
    if (left(in) < 14 || get_le(start + 6, 4) > left(in) - 14)
        fail(d, DCZ_TRUNCATED, "index", "truncated: the file ends before it");
    if (get_le(start + 6, 4) > MAX_INDEX)
        fail(d, DCZ_TOO_LARGE, "index", "too large: more than 2^28 bytes");
    struct span prefix = part(d, &in, 10, "prefix");
    uint64_t crc = get_le(part(d, &in, 4, "prefix").at, 4);
    d->version = start[4];
    struct span index = part(d, &in, get_le(start + 6, 4), "index");
    if (crc32(d, crc32(d, 0, prefix), index) != crc)
        fail(d, DCZ_CHECKSUM, "index", "checksum does not match");
    must(d, start[5] <= 3, "coder", "above 3");
    read_tensors(d, &index, &in);
    read_extensions(d, &index);
    must(d, left(in) == 0, "file", "bytes behind its last blob");
    check_names_differ(d);
}

/* ---- The library ------------------------------------------------------------------------------------------------- */

struct work {
    size_t tensor;
    void *out;
};

static void decode(dcz *d, const struct work *work) {
    const struct tensor *tensor = &d->tensors[work->tensor];
    if (crc32(d, 0, tensor->blob) != tensor->crc)
        fail(d, DCZ_CHECKSUM, "blob", "checksum does not match");
    if (tensor->elements == 0)
        return;
    struct blob *blob = hold(d, 1, sizeof *blob);
    memset(blob, 0, sizeof *blob);
    memset(work->out, 0, dcz_bytes(d, work->tensor));
    blob->dtype = tensor->dtype;
    blob->elements = tensor->elements;
    blob->out = work->out;
    read_blob(d, blob, tensor->blob);
}

/* Every error comes back to here; a function of its own, for no variable of it lives across the jump. */
static dcz_status guarded(dcz *d, const struct span *file, const struct work *work, dcz_error *error) {
    dcz_error unseen;
    d->error = error != NULL ? error : &unseen;
    say(d->error, DCZ_OK, "");
    if (setjmp(d->escape) == 0) {
        if (file != NULL)
            read_file(d, *file);
        else
            decode(d, work);
    }
    release(d, 0);
    return d->error->status;
}

dcz *dcz_open(const void *bytes, size_t size, uint64_t max_bytes, dcz_error *error) {
    struct span file = {bytes, (const uint8_t *)bytes + size};
    dcz *d = calloc(1, sizeof *d);
    if (d == NULL) {
        say(error, DCZ_NO_MEMORY, "memory: not enough");
        return NULL;
    }
    fill_tables(d);
    d->at = NO_TENSOR;
    d->max_bytes = max_bytes < SIZE_MAX / 16 ? max_bytes : SIZE_MAX / 16;
    if (guarded(d, &file, NULL, error) == DCZ_OK)
        return d;
    dcz_close(d);
    return NULL;
}

dcz_status dcz_decode(dcz *file, size_t tensor, void *out, dcz_error *error) {
    struct work work = {file->tensors[tensor].same_as, out};
    file->at = (ptrdiff_t)work.tensor;
    return guarded(file, NULL, &work, error);
}

size_t dcz_count(const dcz *file) {
    return file->count;
}

const char *dcz_name(const dcz *file, size_t tensor, size_t *length) {
    *length = file->tensors[tensor].name_length;
    return file->names + file->tensors[tensor].name;
}

const char *dcz_dtype(const dcz *file, size_t tensor) {
    return file->tensors[tensor].dtype->name;
}

/* A checked varint. */
static uint64_t next_number(const uint8_t **at) {
    uint64_t value = **at & 127;
    for (unsigned shift = 7; *(*at)++ & 128; shift += 7)
        value |= (uint64_t)(**at & 127) << shift;
    return value;
}

unsigned dcz_shape(const dcz *file, size_t tensor, uint64_t shape[DCZ_MAX_DIMENSIONS]) {
    const uint8_t *at = file->tensors[tensor].shape;
    for (unsigned i = 0; i < file->tensors[tensor].dimensions; i++)
        shape[i] = next_number(&at);
    return file->tensors[tensor].dimensions;
}

size_t dcz_bytes(const dcz *file, size_t tensor) {
    return file->tensors[tensor].elements * file->tensors[tensor].dtype->size;
}

size_t dcz_same_as(const dcz *file, size_t tensor) {
    return file->tensors[tensor].same_as;
}

static const char *next_text(const uint8_t **at, size_t *length) {
    *length = (size_t)next_number(at);
    *at += *length;
    return (const char *)*at - *length;
}

int dcz_next_metadata(const dcz *file, size_t *at, dcz_metadata *found) {
    const uint8_t *next;
    if (*at >= left(file->metadata))
        return 0;
    next = file->metadata.at + *at;
    found->key = next_text(&next, &found->key_length);
    found->text = next_text(&next, &found->text_length);
    *at = (size_t)(next - file->metadata.at);
    return 1;
}

void dcz_close(dcz *file) {
    if (file == NULL)
        return;
    release(file, 0);
    free(file->cells);
    free(file->names);
    free(file->tensors);
    free(file);
}

/* ---- The program ------------------------------------------------------------------------------------------------- */

#ifndef DCZ_NO_MAIN

enum { SOUND = 0, NO_LUCK = 1, UNSOUND = 2 };

struct text {
    char *bytes;
    size_t used, room;
    int failed;
};

static int complain(int code, const char *path, const char *what) {
    fprintf(stderr, "dcz-decode: %s: %s\n", path, what);
    return code;
}

static void append(struct text *t, const char *bytes, size_t size) {
    if (size > t->room - t->used) {
        size_t room = 2 * (t->used + size);
        char *moved = t->failed ? NULL : realloc(t->bytes, room);
        t->failed |= moved == NULL;
        if (t->failed)
            return;
        t->bytes = moved;
        t->room = room;
    }
    memcpy(t->bytes + t->used, bytes, size);
    t->used += size;
}

static void append_number(struct text *t, const char *before, uint64_t number) {
    char line[64];
    int size = snprintf(line, sizeof line, "%s%" PRIu64, before, number);
    append(t, line, (size_t)size);
}

static void append_json(struct text *t, const char *name, size_t length) {
    append(t, "\"", 1);
    for (size_t i = 0; i < length; i++) {
        char escaped[8];
        int c = (unsigned char)name[i];
        int size = c < ' ' ? snprintf(escaped, sizeof escaped, "\\u%04x", (unsigned)c)
                           : snprintf(escaped, sizeof escaped, c == '"' || c == '\\' ? "\\%c" : "%c", c);
        append(t, escaped, (size_t)size);
    }
    append(t, "\"", 1);
}

static void append_metadata(struct text *t, const dcz *file) {
    dcz_metadata one;
    for (size_t at = 0, first = 1; dcz_next_metadata(file, &at, &one); first = 0) {
        append(t, first ? "\"__metadata__\":{" : ",", first ? 16 : 1);
        append_json(t, one.key, one.key_length);
        append(t, ":", 1);
        append_json(t, one.text, one.text_length);
    }
    if (left(file->metadata) > 0)
        append(t, "},", dcz_count(file) > 0 ? 2 : 1);
}

/* The head of a safetensors file, with its length before it. */
static struct text safetensors_head(const dcz *file) {
    struct text t = {NULL, 0, 0, 0};
    uint64_t shape[DCZ_MAX_DIMENSIONS], at = 0;
    append(&t, "        {", 9);
    append_metadata(&t, file);
    for (size_t i = 0; i < dcz_count(file); i++) {
        size_t length;
        const char *name = dcz_name(file, i, &length), *dtype = dcz_dtype(file, i);
        append(&t, ",", i > 0);
        append_json(&t, name, length);
        append(&t, ":{\"dtype\":\"", 11);
        append(&t, dtype, strlen(dtype));
        append(&t, "\",\"shape\":[", 11);
        unsigned dimensions = dcz_shape(file, i, shape);
        for (unsigned j = 0; j < dimensions; j++)
            append_number(&t, j > 0 ? "," : "", shape[j]);
        append_number(&t, "],\"data_offsets\":[", at);
        append_number(&t, ",", at += dcz_bytes(file, i));
        append(&t, "]}", 2);
    }
    append(&t, "}", 1);
    if (!t.failed)
        put_le((uint8_t *)t.bytes, t.used - 8, 8);
    return t;
}

/* Decodes all and, if there is `out`, writes it. A tensor that others equal stays in memory until the last of them. */
static int write_tensors(dcz *file, const char *path, FILE *out, const char *out_path, void **kept, size_t *last_use) {
    dcz_error error;
    for (size_t i = 0; i < dcz_count(file); i++)
        last_use[dcz_same_as(file, i)] = i;
    for (size_t i = 0; i < dcz_count(file); i++) {
        size_t from = dcz_same_as(file, i), bytes = dcz_bytes(file, i);
        if (from == i) {
            kept[i] = malloc(bytes > 0 ? bytes : 1);
            if (kept[i] == NULL)
                return complain(NO_LUCK, path, "memory: not enough");
            if (dcz_decode(file, i, kept[i], &error) != DCZ_OK)
                return complain(error.status == DCZ_NO_MEMORY ? NO_LUCK : UNSOUND, path, error.text);
        }
        if (out != NULL && fwrite(kept[from], 1, bytes, out) != bytes)
            return complain(NO_LUCK, out_path, strerror(errno));
        if (out == NULL || last_use[from] == i) {
            free(kept[from]);
            kept[from] = NULL;
        }
    }
    return SOUND;
}

static int decode_all(dcz *file, const char *path, FILE *out, const char *out_path) {
    size_t count = dcz_count(file);
    void **kept = calloc(count + 1, sizeof *kept);
    size_t *last_use = calloc(count + 1, sizeof *last_use);
    int code = kept != NULL && last_use != NULL ? write_tensors(file, path, out, out_path, kept, last_use)
                                                : complain(NO_LUCK, path, "memory: not enough");
    for (size_t i = 0; kept != NULL && i < count; i++)
        free(kept[i]);
    free(kept);
    free(last_use);
    return code;
}

/* What nobody can foresee, where the system has such numbers. */
static uint64_t unforeseen(void) {
    uint64_t number = (uint64_t)time(NULL) ^ (uint64_t)clock() << 40, more;
    FILE *source = fopen("/dev/urandom", "rb");
    if (source != NULL && fread(&more, sizeof more, 1, source) == 1)
        number ^= more;
    if (source != NULL)
        (void)fclose(source);
    return number;
}

#ifdef DCZ_POSIX

static const char *volatile unfinished; /* the file to remove when a signal ends the program */

static void give_up(int number) {
    if (unfinished != NULL)
        (void)unlink(unfinished);
    (void)signal(number, SIG_DFL);
    (void)raise(number);
}

/* A new file, of nobody else's making: never what a link leads to. */
static FILE *create(const char *path) {
    int file = open(path, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW, 0666);
    FILE *out = file < 0 ? NULL : fdopen(file, "wb");
    if (out != NULL) {
        unfinished = path;
        (void)signal(SIGINT, give_up);
        (void)signal(SIGTERM, give_up);
        (void)signal(SIGHUP, give_up);
    }
    return out;
}

static int finish(FILE *out) {
    int synced = fflush(out) == 0 && (fsync(fileno(out)) == 0 || errno == EINVAL);
    return fclose(out) == 0 && synced;
}

/* A device or a pipe is not to be renamed over. */
static int replaceable(const char *path) {
    struct stat found;
    return lstat(path, &found) != 0 || S_ISREG(found.st_mode) || S_ISLNK(found.st_mode);
}

static void forget(void) {
    unfinished = NULL;
}

#else

static FILE *create(const char *path) {
    return fopen(path, "wbx");
}

static int finish(FILE *out) {
    return fclose(out) == 0;
}

static int replaceable(const char *path) {
    (void)path;
    return 1;
}

static void forget(void) {
}

#endif

/* Under the name `part_path` until it is whole. */
static int write_parts(dcz *file, const char *path, const char *out_path, const struct text *head, char *part_path) {
    FILE *out = create(part_path);
    if (out == NULL)
        return complain(NO_LUCK, out_path, strerror(errno));
    int code = fwrite(head->bytes, 1, head->used, out) == head->used ? decode_all(file, path, out, out_path)
                                                                      : complain(NO_LUCK, out_path, strerror(errno));
    if (!finish(out) && code == SOUND)
        code = complain(NO_LUCK, out_path, strerror(errno));
    if (code == SOUND && rename(part_path, out_path) != 0)
        code = complain(NO_LUCK, out_path, strerror(errno));
    if (code != SOUND)
        (void)remove(part_path);
    forget();
    return code;
}

static int write_safetensors(dcz *file, const char *path, const char *out_path) {
    size_t size = strlen(out_path) + sizeof ".0123456789abcdef.part", length;
    for (size_t i = 0; i < dcz_count(file); i++)
        if (strcmp(dcz_name(file, i, &length), "__metadata__") == 0 && length == 12)
            return complain(UNSOUND, path, "a tensor called '__metadata__' cannot be written as safetensors");
    if (!replaceable(out_path))
        return complain(NO_LUCK, out_path, "is there and no ordinary file");
    struct text head = safetensors_head(file);
    char *part_path = malloc(size);
    int code = NO_LUCK;
    if (head.failed || part_path == NULL) {
        (void)complain(code, path, "memory: not enough");
    } else if (head.used - 8 > MAX_HEAD) {
        code = complain(UNSOUND, path, "a safetensors header of more than 100,000,000 bytes, which nobody reads");
    } else {
        (void)snprintf(part_path, size, "%s.%016" PRIx64 ".part", out_path, unforeseen());
        code = write_parts(file, path, out_path, &head, part_path);
    }
    free(head.bytes);
    free(part_path);
    return code;
}

/* No more than `most` and a piece; where the first piece is no .dcz file's, that alone. */
static struct text read_all(const char *path, uint64_t most) {
    static char some[1 << 16];
    struct text t = {NULL, 0, 0, 0};
    FILE *in = fopen(path, "rb");
    if (in == NULL) {
        t.failed = errno;
        return t;
    }
    for (size_t size; !t.failed && t.used <= most && (size = fread(some, 1, sizeof some, in)) > 0;) {
        append(&t, some, size);
        if (!t.failed && memcmp(t.bytes, "\x89" "DCZ", t.used < 4 ? t.used : 4) != 0)
            break;
    }
    if (ferror(in))
        t.failed = EIO;
    (void)fclose(in);
    return t;
}

static int run(const char *path, const char *out_path, uint64_t max_bytes) {
    dcz_error error;
    errno = 0;
    uint64_t most = max_bytes < UINT64_MAX - MAX_INDEX ? max_bytes + MAX_INDEX : UINT64_MAX;
    struct text in = read_all(path, most);
    int code = SOUND;
    if (in.failed) {
        code = complain(NO_LUCK, path, errno ? strerror(errno) : "cannot be read");
    } else if (in.used > most) {
        code = complain(UNSOUND, path, "file: too large: more than the bytes allowed and 256 MiB");
    } else {
        dcz *file = dcz_open(in.used > 0 ? in.bytes : "", in.used, max_bytes, &error);
        if (file == NULL)
            code = complain(error.status == DCZ_NO_MEMORY ? NO_LUCK : UNSOUND, path, error.text);
        else
            code = out_path != NULL ? write_safetensors(file, path, out_path) : decode_all(file, path, NULL, NULL);
        if (code == SOUND && out_path != NULL && file->has_edits)
            (void)complain(code, path, "its edits, without which the tensors do not fit the model, are NOT written");
        dcz_close(file);
    }
    free(in.bytes);
    return code;
}

int main(int argc, char **argv) {
    const char *paths[2] = {NULL, NULL};
    unsigned long long max_bytes = 4ull << 30;
    int given = 0, wrong = 0;
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--max-bytes") == 0) {
            char *end = NULL;
            const char *digits = ++i < argc ? argv[i] : "";
            errno = 0;
            max_bytes = strtoull(digits, &end, 10);
            wrong |= *digits < '0' || *digits > '9' || *end != 0 || errno != 0;
        } else if (argv[i][0] == '-' || given == 2) {
            wrong = 1;
        } else {
            paths[given++] = argv[i];
        }
    }
    if (wrong || given == 0) {
        fputs("usage: dcz-decode [--max-bytes N] IN.dcz [OUT.safetensors]\n", stderr);
        return NO_LUCK;
    }
    return run(paths[0], paths[1], max_bytes);
}

#endif
