"""More than one machine: layers and their TQ cache on two RPC servers, and servers that are lost."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time

import httpx
import pytest
from click.testing import CliRunner

from llama_tq import cli
from llama_tq.runtime import embedded
from servers import free_port, rpc_process, rpc_server
from test_server import llama_server

# With the servers' ports as arguments; `lose` and `return` on standard output ask the test to end the second,
# and to start it again, and are answered by a line.
IN_PYTHON = """
import ctypes, json, os, sys, tempfile
import llama_cpp
import llama_cpp.llama_cpp as api
import numpy as np
import llama_tq
from llama_tq.runtime import embedded
from llama_tq.runtime.models import Model

PAIR, CTX, READ, WRITTEN = llama_tq.Pair("tq4_0", "tq3_0"), 1024, 500, 40
text = embedded.held_out_text()

def ask(what):
    print(what, flush=True)
    sys.stdin.readline()

def distribution(n_gpu_layers, after=None):
    with Model("demo", n_gpu_layers=n_gpu_layers) as model, model.context(PAIR, CTX) as context:
        tokens = model.tokenize(text)[:READ + WRITTEN]
        rows = [context.prefill(tokens[:READ]).copy()]
        for position in range(READ, READ + WRITTEN):
            if after == position:
                ask("lose")
            rows.append(context.decode(tokens[position : position + 1], position)[0].copy())
        result["devices"] = {d.device: d.cache for d in context.memory.devices}
    rows = np.array(rows, np.float64)
    rows -= rows.max(1, keepdims=True)
    return rows - np.log(np.exp(rows).sum(1, keepdims=True))

def kld(p, q):
    return float((np.exp(p) * (p - q)).sum(1).mean())

result = {}
here = distribution(0)
result["cache"] = result["devices"]["CPU"]
with llama_tq.centring(False):
    result["uncentred"] = kld(here, distribution(0))
llama_tq.add_rpc_servers(",".join(f"127.0.0.1:{port}" for port in sys.argv[1:]))
there = distribution(-1)
result["there"] = kld(here, there)
(row,) = llama_tq.plan("demo", n_ctx=CTX, pairs=[PAIR], n_gpu_layers=-1).pairs
result["planned"] = {d.device: d.cache for d in row.devices}
for name, what in {
    "lost": lambda: distribution(-1, READ + 5),
    "absent": lambda: distribution(-1),
}.items():
    try:
        what()
    except llama_tq.InputError as error:
        result[name] = str(error)
ask("return")
result["returned"] = kld(here, distribution(-1))
types = {"type_k": "tq4_0", "type_v": "tq3_0"}
llm = llama_cpp.Llama(str(embedded.MODEL), n_ctx=CTX, n_gpu_layers=-1, **types, verbose=False)
pieces = llm.create_completion("def __init__(self", max_tokens=200, stream=True, temperature=0)
next(pieces)
ask("lose")
try:
    list(pieces)
except RuntimeError as error:
    result["llama_cpp"] = str(error)
file, words = os.path.join(tempfile.mkdtemp(), "state"), (ctypes.c_int32 * 1)(1)
try:
    llm.save_state()
except RuntimeError as error:
    result["saved"] = str(error)
