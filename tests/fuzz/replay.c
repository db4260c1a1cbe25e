// usage: replay COUNT [FILE...]
//
// A main program for a target without libFuzzer: the files, then COUNT inputs of random bytes, always the same.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#ifdef __cplusplus
extern "C"
#endif
int LLVMFuzzerTestOneInput(const uint8_t * data, size_t size);

static uint8_t bytes[1 << 20];

int main(int argc, char ** argv) {
    for (int i = 2; i < argc; i++) {
        FILE * file = fopen(argv[i], "rb");
        if (file == NULL) {
            perror(argv[i]);
            return 1;
        }
        LLVMFuzzerTestOneInput(bytes, fread(bytes, 1, sizeof(bytes), file));
        fclose(file);
    }
    uint32_t state = 1; // xorshift32, Marsaglia 2003
    for (int i = argc > 1 ? atoi(argv[1]) : 0; i > 0; i--) {
        const size_t size = (size_t) (i % 500);
        for (size_t at = 0; at < size; at++) {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            bytes[at] = (uint8_t) (state >> 8);
        }
        LLVMFuzzerTestOneInput(bytes, size);
    }
    return 0;
}
