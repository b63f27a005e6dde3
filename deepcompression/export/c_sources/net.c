/* See net.h. The .dcz format is described in FORMAT.md of deep-compression; of it model.dcz has dense positions, bitmaps
 * and gaps; raw values, codebooks and grids; packed and Huffman-coded streams.
 */
#include "net.h"

enum { LONGEST = 13, FAST = 8, BLOCK = 16384, CHUNK = 1 << 20 }; /* LONGEST: of codes for at most 1,024 symbols */
enum { DENSE, BITMAP, GAPS };
enum { RAW, CODEBOOK, GRID };
enum { FLOAT32 = 1, FLOAT16 = 2, BFLOAT16 = 3 };

/* Bits, the first one lowest; zeros behind the end of the file. */
typedef struct {
    const uint8_t *at;
    uint32_t ahead;
    unsigned count;
} bits;

/* A stream of symbols below k, `tuple` of them coded as one of `alphabet`. */
typedef struct {
    bits in;
    uint32_t k, alphabet, held, in_block;
    unsigned tuple, width, coded, left;
    uint16_t counts[LONGEST + 1];
    uint16_t sorted[MODEL_SYMBOLS];
    uint16_t fast[1 << FAST]; /* by the next bits: symbol * 16 + length, 0 where the code is longer */
} stream;

/* The stored elements of a tensor, one after the other. */
typedef struct {
    stream where, what;
    const uint8_t *chunk, *lengths, *values; /* values: the next raw one, or the book */
    uint32_t at, elements, end;              /* the element that stands next; the chunk's end */
    uint32_t group, k, escape, gaps;         /* gaps: symbols that are left */
    int32_t lowest;
    unsigned form, type;
} reader;

static const uint8_t *file, *file_end;
static reader weights;
static net_value maps[MODEL_VALUES];
static net_number sums[MODEL_PLANE], pools[MODEL_OTHER], outputs[MODEL_OUTPUTS];

/* ---- Bytes and bits ---------------------------------------------------------------------------------------------- */

static uint32_t varint(const uint8_t **at) {
    uint32_t value = **at & 127u;
    for (unsigned shift = 7; *(*at)++ & 128; shift += 7)
        value |= (**at & 127u) << shift;
    return value;
}

static bits begin(const uint8_t *at) {
    bits b = {at, 0, 0};
    return b;
}

static void fill(bits *b) {
    for (; b->count <= 24 && b->at < file_end; b->count += 8)
        b->ahead |= (uint32_t)*b->at++ << b->count;
}

static void drop(bits *b, unsigned count) {
    b->ahead >>= count;
    b->count = b->count > count ? b->count - count : 0;
}

static uint32_t take(bits *b, unsigned count) {
    fill(b);
    uint32_t value = b->ahead & ((1u << count) - 1);
    drop(b, count);
    return value;
}

static unsigned size_of(unsigned type) {
#if MODEL_INTEGER
    (void)type;
    return 1;
#else
    return type == FLOAT32 ? 4 : 2;
#endif
}

#if MODEL_INTEGER

static net_number widened(unsigned type, const uint8_t *at) {
    (void)type;
    return *at < 128 ? *at : *at - 256;
}

#else

static float of_bits(uint32_t value) {
    union {
        uint32_t bits;
        float value;
    } both = {value};
    return both.value;
}

static float of_half(uint32_t half) {
    uint32_t exponent = half >> 10 & 31, rest = (half & 1023) << 13;
    float sign = half >> 15 ? -1.0f : 1.0f;
    if (exponent == 0)
        return sign * (float)(half & 1023) * 5.9604644775390625e-8f; /* 2^-24 */
    return sign * of_bits((exponent == 31 ? 255u << 23 : (exponent + 112) << 23) | rest);
}

static net_number widened(unsigned type, const uint8_t *at) {
    uint32_t low = at[0] | (uint32_t)at[1] << 8;
    if (type == FLOAT32)
        return of_bits(low | (uint32_t)at[2] << 16 | (uint32_t)at[3] << 24);
    return type == FLOAT16 ? of_half(low) : of_bits(low << 16);
}

#endif

/* ---- Streams ----------------------------------------------------------------------------------------------------- */

