// csrc/tq_device.h on the host: plays the lanes of a GPU one after the other. Rows of blocks on standard input.
//   quantize TYPE     float32 in, blocks out
//   dequantize TYPE   blocks in, float32 out
//   levels TYPE       blocks in, int8 levels out, by the look-ups of the attention kernels
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

static void quantize(const struct type * t, const float * input, unsigned char * block) {
    const tq_dev_spec s = t->spec;
    signed char level[2][256];
    for (int c = 0; c < 2; c++) {
        const signed char * book = t->books + (c << s.bits);
        for (int v = -128; v < 128; v++) {
            level[c][v + 128] = book[tq_dev_nearest(s.bits, book, 1, v)];
        }
    }
    float x[TQ_BLOCK], amax[2] = {0, 0};
    for (int lane = 0; lane < TQ_LANES; lane++) {
        x[lane] = tq_dev_clean(input[lane]);
        amax[lane >> 4] = fmaxf(amax[lane >> 4], fabsf(x[lane]));
    }
    memset(block, 0, (size_t) t->bytes);
    if (amax[0] < TQ_MAGNITUDE_MIN && amax[1] < TQ_MAGNITUDE_MIN) {
        return;
    }
    tq_dev_choice best[2][2];
    int e[2];
    float total[2];
    for (int c = 0; c < 2; c++) {
        for (int k = 0; k < 2; k++) {
            best[c][k] = tq_dev_candidate(s, x + TQ_SUB_BLOCK * k, amax[k], 16 * c, level[c]);
            for (int lane = 16 * c + 1; lane < 16 * c + 16; lane++) {
                const tq_dev_choice other = tq_dev_candidate(s, x + TQ_SUB_BLOCK * k, amax[k], lane, level[c]);
                best[c][k] = tq_dev_is_better(other, best[c][k]) ? other : best[c][k];
            }
        }
        e[c] = tq_dev_settle(x, best[c], level[c]);
        total[c] = best[c][0].price + best[c][1].price;
    }
    const int c = total[1] < total[0];
    const unsigned word = tq_dev_word(e[c], c, best[c]);
    unsigned plane[4] = {0};
    for (int lane = 0; lane < TQ_LANES; lane++) {
        const int index = tq_dev_assign(s.bits, x[lane], best[c][lane >> 4], t->books + (c << s.bits));
        for (int b = 0; b < 4; b++) {
            plane[b] |= (unsigned) (index >> b & 1) << lane;
        }
    }
    block[0] = (unsigned char) word;
    block[1] = (unsigned char) (word >> 8);
    for (int j = 0; j < t->bytes - 2; j++) {
        block[2 + j] = tq_dev_pack(s.bits, plane, j);
    }
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