files = {
    "whole": api.llama_state_save_file(llm.ctx, file.encode(), words, 1),
    "sequence": api.llama_state_seq_save_file(llm.ctx, file.encode(), 0, words, 1),
}
result["files"] = [name for name, written in files.items() if written or os.path.exists(file)]
result["bytes"] = api.llama_state_seq_get_size(llm.ctx, 0)
llm.close()
print(json.dumps(result))
"""


@pytest.fixture(scope="module")
def result() -> dict:
    ports = [free_port(), free_port()]
    with contextlib.ExitStack() as stack, rpc_process(ports[0]):
        second = stack.enter_context(rpc_process(ports[1]))
        command = [sys.executable, "-c", IN_PYTHON, *map(str, ports)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        with subprocess.Popen(command, text=True, **pipes) as process:
            errors: list[str] = []
            reader = threading.Thread(target=lambda: errors.extend(process.stderr))
            reader.start()
            line = ""
            for line in process.stdout:
                match line.strip():
                    case "lose":
                        second.kill()
                        second.wait()
                    case "return":
                        second = stack.enter_context(rpc_process(ports[1]))
                    case _:
                        break
                process.stdin.write("\n")
                process.stdin.flush()
            assert process.wait(60) == 0, "".join(errors)
            reader.join()
    return json.loads(line)


def test_results_are_those_of_one_process(result):
    """Within rounding; not centring, which needs tables on the servers, would show."""
    assert abs(result["there"]) < 1e-6
    assert abs(result["returned"]) < 1e-6
    assert result["uncentred"] > 1e-3


def test_each_server_holds_a_part_of_the_cache_as_planned(result):
    assert set(result["planned"]) == {"CPU", "RPC0", "RPC1"}
    assert result["planned"] == result["devices"]
    assert result["planned"]["CPU"] == 0
    parts = result["planned"]["RPC0"], result["planned"]["RPC1"]
    assert all(part > 0.3 * result["cache"] for part in parts)
    assert sum(parts) == pytest.approx(result["cache"], rel=0.05)  # some tables are on both


def test_a_lost_server_is_an_error_in_python(result):
    """And the process goes on; when the server is there again, so do models that are opened anew."""
    assert "does not answer any more" in result["lost"]
    assert "does not answer" in result["absent"] and "does not answer any more" not in result["absent"]
    assert "llama_decode returned -3" in result["llama_cpp"]


def test_the_state_of_a_lost_server_is_not_saved(result):
    """It would be zeros."""
    assert "does not answer any more" in result["saved"]
    assert (result["files"], result["bytes"]) == ([], 0)


def test_a_lost_server_is_an_error_in_llama_server(tmp_path):
    port = free_port()
    with contextlib.ExitStack() as stack, rpc_process(free_port()) as _, rpc_process(port) as lost:
        client = stack.enter_context(
            llama_server(
                *(("tq4_0", "tq4_0"), "-ngl", 99, "--rpc", f"127.0.0.1:{port}"),
                *("--slot-save-path", tmp_path),
            )
        )
        body = {"prompt": "def main", "n_predict": 500, "ignore_eos": True, "stream": True}
        with client.stream("POST", "/completion", json=body) as answer:
            lines = answer.iter_lines()
            next(lines)
            lost.kill()
            began = time.monotonic()
            assert any("Compute error" in line for line in lines)
        again = client.post("/completion", json={**body, "stream": False})
        assert (again.status_code, again.json()["error"]["message"]) == (500, "Compute error.")
        saved = client.post("/slots/0", params={"action": "save"}, json={"filename": "lost.bin"})
        assert (saved.status_code, list(tmp_path.iterdir())) == (500, [])
        assert time.monotonic() - began < 60
        assert client.get("/health").status_code == httpx.codes.OK


@pytest.mark.parametrize("program", ["llama-cli", "llama-perplexity", "llama-bench"])
def test_an_absent_server_is_an_error(program):
    command = [program, "-m", embedded.MODEL, "--rpc", f"127.0.0.1:{free_port()}", "-ngl", "99"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)
    assert done.returncode == 1
    assert "no RPC server answers at 127.0.0.1" in done.stdout + done.stderr


def test_a_server_outlives_its_clients():
    """Also those that are gone while it writes to them."""
    with rpc_server() as port:
        command = ["llama-tq", "run", "demo", "def", "-n", "2000", "--rpc", f"127.0.0.1:{port}"]
        for _ in range(2):
            with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as client:
                assert client.stdout.read(1)
                client.kill()
        command[5] = "4"
        assert subprocess.run(command, capture_output=True, timeout=120, env=os.environ).returncode == 0


@pytest.mark.parametrize(
    ("servers", "reason"),
    [
        ("127.0.0.1:{port}", "No RPC server answers at 127.0.0.1:{port}. Start one there: ggml-rpc-server"),
        ("127.0.0.1", "'127.0.0.1' is not an RPC server. Write host:port"),
        ("127.0.0.1:0", "is not an RPC server"),
        ("127.0.0.1:99999", "is not an RPC server"),
        ("", "is not an RPC server"),
    ],
)
def test_llama_tq_names_a_server_that_does_not_answer(servers, reason):
    port = free_port()
    result = CliRunner().invoke(cli.main, ["plan", "demo", "--rpc", servers.format(port=port)])
    assert (result.exit_code, result.stdout) == (2, "")
    assert reason.format(port=port) in result.stderr