/* The table of code lengths: counts them, then sorts symbols by them. Gives what follows it. */
static const uint8_t *read_lengths(stream *s, const uint8_t *at, int sort) {
    uint16_t place[LONGEST + 2] = {0}, code[LONGEST + 2] = {0};
    bits b = begin(at);
    uint32_t length = take(&b, 5);
    for (unsigned i = 1; sort && i <= LONGEST; i++) {
        place[i + 1] = (uint16_t)(place[i] + s->counts[i]);
        code[i + 1] = (uint16_t)((code[i] + s->counts[i]) << 1);
    }
    for (uint32_t symbol = 0;;) {
        if (sort) {
            uint32_t mirror = 0, own = code[length]++;
            s->sorted[place[length]++] = (uint16_t)symbol;
            for (unsigned i = 0; i < length; i++)
                mirror |= (own >> i & 1) << (length - 1 - i);
            for (; length <= FAST && mirror < 1u << FAST; mirror += 1u << length)
                s->fast[mirror] = (uint16_t)(symbol << 4 | length);
        } else {
            s->counts[length]++;
        }
        if (++symbol == s->alphabet)
            return b.at - b.count / 8;
        while (take(&b, 1))
            length += take(&b, 1) ? -1u : 1u;
    }
}

/* Gives what follows the stream's header. */
static const uint8_t *read_header(stream *s, const uint8_t *at, uint32_t k) {
    s->k = s->alphabet = k;
    s->tuple = 1;
    s->coded = s->width = 0;
    if (k == 1)
        return at;
    s->tuple = *at & 31u;
    s->coded = *at++ >> 7;
    for (unsigned i = 1; i < s->tuple; i++)
        s->alphabet *= k;
    while (1u << s->width < s->alphabet)
        s->width++;
    if (!s->coded)
        return at;
    for (unsigned i = 0; i <= LONGEST; i++)
        s->counts[i] = 0;
    for (unsigned i = 0; i < 1 << FAST; i++)
        s->fast[i] = 0;
    (void)read_lengths(s, at, 0);
    return read_lengths(s, at, 1);
}

/* Begins so many symbols; gives what follows them. */
static const uint8_t *begin_stream(stream *s, const uint8_t *at, uint32_t symbols) {
    uint32_t tuples = (symbols + s->tuple - 1) / s->tuple, bytes = 0;
    s->left = s->in_block = 0;
    if (s->coded)
        for (uint32_t i = 0; i < tuples; i += BLOCK)
            bytes += varint(&at);
    else
        bytes = (uint32_t)(((uint64_t)tuples * s->width + 7) / 8);
    s->in = begin(at);
    return at + bytes;
}

static uint32_t decoded(stream *s) {
    if (s->in_block++ == BLOCK) { /* a block begins with a byte */
        drop(&s->in, s->in.count % 8);
        s->in_block = 1;
    }
    fill(&s->in);
    uint32_t entry = s->fast[s->in.ahead & ((1u << FAST) - 1)], code = 0, first = 0, at = 0;
    if (entry > 0) {
        drop(&s->in, entry & 15);
        return entry >> 4;
    }
    for (unsigned length = 1; length <= LONGEST; length++) {
        code = code << 1 | (s->in.ahead >> (length - 1) & 1);
        first <<= 1;
        if (code - first < s->counts[length]) {
            drop(&s->in, length);
            return s->sorted[at + code - first];
        }
        at += s->counts[length];
        first += s->counts[length];
    }
    return 0; /* no such file passes net_open */
}

static uint32_t next(stream *s) {
    if (s->left == 0) {
        s->held = s->coded ? decoded(s) : take(&s->in, s->width);
        s->left = s->tuple;
    }
    if (--s->left == 0)
        return s->held;
    uint32_t symbol = s->held % s->k;
    s->held /= s->k;
    return symbol;
}

/* ---- Tensors ----------------------------------------------------------------------------------------------------- */

/* How many of the chunk's elements are stored, at most; exactly where that matters: of codes in several blocks. */
static uint32_t stored(reader *r, const uint8_t *at, uint32_t symbols) {
    unsigned positions = r->form & 3;
    uint32_t found = 0;
    if (positions == DENSE || !r->what.coded || symbols <= BLOCK * r->what.tuple)
        return symbols;
    (void)begin_stream(&r->where, at, symbols);
    for (uint32_t i = 0; i < symbols; i++)
        found += positions == BITMAP ? next(&r->where) : next(&r->where) < r->escape;
    return found;
}

