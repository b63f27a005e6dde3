/* Reads samples from standard input, MODEL_INPUTS float32 each (little-endian, row-major), one after the other, and
 * writes a line for each: the class, then all outputs.
 *
 *     cc -std=c99 -O2 -o run main.c net.c model.c model_dcz.c
 *     ./run < samples.f32
 *     ./run model.dcz < samples.f32        reads the file in place of the array in model_dcz.c: the same bytes
 *     ./run --sizes                        bytes of RAM and of flash
 */
#include <stdio.h>
#include <string.h>

#include "net.h"

extern const uint8_t model_dcz[MODEL_BYTES];

static int complain(const char *what, const char *why) {
    fprintf(stderr, "run: %s: %s\n", what, why);
    return 1;
}

static const uint8_t *read_file(const char *path) {
    static uint8_t bytes[MODEL_BYTES + 1];
    FILE *in = fopen(path, "rb");
    size_t size = in != NULL ? fread(bytes, 1, sizeof bytes, in) : 0;
    if (in != NULL)
        (void)fclose(in);
    return size == MODEL_BYTES ? bytes : NULL;
}

static int sizes(void) {
    printf("RAM %lu bytes: all static memory of net.c, without the stack\n", (unsigned long)net_ram());
    printf("flash %lu bytes of model.dcz, %lu of tables in model.c; and the code of net.c\n", (unsigned long)MODEL_BYTES,
           (unsigned long)(MODEL_LAYERS * sizeof(net_layer) + MODEL_OPS * sizeof(net_op) +
                           MODEL_TENSORS * sizeof(net_tensor)));
    return 0;
}

static float little_endian(const unsigned char *bytes) {
    uint32_t whole = 0;
    float value;
    for (unsigned i = 0; i < 4; i++)
        whole |= (uint32_t)bytes[i] << 8 * i;
    memcpy(&value, &whole, sizeof value);
    return value;
}

int main(int argc, char **argv) {
    unsigned char bytes[4];
    uint32_t place = 0;
    if (argc > 2 || (argc == 2 && argv[1][0] == '-' && strcmp(argv[1], "--sizes") != 0))
        return complain("usage", "run [model.dcz] < samples.f32, of shape " MODEL_INPUT_SHAPE " each; or run --sizes");
    if (argc == 2 && argv[1][0] == '-')
        return sizes();
    const uint8_t *dcz = argc == 2 ? read_file(argv[1]) : model_dcz;
    if (dcz == NULL || net_open(dcz, MODEL_BYTES) != 0)
        return complain(argc == 2 ? argv[1] : "model_dcz.c", "it is not the file that model.h was made with");
    while (fread(bytes, 1, sizeof bytes, stdin) == sizeof bytes) {
        net_set(place++, little_endian(bytes));
        if (place < MODEL_INPUTS)
            continue;
        place = 0;
        net_run();
        printf("%lu", (unsigned long)net_class());
        for (uint32_t i = 0; i < MODEL_OUTPUTS; i++)
            printf(" %.9g", (double)net_output(i));
        putchar('\n');
    }
    return place == 0 ? 0 : complain("standard input", "ends within a sample of " MODEL_INPUT_SHAPE);
}
