"""Caches on a GPU against caches on the CPU: the same predictions, states that both read, and refusals.

What a cache does on one device, test_llama_cache.py, test_centring.py and test_llama_trained.py say of every
device.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys

import llama_cpp.llama_cpp as api
import numpy as np
import pytest

import devices
import llama_models
import llama_tq
from ggml_graph import F16, F32, I32, I64, Graph
from llama_session import Session, distance, model_file, on, tokens
from test_centring import ALL
from test_llama_cache import TYPES, error_bound
from test_llama_refusals import refusal

PAIRS = [*((name, name) for name in TYPES), ("tq4_0", "tq2_1"), ("q8_0", "tq3_0"), ("tq4_0", "f16")]
pairs = pytest.mark.parametrize("pair", PAIRS, ids="-".join)
Q4_0, Q8_0, BF16 = 2, 8, 30


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


def session(device: str, *arguments: object, **options: object) -> Session:
    with on(device):
        return Session(*arguments, **options)


@pytest.fixture(params=devices.GPUS)
def gpu(request) -> str:
    return request.param


@pairs
def test_predictions_are_the_cpus(directory, pair, gpu):
    """Up to rounding, after which what is near a tie is encoded differently."""
    path = model_file(directory, llama_models.plain, 128)
    with session(gpu, path, *pair) as there, session(devices.CPU, path, *pair) as cpu:
        for start in (0, 50, 51):
            part = tokens(50 if start != 50 else 1, start)
            assert distance(there.decode(part, start), cpu.decode(part, start)) < error_bound(*pair) / 2


@pytest.mark.parametrize("from_gpu", [True, False])
@pytest.mark.parametrize("model", ALL)
@pairs
def test_a_state_goes_to_the_other_device(directory, pair, model, from_gpu, gpu):
    """The same bytes there, and predictions as on the device that it comes from."""
    saved, restored = (gpu, devices.CPU) if from_gpu else (devices.CPU, gpu)
    path = model_file(directory, *ALL[model])
    prompt, end = tokens(130), tokens(10, seed=1)
    with session(saved, path, *pair, swa_full=True) as there:
        there.decode(prompt)
        state = there.state()
        expected = there.decode(end, start=130)
    with session(restored, path, *pair, swa_full=True) as here:
        here.restore(state)
        assert here.state() == state
        assert distance(here.decode(end, start=130), expected) < error_bound(*pair) / 2


@pytest.mark.parametrize("name", TYPES)
def test_one_token_at_a_time(directory, name, gpu):
    """As llama.cpp decodes when it writes, with CUDA graphs; across the end of a chunk and of 256 cells."""
    path = model_file(directory, *ALL["neox"])
    text = tokens(300)
    with session(gpu, path, name, name) as whole, session(gpu, path, name, name) as one:
        expected = whole.decode(text[:256]), whole.decode(text[256:], 256)
        one.decode(text[:200])
        result = np.concatenate([one.decode(text[i : i + 1], i) for i in range(200, 300)])
    assert distance(result, np.concatenate(expected)[200:]) < error_bound(name, name) / 2


@pytest.mark.cuda
@pytest.mark.parametrize("name", TYPES)
def test_cuda_graphs_change_no_bit(directory, name):
    path = model_file(directory, *ALL["neox"])
    code = (
        "import sys\nfrom pathlib import Path\nfrom llama_session import Session, on, tokens\n"
        "from test_gpu_cache import fingerprint\n"
        "with on('CUDA0'), Session(Path(sys.argv[1]), sys.argv[2], sys.argv[2]) as session:\n"
        "    print(fingerprint(session))"
    )
    results = []
    for switch in ({}, {"GGML_CUDA_DISABLE_GRAPHS": "1"}):
        environment = os.environ | switch | {"PYTHONPATH": os.pathsep.join(sys.path)}
        command = [sys.executable, "-c", code, path, name]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        results.append(done.stdout)
    assert results[0] == results[1]


def fingerprint(session: Session) -> str:
    digest = hashlib.sha256()
    text = tokens(120)
    for start in range(120):
        digest.update(session.decode(text[start : start + 1], start).tobytes())
    return digest.hexdigest()


def test_head_sizes_that_the_gpu_has_no_kernels_for(directory, gpu):
    path = model_file(directory, llama_models.plain, 160)
    with on(gpu):
        assert f"{gpu} has no flash attention for a K cache of type tq4_0" in refusal(path, "tq4_0", "tq4_0")
        with Session(path, "tq4_0", "tq4_0", offload_cache=False) as there:  # the advice
            there.decode(tokens(5))


def test_pairs_that_the_gpu_has_no_kernels_for(directory, gpu):
    path = model_file(directory, llama_models.plain, 128)
    with on(gpu):
        for pair in (("q4_0", "tq4_0"), ("tq4_0", "bf16")):
            assert f"K cache of type {pair[0]} with a V cache of type {pair[1]}" in refusal(path, *pair)


@pytest.mark.parametrize("name", TYPES)
def test_k_without_flash_attention(directory, name, gpu):
    path = model_file(directory, llama_models.plain, 128)
    off = api.LLAMA_FLASH_ATTN_TYPE_DISABLED
    with on(gpu):
        assert f"{gpu} needs flash attention for a K cache" in refusal(path, name, "f16", flash_attention=off)


# --- what the backend says of single operations ---


@pytest.fixture
def graph(gpu):
    with Graph(gpu) as graph:
        yield graph


@pytest.mark.parametrize("t", llama_tq.types(), ids=lambda t: t.name)
def test_operations(graph, t):
    """Those that test_llama_ops.py runs, and no others."""

    def of(kind: int, columns: int = 128, rows: int = 8) -> int:
        return graph.new(kind, columns, rows)

    ours, other = of(t.id), of(next(o.id for o in llama_tq.types() if o.name != t.name))
    ids32, ids64 = graph.new(I32, 8), graph.new(I64, 8)
    works = {
        *((f"set_rows {kind} i32", graph.op("set_rows", ours, of(kind), ids32)) for kind in (F32, F16)),
        *((f"set_rows {kind} i64", graph.op("set_rows", ours, of(kind), ids64)) for kind in (F32, F16)),
        ("get_rows", graph.op("get_rows", ours, ids32)),
        *((f"cpy {kind} to", graph.op("cpy", of(kind), ours)) for kind in (F32, F16)),
        *((f"cpy to {kind}", graph.op("cpy", ours, of(kind))) for kind in (F32, F16)),
        ("cpy within", graph.op("cpy", ours, of(t.id))),
    }
    refused = {
        ("cpy to another", graph.op("cpy", ours, other)),
        ("cpy to q8_0", graph.op("cpy", ours, of(Q8_0))),
        ("cpy from q8_0", graph.op("cpy", of(Q8_0), ours)),
        ("cpy from bf16", graph.op("cpy", of(BF16), ours)),
        ("cpy to i32", graph.op("cpy", ours, of(I32))),
        ("mul_mat", graph.op("mul_mat", ours, of(F32))),
        ("concat", graph.op("concat", ours, of(t.id), 1)),
    }
    assert {name: graph.supports(op) for name, op in works} == {name: True for name, _ in works}
    assert {name: graph.supports(op) for name, op in refused} == {name: False for name, _ in refused}


@pytest.mark.parametrize("size", [32, 64, 80, 96, 128, 160, 192, 224, 256])
def test_attention(graph, size):
    """Of every pair with one of the types, and sizes as csrc/cuda/attention.h has them."""
    ours = [t.id for t in llama_tq.types()]
    query, mask = graph.new(F32, size, 1, 1), graph.new(F16, 256, 1, 1)
    for k in (*ours, F16, Q8_0, Q4_0, BF16):
        for v in (*ours, F16, Q8_0, Q4_0, BF16):
            if size % 32 or not {k, v} & {*ours}:
                continue
            halves = graph.new(k, size, 256, 1), graph.new(v, size, 256, 1)
            op = graph.op("flash_attn_ext", query, *halves, mask, 1.0, 0.0, 0.0)
            taken = {k, v} <= {*ours, F16, Q8_0} and size in (64, 96, 128, 192, 256)
            assert graph.supports(op) == taken, (k, v)