static void begin_chunk(reader *r) {
    const uint8_t *at = r->chunk, *behind = at;
    uint32_t symbols = r->elements - r->end < CHUNK ? r->elements - r->end : CHUNK;
    r->end += symbols;
    if (r->lengths != 0)
        r->chunk += varint(&r->lengths);
    if ((r->form & 3) == GAPS)
        r->gaps = symbols = varint(&at);
    uint32_t most = stored(r, at, symbols);
    if ((r->form & 3) != DENSE)
        behind = begin_stream(&r->where, at, symbols);
    if ((r->form >> 2 & 3) == RAW)
        r->values = behind;
    else
        (void)begin_stream(&r->what, behind, most);
}

/* Goes to the next stored element, of those from `at` on. */
static void settle(reader *r) {
    for (;;) {
        while (r->at < r->end) {
            if ((r->form & 3) == DENSE)
                return;
            if ((r->form & 3) == BITMAP) {
                if (next(&r->where))
                    return;
                r->at++;
            } else if (r->gaps-- == 0) {
                r->at = r->end;
            } else {
                uint32_t gap = next(&r->where);
                r->at += gap;
                if (gap < r->escape)
                    return;
            }
        }
        if (r->end == r->elements)
            return;
        begin_chunk(r);
    }
}

static void begin_tensor(reader *r, const net_tensor *tensor) {
    const uint8_t *at = file + tensor->at;
    uint32_t groups = 1;
    r->elements = tensor->elements;
    r->at = r->end = r->group = 0;
    r->lengths = 0;
    r->k = 1;
    r->form = *at++;
    if (r->form & 64) {
        r->group = varint(&at);
        groups = (r->elements + r->group - 1) / r->group;
    }
    if ((r->form >> 2 & 3) == GRID) {
        uint32_t folded = varint(&at);
        r->lowest = (int32_t)(folded >> 1) ^ -(int32_t)(folded & 1);
    }
    if ((r->form >> 2 & 3) != RAW)
        r->k = varint(&at) + 1;
    r->type = *at++;
    if (r->type == 0)
        r->type = FLOAT32;
    if ((r->form >> 2 & 3) != RAW) {
        r->values = at;
        at += (size_of(r->type) * groups) * ((r->form >> 2 & 3) == GRID ? 1 : r->k);
    }
    if ((r->form & 3) == GAPS)
        r->escape = varint(&at);
    if ((r->form & 3) != DENSE)
        at = read_header(&r->where, at, (r->form & 3) == GAPS ? r->escape + 1 : 2);
    if ((r->form >> 2 & 3) != RAW)
        at = read_header(&r->what, at, r->k);
    if (r->elements > CHUNK) {
        r->lengths = at;
        for (uint32_t i = 0; i < (r->elements + CHUNK - 1) / CHUNK; i++)
            (void)varint(&at);
    }
    r->chunk = at;
    settle(r);
}

/* The value of the element at `at`, once; then the next stored one is there. */
static net_number next_value(reader *r) {
    net_number value;
    uint32_t group = r->group > 0 ? r->at / r->group : 0;
    if ((r->form >> 2 & 3) == RAW) {
        value = widened(r->type, r->values);
        r->values += size_of(r->type);
    } else {
        uint32_t code = next(&r->what);
#if !MODEL_INTEGER
        if ((r->form >> 2 & 3) == GRID) {
            int32_t integer = r->lowest + (int32_t)code;
            integer += (r->form & 3) != DENSE && r->lowest <= 0 && integer >= 0; /* 0 is no code */
            value = (float)integer * widened(r->type, r->values + group * size_of(r->type));
        } else
#endif
            value = widened(r->type, r->values + (group * r->k + code) * size_of(r->type));
    }
    r->at++;
    settle(r);
    return value;
}

/* To the nearest integer, ties to even, of magnitudes below 2^22: behind so large a number no fraction fits. */
static float rounded(float value) {
    volatile float large = value + 12582912.0f;
    return large - 12582912.0f;
}

/* ---- Layers ------------------------------------------------------------------------------------------------------ */

#if MODEL_INTEGER

/* Of a tensor that is written as it is: behind its form and its type. */
static int64_t number_of(uint32_t tensor, unsigned bytes, uint32_t place) {
    const uint8_t *at = file + model_tensors[tensor].at + 2 + (uint32_t)bytes * place;
    uint64_t value = 0;
    for (unsigned i = 0; i < bytes; i++)
        value |= (uint64_t)at[i] << 8 * i;
    uint64_t sign = (uint64_t)1 << (8 * bytes - 1);
    return value & sign ? -(int64_t)(~value & (sign - 1)) - 1 : (int64_t)value;
}

