"""Servers that the tests start on this machine."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import time
from collections.abc import Iterator


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def rpc_process(port: int) -> Iterator[subprocess.Popen]:
    """llama.cpp's RPC server: to a client it is a GPU."""
    command = ["ggml-rpc-server", "--host", "127.0.0.1", "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            deadline = time.monotonic() + 60
            while True:
                assert process.poll() is None
                with contextlib.suppress(ConnectionError), socket.create_connection(("127.0.0.1", port)):
                    break
                assert time.monotonic() < deadline
                time.sleep(0.1)
            yield process
        finally:
            process.terminate()


@contextlib.contextmanager
def rpc_server() -> Iterator[int]:
    """Yields its port."""
    port = free_port()
    with rpc_process(port):
        yield port
