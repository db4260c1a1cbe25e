// usage: kernel_driver TIER OPERATION TYPE < input > output
//        kernel_driver tiers
//
// Runs one kernel on every row of standard input: the number of values as int64, then the row; for vec_dot a row of
// blocks and a row of q8_0. Each runs twice, once against pages that cannot be touched and once at odd addresses. The
// results must be the same, with nothing changed around them, and go to standard output. `tiers` prints those that the
// machine runs.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "pages.h"
#include "tq.h"
#include "tq_blocks.h"

enum { GUARD = 64, GUARD_BYTE = 0xA5 };

static void fail(const char * what) {
    fprintf(stderr, "%s\n", what);
    exit(1);
}

// `size` bytes that end `slack` bytes before a page that cannot be touched, behind GUARD bytes of GUARD_BYTE.
struct buffer {
    unsigned char *room, *data;
    size_t room_size;
};

static struct buffer allocate(size_t size, size_t slack) {
    const size_t page = page_size();
    struct buffer b = {.room_size = ((GUARD + size + slack) / page + 1) * page};
    b.room = (unsigned char *) map_between_pages(b.room_size);
    if (b.room == NULL) {
        fail("no memory");
    }
    memset(b.room, GUARD_BYTE, b.room_size);
    b.data = b.room + b.room_size - slack - size;
    return b;
}

static void release(struct buffer b, size_t size, size_t slack) {
    for (int i = 1; i <= GUARD; i++) {
        if (b.data[-i] != GUARD_BYTE) {
            fail("written before the row");
        }
    }
    for (size_t i = 0; i < slack; i++) {
        if (b.data[size + i] != GUARD_BYTE) {
            fail("written behind the row");
        }
    }
    unmap_between_pages((char *) b.room, b.room_size);
}

static int find(const char * (*name)(int), const char * wanted) {
    for (int i = 0; name(i); i++) {
        if (strcmp(name(i), wanted) == 0) {
            return i;
        }
    }
    fprintf(stderr, "unknown: %s\n", wanted);
    exit(2);
}

static const char * type_name(int type) {
    const struct tq_type_info * info = tq_type_info(type);
    return info ? info->name : NULL;
}

static void run(enum tq_op op, enum tq_type type, int64_t n) {
    const size_t floats = (size_t) n * sizeof(float);
    const size_t blocks = (size_t) n / TQ_BLOCK * tq_type_info(type)->block_bytes;
    const size_t in = op == TQ_OP_QUANTIZE ? floats : blocks;
    const size_t q8_0 = op == TQ_OP_VEC_DOT ? (size_t) n / TQ_BLOCK * sizeof(tq_block_q8_0) : 0;
    const size_t out = op == TQ_OP_QUANTIZE ? blocks : op == TQ_OP_DEQUANTIZE ? floats : sizeof(float);
    struct buffer x[2], q[2], y[2];
    for (size_t slack = 0; slack < 2; slack++) {
        x[slack] = allocate(in, slack);
        q[slack] = allocate(q8_0, slack);
        y[slack] = allocate(out, slack);
        if (slack == 0 && (fread(x[0].data, 1, in, stdin) != in || fread(q[0].data, 1, q8_0, stdin) != q8_0)) {
            fail("the input ends within a row");
        }
        memcpy(x[slack].data, x[0].data, in);
        memcpy(q[slack].data, q[0].data, q8_0);
        void *const vx = x[slack].data, *const vq = q[slack].data, *const vy = y[slack].data;
        if (op == TQ_OP_QUANTIZE) {
            tq_quantize_row(type, vx, vy, n);
        } else if (op == TQ_OP_DEQUANTIZE) {
            tq_dequantize_row(type, vx, vy, n);
        } else {
            const float dot = tq_vec_dot(type, vx, vq, n);
            memcpy(vy, &dot, sizeof(dot));
        }
    }
    if (memcmp(y[0].data, y[1].data, out) != 0) {
        fail("the result depends on the alignment");
    }
    fwrite(y[0].data, 1, out, stdout);
    for (size_t slack = 0; slack < 2; slack++) {
        release(x[slack], in, slack);
        release(q[slack], q8_0, slack);
        release(y[slack], out, slack);
    }
}

int main(int argc, char ** argv) {
    use_binary_streams();
    if (argc == 2 && strcmp(argv[1], "tiers") == 0) {
        for (int isa = 0; tq_isa_name(isa); isa++) {
            if (tq_isa_supported((enum tq_isa) isa)) {
                puts(tq_isa_name(isa));
            }
        }
        return 0;
    }
    if (argc != 4) {
        fprintf(stderr, "usage: %s TIER OPERATION TYPE | tiers\n", argv[0]);
        return 2;
    }
    if (!tq_force_isa((enum tq_isa) find(tq_isa_name, argv[1]))) {
        fail("not supported by this machine");
    }
    const int op = find(tq_op_name, argv[2]);
    const int type = find(type_name, argv[3]);
    int64_t n;
    while (fread(&n, sizeof(n), 1, stdin) == 1) {
        run((enum tq_op) op, (enum tq_type) type, n);
    }
    return 0;
}