/* Rounded down, of negative ones too. */
static int64_t shifted(int64_t value, unsigned count) {
    return value < 0 ? ~(~value >> count) : value >> count;
}

static net_number input(const net_layer *l, net_value value) {
    return (int32_t)value - l->zero[0];
}

#else

static float number_of(uint32_t tensor, uint32_t place) {
    const uint8_t *at = file + model_tensors[tensor].at;
    unsigned type = at[1] > 0 ? at[1] : FLOAT32;
    return widened(type, at + 2 + size_of(type) * place);
}

static net_number input(const net_layer *l, net_value value) {
    (void)l;
    return value;
}

#endif

/* Adds one weight times what it sees of a channel to each place of the plane. */
static void add(const net_layer *l, net_number *plane, const net_value *map, const int32_t place[2], net_number weight) {
    int32_t begin[2], end[2], offset[2];
    for (unsigned i = 0; i < 2; i++) {
        offset[i] = place[i] * l->dilation[i] - l->padding[i];
        int32_t stride = l->stride[i], room = l->in[i] - 1 - offset[i];
        begin[i] = offset[i] < 0 ? (stride - 1 - offset[i]) / stride : 0;
        end[i] = room < 0 ? 0 : room / stride + 1;
        end[i] = end[i] < l->out[i] ? end[i] : l->out[i];
    }
    for (int32_t y = begin[0]; y < end[0]; y++) {
        const net_value *from = map + (y * l->stride[0] + offset[0]) * l->in[1] + offset[1];
        net_number *to = plane + y * l->out[1];
        for (int32_t x = begin[1]; x < end[1]; x++)
            to[x] += weight * input(l, from[x * l->stride[1]]);
    }
}

static void sum(const net_layer *l, uint32_t channel, net_number *plane) {
    uint32_t seen = l->channels[0] / l->groups, size = (uint32_t)l->kernel[0] * l->kernel[1];
    uint32_t row = channel * seen * size, area = (uint32_t)l->in[0] * l->in[1];
    const net_value *in = maps + l->from + channel / (l->channels[1] / l->groups) * seen * area;
    int single = size == 1 && area == 1 && l->padding[0] == 0 && l->padding[1] == 0;
    while (weights.at < row + seen * size) {
        uint32_t column = weights.at - row;
        net_number weight = next_value(&weights);
        if (single) {
            plane[0] += weight * input(l, in[column]);
        } else {
            uint32_t inside = column % size;
            int32_t place[2] = {(int32_t)(inside / l->kernel[1]), (int32_t)(inside % l->kernel[1])};
            add(l, plane, in + column / size * area, place, weight);
        }
    }
}

static net_number pooled(const net_op *op, const net_number *plane, const uint16_t in[2], int32_t y, int32_t x) {
    int32_t counted = 0, top = y * op->stride[0] - op->padding[0], side = x * op->stride[1] - op->padding[1];
    net_number found = 0;
    for (int32_t i = top < 0 ? 0 : top; i < top + op->kernel[0] && i < in[0]; i++)
        for (int32_t j = side < 0 ? 0 : side; j < side + op->kernel[1] && j < in[1]; j++, counted++) {
            net_number value = plane[i * in[1] + j];
            if (op->kind == NET_MEAN)
                found += value;
            else if (counted == 0 || value > found)
                found = value;
        }
    if (op->kind == NET_MAX)
        return found;
    if (op->whole)
        counted = op->kernel[0] * op->kernel[1];
#if MODEL_INTEGER
    int32_t half = counted / 2;
    return (found + (found < 0 ? -half : half)) / counted;
#else
    return found / (float)counted;
#endif
}

