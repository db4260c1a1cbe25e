// As much of a Metal device as the kernels of csrc/metal need, on the host. Threads are fibers. Between two barriers
// those of a threadgroup take turns in an order that is shuffled each time, so that what counts on an order that nobody
// promises gives other numbers; one threadgroup comes after the other.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <tuple>
#include <vector>

namespace host_metal {

[[noreturn]] inline void fail(const std::string & what) {
    std::fprintf(stderr, "host_metal: %s\n", what.c_str());
    std::abort();
}

struct grid_size {
    unsigned x, y, z;
};

// A kernel as it is dispatched.
struct launch {
    std::vector<char> bytes;       // of buffer 0
    std::map<int, void *> buffers; // the others
    size_t shared = 0;             // bytes of threadgroup memory
    grid_size groups = {}, threads = {};
};

// --- fibers ---

constexpr unsigned lanes = 32;
constexpr size_t most_shared = 32 * 1024;

// What threads of a SIMD group or a threadgroup do together.
enum class meeting { none, threads, simd, any, max, sum, shuffle };

struct barrier {
    unsigned members = 0, waiting = 0, generation = 0;
    meeting kind = meeting::none;
};

struct fiber {
    jmp_buf place; // where it goes on: much faster than swapcontext, which asks the system
    std::unique_ptr<char[]> stack;
    bool is_done = false;
    barrier * waits_for = nullptr;
    unsigned generation = 0, exchanges = 0;
};

struct machine {
    std::deque<fiber> fibers;
    jmp_buf scheduler;
    barrier all;
    std::vector<barrier> simds;
    std::vector<std::array<std::array<std::array<char, 8>, lanes>, 2>> slots; // [SIMD group][turn][lane]
    std::function<void()> body;
    std::mt19937 order;
    unsigned current = 0;
    grid_size group = {};
};

inline machine & now() {
    static machine m;
    return m;
}

inline void yield() {
    machine & m = now();
    if (_setjmp(m.fibers[m.current].place) == 0) {
        _longjmp(m.scheduler, 1);
    }
}

inline void meet(barrier & b, meeting kind) {
    machine & m = now();
    if (b.waiting == 0) {
        b.kind = kind;
    } else if (b.kind != kind) {
        fail("threads of a group wait at different places");
    }
    const unsigned generation = b.generation;
    if (++b.waiting == b.members) {
        b.waiting = 0;
        b.generation++;
        return;
    }
    m.fibers[m.current].waits_for = &b;
    m.fibers[m.current].generation = generation;
    yield();
}

inline void live() { // of a fiber, which runs one thread after the other
    yield();
    for (;;) {
        now().body();
        now().fibers[now().current].is_done = true;
        yield();
    }
}

inline void resume(unsigned t) {
    machine & m = now();
    m.current = t;
    if (_setjmp(m.scheduler) == 0) {
        _longjmp(m.fibers[t].place, 1);
    }
}

inline void create(unsigned t) {
    machine & m = now();
    constexpr size_t size = 256 * 1024;
    m.fibers[t].stack.reset(new char[size]);
    m.current = t;
    ucontext_t context;
    getcontext(&context);
    context.uc_stack.ss_sp = m.fibers[t].stack.get();
    context.uc_stack.ss_size = size;
    context.uc_link = nullptr;
    makecontext(&context, live, 0);
    if (_setjmp(m.scheduler) == 0) {
        setcontext(&context);
    }
}

inline void run_group(unsigned threads) {
    machine & m = now();
    while (m.fibers.size() < threads) {
        m.fibers.emplace_back();
        create((unsigned) m.fibers.size() - 1);
    }
    m.all = {threads};
    m.simds.assign(threads / lanes, {lanes});
    m.slots.resize(threads / lanes);
    std::vector<unsigned> left(threads);
    for (unsigned t = 0; t < threads; t++) {
        m.fibers[t].is_done = false;
        m.fibers[t].waits_for = nullptr;
        m.fibers[t].exchanges = 0;
        left[t] = t;
    }
    while (!left.empty()) {
        std::shuffle(left.begin(), left.end(), m.order);
        bool has_moved = false;
        for (const unsigned t : left) {
            fiber & f = m.fibers[t];
            if (f.waits_for && f.waits_for->generation == f.generation) {
                continue;
            }
            f.waits_for = nullptr;
            has_moved = true;
            resume(t);
        }
        left.erase(std::remove_if(left.begin(), left.end(), [&](unsigned t) { return m.fibers[t].is_done; }),
                   left.end());
        if (!has_moved) {
            fail("threads wait for others that are done");
        }
    }
}

// What the other lanes of the SIMD group say.
template <class T> std::array<T, lanes> exchange(T mine, meeting kind) {
    static_assert(sizeof(T) <= 8, "");
    machine & m = now();
    const unsigned simd = m.current / lanes;
    auto & slots = m.slots[simd][m.fibers[m.current].exchanges++ % 2]; // none is a whole exchange ahead of another
    std::memcpy(slots[m.current % lanes].data(), &mine, sizeof(T));
    meet(m.simds[simd], kind);
    std::array<T, lanes> all;
    for (unsigned lane = 0; lane < lanes; lane++) {
        std::memcpy(&all[lane], slots[lane].data(), sizeof(T));
    }
    return all;
}

// --- kernels by name ---

using kernel_body = std::function<void(const launch &, char * shared)>; // of a thread

struct library {
    std::map<std::string, kernel_body> kernels;
    std::map<int, std::function<void(int)>> constants;
};

library & kernels(); // of csrc/metal

inline void run(const std::string & name, const std::map<int, int> & constants, const launch & l) {
    const auto found = kernels().kernels.find(name);
    const unsigned threads = l.threads.x * l.threads.y * l.threads.z;
    if (found == kernels().kernels.end()) {
        fail("there is no kernel " + name);
    }
    if (threads % lanes != 0 || threads > 1024 || l.shared > most_shared) {
        fail("a threadgroup of " + std::to_string(threads) + " threads and " + std::to_string(l.shared) + " bytes");
    }
    for (const auto & constant : kernels().constants) {
        const auto value = constants.find(constant.first);
        constant.second(value == constants.end() ? -12345 : value->second); // a kernel may not need it
    }
    machine & m = now();
    // Guards around what was asked for; all NaN, as nothing may count on what it finds.
    std::vector<char> shared(l.shared + 256);
    char * const begin = shared.data() + 128;
    char * const aligned = begin + (16 - (uintptr_t) begin % 16) % 16;
    m.body = [&] { found->second(l, aligned); };
    for (unsigned z = 0; z < l.groups.z; z++) {
        for (unsigned y = 0; y < l.groups.y; y++) {
            for (unsigned x = 0; x < l.groups.x; x++) {
                std::fill(shared.begin(), shared.end(), (char) 0xFF);
                m.group = {x, y, z};
                run_group(threads);
                for (const char * p = shared.data(); p < shared.data() + shared.size(); p++) {
                    if ((p < aligned || p >= aligned + l.shared) && *p != (char) 0xFF) {
                        fail(name + " writes past its threadgroup memory");
                    }
                }
            }
        }
    }
}

} // namespace host_metal
