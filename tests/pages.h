// For the drivers, on POSIX and Windows: memory between pages that cannot be touched, and standard streams of bytes.
#pragma once

#include <stddef.h>
#include <stdio.h>

#ifdef _WIN32
#    include <fcntl.h>
#    include <io.h>
#    include <windows.h>

static inline size_t page_size(void) {
    SYSTEM_INFO info;
    GetSystemInfo(&info);
    return info.dwPageSize;
}

// `room` bytes, a multiple of the page size, or NULL.
static inline char * map_between_pages(size_t room) {
    const size_t page = page_size();
    char * map = VirtualAlloc(NULL, room + 2 * page, MEM_RESERVE, PAGE_NOACCESS);
    return map && (room == 0 || VirtualAlloc(map + page, room, MEM_COMMIT, PAGE_READWRITE)) ? map + page : NULL;
}

static inline void unmap_between_pages(char * data, size_t room) {
    (void) room;
    VirtualFree(data - page_size(), 0, MEM_RELEASE);
}

static inline void use_binary_streams(void) {
    _setmode(_fileno(stdin), _O_BINARY);
    _setmode(_fileno(stdout), _O_BINARY);
}
#else
#    include <sys/mman.h>
#    include <unistd.h>

static inline size_t page_size(void) {
    return (size_t) sysconf(_SC_PAGESIZE);
}

static inline char * map_between_pages(size_t room) {
    const size_t page = page_size();
    char * map = mmap(NULL, room + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return map != MAP_FAILED && mprotect(map + page, room, PROT_READ | PROT_WRITE) == 0 ? map + page : NULL;
}

static inline void unmap_between_pages(char * data, size_t room) {
    munmap(data - page_size(), room + 2 * page_size());
}

static inline void use_binary_streams(void) {}
#endif
