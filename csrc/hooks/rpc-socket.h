// Sockets of the RPC backend: to write to a lost peer is an error and no signal that ends the process, and a peer that
// was switched off is noticed within half a minute. Needs the headers of sockets.
#pragma once

#ifdef MSG_NOSIGNAL
enum { GGML_TQ_SEND = MSG_NOSIGNAL };
#else
enum { GGML_TQ_SEND = 0 };
#endif

#ifdef _WIN32
inline void ggml_tq_watch(SOCKET) {} // it has no such signal
#else
inline void ggml_tq_set(int fd, int level, int option, int value) {
    setsockopt(fd, level, option, &value, sizeof(value));
}

inline void ggml_tq_watch(int fd) {
    ggml_tq_set(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
#    ifdef SO_NOSIGPIPE
    ggml_tq_set(fd, SOL_SOCKET, SO_NOSIGPIPE, 1);
#    endif
#    ifdef TCP_KEEPIDLE
    ggml_tq_set(fd, IPPROTO_TCP, TCP_KEEPIDLE, 10);
#    endif
#    ifdef TCP_KEEPINTVL
    ggml_tq_set(fd, IPPROTO_TCP, TCP_KEEPINTVL, 5);
    ggml_tq_set(fd, IPPROTO_TCP, TCP_KEEPCNT, 4);
#    endif
#    ifdef TCP_USER_TIMEOUT
    ggml_tq_set(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, 30 * 1000); // ms, for what was sent and not confirmed
#    endif
}
#endif
