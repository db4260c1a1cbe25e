"""Layers on a GPU, `-ngl`: with an RPC server for the GPU, which llama.cpp takes for one, and without any."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from click.testing import CliRunner

from llama_tq import cli
from llama_tq.runtime import ggml
from servers import rpc_server

WITH_RPC = """
import ctypes, json, sys
import llama_tq
from llama_tq.runtime import ggml
from llama_tq.runtime.models import Model

add = ggml._function("ggml-rpc", "ggml_backend_rpc_add_server", ctypes.c_void_p, ctypes.c_char_p)
ggml._function("ggml", "ggml_backend_register", None, ctypes.c_void_p)(add(sys.argv[1].encode()))
pair = llama_tq.Pair("tq4_0", "tq3_0")
result = {}
for layers in (0, 3, -1):
    (row,) = llama_tq.plan("demo", n_ctx=1024, pairs=[pair], n_gpu_layers=layers).pairs
    made = llama_tq.generate("demo", "def __init__(self", pair, n_tokens=8, n_ctx=1024, n_gpu_layers=layers)
    with Model("demo", n_gpu_layers=layers) as model, model.context(pair, 1024) as context:
        allocated = context.memory.devices
    result[layers] = {
        "as planned": allocated == row.devices,
        "devices": {d.device: (d.weights, d.cache, d.compute) for d in row.devices},
        "cache": row.cache_bytes,
        "total": row.total_bytes,
        "text": made.text,
    }
weights = llama_tq.plan("demo", n_ctx=1024, pairs=[pair], n_gpu_layers=-1)
of_gpu = next(d.total for d in weights.pairs[0].devices if d.device != "CPU")
result["longest"] = [
    llama_tq.plan("demo", pairs=[pair], n_gpu_layers=-1, memory=limit).pairs[0].longest
    for limit in (of_gpu, of_gpu - 1)
]
print(json.dumps(result))
"""


@pytest.fixture(scope="module")
def result() -> dict:
    with rpc_server() as port:
        command = [sys.executable, "-c", WITH_RPC, f"127.0.0.1:{port}"]
        done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_no_layers_leave_a_gpu_alone(result):
    assert list(result["0"]["devices"]) == ["CPU"]


@pytest.mark.parametrize(("layers", "share"), [("3", 2 / 7), ("-1", 1)])
def test_layers_bring_their_cache_to_the_gpu(result, layers, share):
    """The output counts as a layer, the last of them."""
    devices = result[layers]["devices"]
    assert set(devices) == {"CPU", "RPC0"}
    rotation = 4 * (128**2 + 64**2)  # bytes of its matrices, on each device
    if layers == "3":
        assert result[layers]["cache"] >= result["-1"]["cache"] + rotation
    # but for the tables of centred keys, which both may need
    of_gpu = share * (result[layers]["cache"] - rotation) + rotation
    assert devices["RPC0"][1] == pytest.approx(of_gpu, rel=0.1)
    assert sum(map(sum, devices.values())) == result[layers]["total"]
    assert result[layers]["as planned"]
    assert result[layers]["text"] == result["0"]["text"]


def test_a_limit_is_one_of_the_gpu(result):
    exact, less = result["longest"]
    assert less < 1024 <= exact


COMMANDS = [
    ["info", "demo"],
    ["demo"],
    ["plan", "demo"],
    ["eval", "demo"],
    ["centre", "demo"],
    ["compare", "demo", "x"],
    ["run", "demo", "x"],
    ["bench", "demo"],
]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_without_a_gpu_they_are_refused(command, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ggml, "_GPU_TYPES", ())
    result = CliRunner().invoke(cli.main, [*command, "-ngl", "1"])
    assert (result.exit_code, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith("llama-tq: No layer can be on a GPU: llama.cpp finds none here, only CPU")
