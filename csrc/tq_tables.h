// Written by scripts/make_tables.py: do not edit. The codebooks of FORMAT.md, section 3; the first
// index is bit 15 of the scale word. TQ_TABLE is the storage class that C, CUDA or Metal wants.
#pragma once

#ifndef TQ_TABLE
#    define TQ_TABLE static const
#endif

TQ_TABLE signed char tq_codebook_tq4_0[2][16] = {
    {-127, -105,  -85,  -68,  -52,  -38,  -24,  -10,    3,   16,   28,   41,   56,   71,   88,  110},
    {-120,  -99,  -72,  -55,  -41,  -29,  -18,   -7,    2,   12,   22,   33,   45,   59,   76,  102},
};

TQ_TABLE signed char tq_codebook_tq3_0[2][8] = {
    {-124,  -83,  -50,  -21,    7,   34,   66,  111},
    {-127,  -76,  -44,  -19,    3,   25,   51,   86},
};

TQ_TABLE signed char tq_codebook_tq2_1[2][4] = {
    {-125,  -40,   22,   96},
    {-127,  -50,    4,   64},
};
