// usage: neon_driver TIER OPERATION TYPE VALUES < input > output
//
// Runs one kernel on every row of standard input: once between pages that cannot be touched, once at odd addresses.
// Both results must be the same, and go to standard output. VALUES is the length of a row; the input of vec_dot is a
// row of blocks followed by a row of q8_0. `neon_driver tiers` prints what the CPU runs.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "tq.h"
#include "tq_blocks.h"

// `size` bytes that end `slack` bytes before a guard page.
static unsigned char * before_guard_page(size_t size, size_t slack) {
    const size_t page = (size_t) sysconf(_SC_PAGESIZE);
    const size_t room = ((size + slack) / page + 1) * page;
    unsigned char * p = mmap(NULL, room + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED || mprotect(p + room, page, PROT_NONE) != 0) {
        perror("mmap");
        exit(1);
    }
    return p + room - slack - size;
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

int main(int argc, char ** argv) {
    if (argc == 2 && strcmp(argv[1], "tiers") == 0) {
        for (int isa = 0; tq_isa_name(isa); isa++) {
            if (tq_isa_supported(isa)) {
                puts(tq_isa_name(isa));
            }
        }
        return 0;
    }
    if (argc != 5) {
        fprintf(stderr, "usage: %s TIER OPERATION TYPE VALUES | tiers\n", argv[0]);
        return 2;
    }
    const int isa = find(tq_isa_name, argv[1]);
    const int op = find(tq_op_name, argv[2]);
    const int type = find(type_name, argv[3]);
    const size_t n = (size_t) atol(argv[4]);
    if (!tq_force_isa(isa)) {
        fprintf(stderr, "this CPU does not run %s\n", argv[1]);
        return 1;
    }

    const size_t floats = n * sizeof(float);
    const size_t blocks = n / TQ_BLOCK * tq_type_info(type)->block_bytes;
    const size_t q8_0 = op == TQ_OP_VEC_DOT ? n / TQ_BLOCK * sizeof(tq_block_q8_0) : 0;
    const size_t in = op == TQ_OP_QUANTIZE ? floats : blocks;
    const size_t out = op == TQ_OP_QUANTIZE ? blocks : op == TQ_OP_DEQUANTIZE ? floats : sizeof(float);
    unsigned char *x[2], *q[2], *y[2];
    for (size_t slack = 0; slack < 2; slack++) {
        x[slack] = before_guard_page(in, slack);
        q[slack] = before_guard_page(q8_0, slack);
        y[slack] = before_guard_page(out, slack);
    }
    while (fread(x[0], 1, in, stdin) == in && fread(q[0], 1, q8_0, stdin) == q8_0) {
        memcpy(x[1], x[0], in);
        memcpy(q[1], q[0], q8_0);
        for (int i = 0; i < 2; i++) {
            if (op == TQ_OP_QUANTIZE) {
                tq_quantize_row(type, (const float *) x[i], y[i], (int64_t) n);
            } else if (op == TQ_OP_DEQUANTIZE) {
                tq_dequantize_row(type, x[i], (float *) y[i], (int64_t) n);
            } else {
                const float dot = tq_vec_dot(type, x[i], q[i], (int64_t) n);
                memcpy(y[i], &dot, sizeof(dot));
            }
        }
        if (memcmp(y[0], y[1], out) != 0) {
            fputs("the result depends on the alignment\n", stderr);
            return 1;
        }
        fwrite(y[0], 1, out, stdout);
    }
    return 0;
}
