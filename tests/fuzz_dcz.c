/* The C decoder under libFuzzer: whatever the bytes, nothing is read, written, leaked or computed that must not be.
 *
 * `make fuzz-c` builds it with the address and undefined-behaviour sanitizers and runs it. Checksums, and the length of
 * the index, are mended before a file is decoded: behind them is what is worth reaching.
 */
#define main dcz_main
#include "dcz.c"
#undef main

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { PREFIX = 14, MOST_DECODED = 1 << 16 };

static uint32_t crc_of(const uint8_t *at, size_t size, uint32_t crc) {
    for (size_t i = 0; i < size; i++) {
        crc ^= at[i];
        for (unsigned bit = 0; bit < 8; bit++)
            crc = crc & 1 ? crc >> 1 ^ 0xEDB88320u : crc >> 1;
    }
    return crc;
}

/* The file as it would be with a right magic, version and checksum of its index. */
static void mend(uint8_t *file, size_t size) {
    static const uint8_t MAGIC[4] = {0x89, 'D', 'C', 'Z'};
    if (size < PREFIX)
        return;
    memcpy(file, MAGIC, sizeof MAGIC);
    file[4] = file[4] == 1 ? 1 : 2;
    size_t length = (size_t)get_le(file + 6, 4);
    if (length > size - PREFIX) {
        length %= size - PREFIX + 1;
        put_le(file + 6, length, 4);
    }
    put_le(file + 10, ~crc_of(file + PREFIX, length, crc_of(file, 10, 0xFFFFFFFFu)), 4);
}

static void decode_each(dcz *file) {
    dcz_error error;
    for (size_t i = 0; i < dcz_count(file); i++) {
        uint8_t *out = malloc(dcz_bytes(file, i) + (dcz_bytes(file, i) == 0));
        file->tensors[i].crc = crc32(file, 0, file->tensors[i].blob);
        if (out != NULL)
            (void)dcz_decode(file, i, out, &error);
        free(out);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    dcz_error error;
    uint8_t *bytes = malloc(size + (size == 0)); /* just as long, so that a step beyond is seen */
    if (bytes == NULL)
        return 0;
    if (size > 0)
        memcpy(bytes, data, size);
    mend(bytes, size);
    dcz *file = dcz_open(bytes, size, MOST_DECODED, &error);
    if (file != NULL) {
        struct text head = safetensors_head(file);
        free(head.bytes);
        decode_each(file);
    }
    dcz_close(file);
    free(bytes);
    return 0;
}
