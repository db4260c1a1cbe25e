"""Other machines: what a `ggml-rpc-server` there has counts as GPUs here."""

from __future__ import annotations

from ..errors import InputError
from . import ggml
from .models import native_log


def add_rpc_servers(servers: str) -> None:
    """From now on, in this process, layers that go to GPUs go to these servers too: `host:port`, by commas.

    With `n_gpu_layers`, as llama.cpp's programs do after `--rpc`. Raises InputError where no server answers.
    """
    for server in servers.split(","):
        host, _, port = server.strip().rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
            raise InputError(f"{server!r} is not an RPC server. Write host:port, such as 192.168.1.2:50052.")
        with native_log():
            added = ggml.add_rpc_server(f"{host}:{port}")
        if not added:
            raise InputError(
                f"No RPC server answers at {host}:{port}. Start one there: ggml-rpc-server --host {host} "
                f"--port {port}"
            )
