"""The installed llama.cpp programs with TQ caches."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import socketserver
import subprocess
import threading
import time
import urllib.error
import urllib.request

import pytest

import llama_models
import llama_tq
from llama_session import model_file
from servers import free_port, rpc_server

TYPES = [t.name for t in llama_tq.types()]
PAIRS = [*((name, name) for name in TYPES), ("tq4_0", "tq2_1"), ("q8_0", "tq3_0"), ("tq4_0", "f16")]
pairs = pytest.mark.parametrize(("type_k", "type_v"), PAIRS, ids=map("-".join, PAIRS))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return model_file(tmp_path_factory.mktemp("models"), llama_models.plain, 128)


def run(*command: object, status: int = 0) -> str:
    """Standard output and error. A `status` other than 0 stands for any failure that is not a signal."""
    result = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=300
    )
    assert (result.returncode == 0) == (status == 0), result.stderr
    assert result.returncode >= 0, result.stderr
    return result.stdout + result.stderr


def cache(type_k: str, type_v: str) -> tuple[str, ...]:
    return "-ctk", type_k, "-ctv", type_v


def perplexity(model, text, *arguments: object, status: int = 0) -> str:
    """The perplexity as it is printed, or the output of a failure."""
    arguments = ("-m", model, "-f", text, "-c", 256, "--chunks", 1, "-t", 2, *arguments)
    output = run("llama-perplexity", *arguments, status=status)
    return output if status else re.search(r"Final estimate: PPL = ([0-9.]+)", output)[1]


@pairs
def test_llama_cli(model, type_k, type_v):
    arguments = ("-p", "abc", "-n", 8, "--temp", 0, "--single-turn", "-t", 2, "-c", 256, "--log-verbosity", 4)
    output = run("llama-cli", "-m", model, *cache(type_k, type_v), *arguments)
    assert f"K ({type_k})" in output
    assert f"V ({type_v})" in output
    assert "Generation:" in output


@pairs
def test_llama_perplexity(model, tmp_path, type_k, type_v):
    text = tmp_path / "text"
    text.write_text("the quick brown fox jumps over the lazy dog " * 30)
    f16, tq = (float(perplexity(model, text, *cache(*pair))) for pair in (("f16", "f16"), (type_k, type_v)))
    assert tq == pytest.approx(f16, rel=0.2)


@pairs
def test_llama_bench(model, type_k, type_v):
    arguments = ("-fa", 1, "-p", 32, "-n", 4, "-r", 1, "-t", 2, "-o", "json")
    output = run("llama-bench", "-m", model, *cache(type_k, type_v), *arguments)
    results = json.loads(output[output.index("[") : output.rindex("]") + 1])
    assert {(r["type_k"], r["type_v"]) for r in results} == {(type_k, type_v)}


@contextlib.contextmanager
def server(model, log, *arguments: str):
    port = free_port()
    command = ["llama-server", "-m", model, "--port", str(port), "-c", "512", "-t", "2", *arguments]
    with (
        log.open("w") as output,
        subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT) as process,
    ):
        try:
            deadline = time.monotonic() + 60
            while True:
                assert process.poll() is None, log.read_text()
                with contextlib.suppress(urllib.error.URLError, ConnectionError):
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/health")
                    break
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.1)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


def post(url: str, **body: object) -> dict:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as response:
        return json.load(response)


@pairs
def test_llama_server(model, tmp_path, type_k, type_v):
    """Completion, a slot saved and restored, and a context that is shifted because the text outgrows it."""
    log = tmp_path / "log"
    arguments = ("--slot-save-path", str(tmp_path), "-np", "1", "--context-shift", *cache(type_k, type_v))
    with server(model, log, *arguments) as url:
        prompt = {"prompt": "the quick brown fox", "temperature": 0, "cache_prompt": True, "ignore_eos": True}
        first = post(f"{url}/completion", **prompt, n_predict=8)
        assert first["tokens_predicted"] == 8
        saved = post(f"{url}/slots/0?action=save", filename="slot")
        post(f"{url}/slots/0?action=erase")
        assert post(f"{url}/slots/0?action=restore", filename="slot")["n_restored"] == saved["n_saved"]
        assert post(f"{url}/completion", **prompt, n_predict=8)["content"] == first["content"]
        long = post(f"{url}/completion", **prompt, n_predict=600)
        assert long["tokens_predicted"] == 600
    assert "context shift" in log.read_text()


class WithoutTypes(socketserver.BaseRequestHandler):
    """Passes everything on to an RPC server, but makes its greeting that of a server without the TQ types."""

    def handle(self) -> None:
        with socket.create_connection(("127.0.0.1", self.server.port)) as target:
            answers = threading.Thread(target=self.answer, args=(target,))
            answers.start()
            with contextlib.suppress(OSError):
                while data := self.request.recv(1 << 16):
                    target.sendall(data)
            target.shutdown(socket.SHUT_WR)
            answers.join()

    def answer(self, target: socket.socket) -> None:
        greeting = bytearray()
        while len(greeting) < 12:  # the length, 8 bytes; version, 3 bytes; the format of the TQ types
            greeting += target.recv(1 << 16)
        assert greeting[11] != 0
        greeting[11] = 0
        with contextlib.suppress(OSError):
            self.request.sendall(greeting)
            while data := target.recv(1 << 16):
                self.request.sendall(data)


def test_rpc_servers_have_the_types_or_are_refused(model, tmp_path):
    text = tmp_path / "text"
    text.write_text("the quick brown fox jumps over the lazy dog " * 30)
    types = cache("tq4_0", "tq3_0")
    expected = perplexity(model, text, *types)
    with rpc_server() as port:
        assert perplexity(model, text, *types, "--rpc", f"127.0.0.1:{port}", "-ngl", 99) == expected
        with socketserver.ThreadingTCPServer(("127.0.0.1", 0), WithoutTypes) as proxy:
            proxy.port = port
            threading.Thread(target=proxy.serve_forever).start()
            remote = ("--rpc", f"127.0.0.1:{proxy.server_address[1]}", "-ngl", 99)
            try:
                output = perplexity(model, text, *types, *remote, status=1)
                assert (
                    "cannot hold a K cache of type tq4_0; keep the cache in main memory (--no-kv-offload"
                    in output
                )
                assert perplexity(model, text, *types, *remote, "--no-kv-offload") == expected
            finally:
                proxy.shutdown()


@pytest.mark.parametrize(
    "program", [("llama-cli", "-p", "a"), ("llama-server",), ("llama-perplexity", "-p", "a")]
)
def test_refusal_reaches_the_terminal(program, tmp_path, model):
    path = model_file(tmp_path, llama_models.plain, 80)
    output = run(*program, "-m", path, "-c", 256, *cache("tq4_0", "tq4_0"), status=1)
    assert "K cache type tq4_0 needs head sizes that are multiples of 32, and layer 0 has 80" in output
    output = run(*program, "-m", model, "-c", 256, "-fa", "off", *cache("f16", "tq4_0"), status=1)
    assert "V cache type tq4_0 needs flash attention, which is off; turn it on (--flash-attn on" in output


def test_unknown_type_is_refused(model):
    assert "tq4_1" in run("llama-cli", "-m", model, *cache("tq4_1", "f16"), status=1)
    for name in TYPES:
        assert name in run("llama-cli", "--help")