static net_number changed(const net_op *op, uint32_t channel, net_number value) {
    switch (op->kind) {
#if MODEL_INTEGER
    case NET_RESCALE: {
        int64_t product = value * number_of(op->factors, 4, channel) + number_of(op->summands, 8, channel);
        return (int32_t)shifted(product, op->bits);
    }
    case NET_GRID:
        value = op->bits > 0 ? (int32_t)shifted((int64_t)value + (1 << (op->bits - 1)), op->bits) : value;
        break;
#else
    case NET_SHIFT:
        return value + number_of(op->summands, channel);
    case NET_SCALE:
        return value * number_of(op->factors, channel) + number_of(op->summands, channel);
    case NET_GRID:
        value /= op->step;
        return rounded(value < op->low ? op->low : value > op->high ? op->high : value) * op->step;
#endif
    default:
        (void)channel;
        break;
    }
    return value < op->low ? op->low : value > op->high ? op->high : value;
}

/* Does the layer's ops to a plane; gives where the result is. */
static const net_number *finished(const net_layer *l, uint32_t channel, net_number *plane, net_number *other) {
    uint16_t in[2] = {l->out[0], l->out[1]};
    for (unsigned i = l->first; i < (unsigned)l->first + l->ops; i++) {
        const net_op *op = &model_ops[i];
        if (op->kind == NET_MAX || op->kind == NET_MEAN) {
            net_number *from = plane;
            for (int32_t y = 0; y < op->out[0]; y++)
                for (int32_t x = 0; x < op->out[1]; x++)
                    other[y * op->out[1] + x] = pooled(op, from, in, y, x);
            plane = other;
            other = from;
            in[0] = op->out[0];
            in[1] = op->out[1];
        } else {
            for (uint32_t j = 0; j < (uint32_t)in[0] * in[1]; j++)
                plane[j] = changed(op, channel, plane[j]);
        }
    }
    return plane;
}

static void run(const net_layer *l, int last) {
    uint32_t area = (uint32_t)l->out[0] * l->out[1];
    if (l->weight != NET_NONE)
        begin_tensor(&weights, &model_tensors[l->weight]);
    for (uint32_t channel = 0; channel < l->channels[1]; channel++) {
        for (uint32_t i = 0; i < area; i++)
            sums[i] = l->weight != NET_NONE ? 0 : input(l, maps[l->from + channel * area + i]);
        if (l->weight != NET_NONE)
            sum(l, channel, sums);
        const net_number *plane = finished(l, channel, sums, pools);
        for (uint32_t i = 0; i < l->plane; i++) {
            if (last)
                outputs[channel * l->plane + i] = plane[i];
            else
#if MODEL_INTEGER
                maps[l->to + channel * l->plane + i] = (uint8_t)(plane[i] + l->zero[1]);
#else
                maps[l->to + channel * l->plane + i] = plane[i];
#endif
        }
    }
}

/* ---- The network ------------------------------------------------------------------------------------------------- */

int net_open(const uint8_t *dcz, uint32_t bytes) {
    uint32_t crc = ~(uint32_t)0;
    for (uint32_t i = 0; i < bytes; i++) {
        crc ^= dcz[i];
        for (unsigned bit = 0; bit < 8; bit++)
            crc = crc & 1 ? crc >> 1 ^ 0xEDB88320u : crc >> 1;
    }
    file = dcz;
    file_end = dcz + bytes;
    return bytes != MODEL_BYTES || ~crc != MODEL_CRC;
}

void net_set(uint32_t place, float value) {
#if MODEL_INTEGER
    const net_layer *l = &model_layers[0];
    float steps = value / MODEL_INPUT_STEP;
    steps = !(steps > MODEL_INPUT_LOW) ? MODEL_INPUT_LOW : steps > MODEL_INPUT_HIGH ? MODEL_INPUT_HIGH : steps;
    maps[l->from + place] = (uint8_t)((int32_t)rounded(steps) + l->zero[0]);
#else
    maps[model_layers[0].from + place] = value;
#endif
}

void net_run(void) {
    for (unsigned i = 0; i < MODEL_LAYERS; i++)
        run(&model_layers[i], i == MODEL_LAYERS - 1);
}

float net_output(uint32_t place) {
#if MODEL_INTEGER
    return (float)outputs[place] * MODEL_OUTPUT_STEP;
#else
    return outputs[place];
#endif
}

uint32_t net_class(void) {
    uint32_t best = 0;
    for (uint32_t i = 1; i < MODEL_OUTPUTS; i++)
        if (outputs[i] > outputs[best])
            best = i;
    return best;
}

uint32_t net_ram(void) {
    return (uint32_t)(sizeof file + sizeof file_end + sizeof weights + sizeof maps + sizeof sums + sizeof pools +
                      sizeof outputs);
}
