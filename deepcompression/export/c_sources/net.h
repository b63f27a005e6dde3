/* net.h: a chain of layers whose weights stay compressed. C99 and no library at all.
 *
 *     if (net_open(model_dcz, MODEL_BYTES) != 0) ...     not the file that model.h was made with
 *     for (uint32_t i = 0; i < MODEL_INPUTS; i++)
 *         net_set(i, sample[i]);                         in row-major order
 *     net_run();
 *     net_class();                                       the largest output; net_output(i) is each
 *
 * Weights are decoded one by one from the .dcz, which may stay in flash, while a layer runs: there is no dense copy, and
 * no copy at all. All memory is static (net_ram() bytes) and nothing is allocated. One sample at a time. Whole layers are
 * computed in floats; or, where MODEL_INTEGER is 1, in integers of 8 bits with sums of 32, without a float but in
 * net_set() and net_output().
 */
#ifndef NET_H
#define NET_H

#include <stdint.h>

#include "model.h"

#if MODEL_INTEGER
typedef int32_t net_number; /* sums */
typedef uint8_t net_value;  /* what lies between layers */
#else
typedef float net_number;
typedef float net_value;
#endif

enum { NET_SHIFT, NET_SCALE, NET_RESCALE, NET_CLAMP, NET_MAX, NET_MEAN, NET_GRID };

#define NET_NONE 0xFFFFFFFFu

/* A tensor of the file. */
typedef struct {
    uint32_t at, bytes, elements;
} net_tensor;

/* What is done to each channel's plane of sums, one after the other. */
typedef struct {
    uint8_t kind, bits;         /* bits: by which NET_RESCALE and NET_GRID shift */
    uint8_t whole;              /* of NET_MEAN: padding counts */
    uint32_t factors, summands; /* tensors, of a number a channel */
    net_number low, high;       /* of NET_CLAMP and NET_GRID */
    float step;                 /* of NET_GRID, for floats */
    uint16_t kernel[2], stride[2], padding[2], out[2]; /* of pools: rows, columns */
} net_op;

/* A layer, or, without weights, a copy; then its ops. */
typedef struct {
    uint32_t weight;               /* tensor: (out channels, in channels / groups, kernel rows, kernel columns) */
    uint32_t from, to;             /* where input and output lie; the last layer's output lies apart */
    uint32_t channels[2], groups;  /* in, out */
    uint16_t in[2], out[2];        /* rows, columns of a plane, before ops */
    uint16_t kernel[2], stride[2], padding[2], dilation[2];
    uint32_t plane;                /* elements of an output plane, after ops */
    int32_t zero[2];               /* of integers: what stands for 0 in input and output */
    uint16_t first, ops;
} net_layer;

extern const net_tensor model_tensors[];
extern const net_op model_ops[];
extern const net_layer model_layers[MODEL_LAYERS];

/* 0, or 1: these are not the bytes that model.h was made with. They must stay as they are. */
int net_open(const uint8_t *dcz, uint32_t bytes);
void net_set(uint32_t place, float value);
void net_run(void);
float net_output(uint32_t place);
uint32_t net_class(void);
/* Static bytes of all that. */
uint32_t net_ram(void);

#endif
