// csrc/tq_device.h on the host: does what the lanes of a GPU share. Rows of blocks on standard input.
//   quantize TYPE     float32 in, blocks out
//   dequantize TYPE   blocks in, float32 out
//   levels TYPE       blocks in, int8 levels out, by the look-ups of the attention kernels
//   reach TYPE        exit status 1 if the sums of the encoder could overflow
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include "tq_device.h"

static const struct type {
    const char * name;
    tq_dev_spec spec;
    int bytes;
    const signed char * books;
} types[] = {
#define TQ_TYPE(NAME, name, id, bits, bytes, start, count) \
    {#name, {bits, count, start / 16384.0f}, bytes, tq_codebook_##name[0]},
#include "types.def"
#undef TQ_TYPE
};

// Byte j after the scale word.
static unsigned char pack(int bits, const unsigned index[TQ_BLOCK], int j) {
    unsigned byte = 0;
    if (bits == 4) {
        return (unsigned char) (index[j] | index[j + 16] << 4);
    }
    for (int k = 0; k < 4 && j < 8; k++) {
        byte |= (index[j + 8 * k] & 3) << 2 * k;
    }
    for (int k = 0; k < 8 && j >= 8; k++) {
        byte |= index[j - 8 + 4 * k] >> 2 << k;
    }
    return (unsigned char) byte;
}

static void quantize(const struct type * t, const float * input, unsigned char * block) {
    const int bits = t->spec.bits;
    const signed char * books[2] = {t->books, t->books + (1 << bits)};
    tq_dev_distances distances[TQ_DISTANCES];
    for (int v = 0; v < TQ_DISTANCES; v++) {
        for (int b = 0; b < 2; b++) {
            distances[v].book[b] = tq_dev_distance(bits, books[b], v - TQ_DISTANCES / 2);
        }
    }
    float x[TQ_BLOCK], amax[2] = {0, 0};
    for (int i = 0; i < TQ_BLOCK; i++) {
        x[i] = tq_dev_clean(input[i]);
        amax[i >> 4] = fmaxf(amax[i >> 4], fabsf(x[i]));
    }
    memset(block, 0, (size_t) t->bytes);
    if (amax[0] < TQ_MAGNITUDE_MIN && amax[1] < TQ_MAGNITUDE_MIN) {
        return;
    }
    int code[2][2], negative[2][2], e[2]; // [codebook][sub-block]
    float price[2][2], total[2];
    for (int k = 0; k < 2; k++) {
        const int first = tq_dev_first_code(t->spec, amax[k]);
        for (int i = 0; i < t->spec.count; i++) {
            const int u = tq_dev_limit_code(first + i);
            const tq_dev_prices p = tq_dev_price(bits, x + TQ_SUB_BLOCK * k, u, distances);
            for (int b = 0; b < 2; b++) {
                if (i == 0 || p.price[b] < price[b][k]) {
                    code[b][k] = u;
                    negative[b][k] = p.negative[b];
                    price[b][k] = p.price[b];
                }
            }
        }
    }
    for (int b = 0; b < 2; b++) {
        e[b] = tq_dev_exponent(code[b][0], code[b][1]);
        for (int k = 0; k < 2; k++) {
            if (code[b][k] < 8 * e[b]) {
                const tq_dev_prices p = tq_dev_price(bits, x + TQ_SUB_BLOCK * k, 8 * e[b], distances);
                code[b][k] = 8 * e[b];
                negative[b][k] = p.negative[b];
                price[b][k] = p.price[b];
            }
        }
        total[b] = price[b][0] + price[b][1];
    }
    const int b = total[1] < total[0];
    const unsigned word = tq_dev_word(e[b], b, tq_dev_field(code[b][0], negative[b][0], e[b]),
                                      tq_dev_field(code[b][1], negative[b][1], e[b]));
    unsigned index[TQ_BLOCK];
    for (int i = 0; i < TQ_BLOCK; i++) {
        index[i] = tq_dev_assign(bits, x[i], code[b][i >> 4], negative[b][i >> 4], books[b]);
    }
    block[0] = (unsigned char) word;
    block[1] = (unsigned char) (word >> 8);
    for (int j = 0; j < t->bytes - 2; j++) {
        block[2 + j] = pack(bits, index, j);
    }
}

// How far over the half of a word the sums of distances could run: never, for what 4.2 can ask for.
static int overflows(const struct type * t) {
    const int bits = t->spec.bits, reach = (int) (9.0f / 8 / t->spec.start + 0.5f);
    unsigned most = 0;
    for (int v = -reach; v <= reach; v++) {
        for (int b = 0; b < 2; b++) {
            const unsigned d = tq_dev_distance(bits, t->books + (b << bits), v);
            most = (d & 0xFFFF) > most ? d & 0xFFFF : most;
            most = d >> 16 > most ? d >> 16 : most;
        }
    }
    return reach >= TQ_DISTANCES / 2 || most * (unsigned) tq_dev_run(bits) > 0xFFFF;
}

static unsigned load(const unsigned char * p) {
    unsigned w;
    memcpy(&w, p, sizeof(w));
    return w;
}

static void levels(const struct type * t, const unsigned char * block, signed char out[TQ_BLOCK]) {
    const int bits = t->spec.bits, second = block[1] >> 7;
    unsigned books[2][4];
    for (int i = 0; i < 2 << bits; i += 4) {
        books[i >> bits][(i & ((1 << bits) - 1)) / 4] = tq_dev_book_word(t->books + i);
    }
    for (int h = 0; h < 2; h++) {
        unsigned words[4];
        if (bits == 4) {
            tq_dev_levels_4(books[second], load(block + 2 + 8 * h), words);
            tq_dev_levels_4(books[second], load(block + 6 + 8 * h), words + 2);
        } else if (bits == 3) {
            tq_dev_levels_3(books[second], load(block + 2 + 4 * h), load(block + 10), h, words);
        } else {
            const unsigned both[2] = {books[0][0], books[1][0]};
            tq_dev_levels_2(both, load(block + 2 + 4 * h), second ? 0x44444444u : 0, words);
        }
        for (int r = 0; r < 4; r++) {
            for (int b = 0; b < 4; b++) {
                out[tq_dev_place(bits < 4, h, r, b)] = (signed char) ((int) (words[r] >> 8 * b & 255) - 128);
            }
        }
    }
}

int main(int argc, char ** argv) {
    const struct type * t = types;
    while (argc == 3 && t < types + sizeof(types) / sizeof(types[0]) && strcmp(t->name, argv[2]) != 0) {
        t++;
    }
    if (argc != 3 || t == types + sizeof(types) / sizeof(types[0])) {
        return 2;
    }
    if (strcmp(argv[1], "reach") == 0) {
        return overflows(t);
    }
    unsigned char block[32];
    float x[TQ_BLOCK];
    signed char level[TQ_BLOCK];
    if (strcmp(argv[1], "quantize") == 0) {
        while (fread(x, sizeof(x), 1, stdin) == 1) {
            quantize(t, x, block);
            fwrite(block, (size_t) t->bytes, 1, stdout);
        }
        return 0;
    }
    const int as_levels = strcmp(argv[1], "levels") == 0;
    while (fread(block, (size_t) t->bytes, 1, stdin) == 1) {
        if (as_levels) {
            levels(t, block, level);
            fwrite(level, sizeof(level), 1, stdout);
            continue;
        }
        for (int v = 0; v < TQ_BLOCK; v++) {
            x[v] = tq_dev_value(t->spec.bits, t->books, block, v);
        }
        fwrite(x, sizeof(x), 1, stdout);
    }
    return 0;
}
