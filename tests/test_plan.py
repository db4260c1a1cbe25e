"""The plan against what llama.cpp allocates and logs, and against sums done by hand, by kind of cache."""

from __future__ import annotations

import logging
import re

import pytest
from llama_tq._native import CENTRING_CHUNK

from llama_tq.commands.plan import plan
from llama_tq.errors import InputError
from llama_tq.runtime.installed import cache_types
from llama_tq.runtime.models import BATCH, CPU, STEP, Context, Model
from llama_tq.runtime.pairs import REFERENCE, Pair, bits_per_value, is_tq
from tiny_models import CONTEXT, MODELS, WINDOW

N_CTX = 3000
PADDED = 3072
HEAD = 64
WINDOW_CELLS = 1024  # the window and one batch, rounded up to 256
MIXED = [Pair("q8_0", "tq3_0"), Pair("tq4_0", "tq2_1"), Pair("f16", "q4_0")]


@pytest.fixture(scope="module", params=MODELS)
def tiny(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / f"{request.param}.gguf"
    MODELS[request.param].write(path)
    return request.param, path


def test_bytes_by_hand(tiny):
    name, path = tiny
    model = MODELS[name]
    for row in plan(path, n_ctx=N_CTX, pairs=[Pair(t, t) for t in cache_types()] + MIXED).pairs:
        if name == "latent" and (row.pair.k != row.pair.v or is_tq(row.pair.k)):
            assert "does not support" in row.refused
            continue
        assert row.refused is None
        k, v = bits_per_value(row.pair.k) / 8, bits_per_value(row.pair.v) / 8
        per_token = model.k_per_token * k + model.v_per_token * v
        fixed = model.state_bytes + WINDOW_CELLS * model.windowed * (k + v)
        caches = bool(model.k_per_token) + bool(model.windowed)
        if is_tq(row.pair.k) or is_tq(row.pair.v):  # a matrix for every half that is rotated
            fixed += caches * HEAD**2 * 4 * sum(bits_per_value(t) < 16 for t in (row.pair.k, row.pair.v))
        if is_tq(row.pair.k):  # two rows of every layer's means, and a table of turns with a row for none
            fixed += 2 * 4 * (model.k_per_token + model.windowed) + caches * HEAD * 4
            per_token += caches * HEAD * 4 / CENTRING_CHUNK
        assert row.bytes_per_token == per_token
        assert row.fixed_bytes == fixed
        assert row.cache_bytes == PADDED * per_token + fixed


@pytest.mark.parametrize("layers", [0, pytest.param(-1, marks=pytest.mark.cuda)], ids=["cpu", "gpu"])
def test_allocation(tiny, caplog, layers):
    """Real contexts take what was planned, to the byte; so does llama.cpp's own log, as precisely as it
    prints.
    """
    name, path = tiny
    for pair in (REFERENCE, Pair("q4_0", "q4_0") if name == "latent" else Pair("tq4_0", "tq2_1")):
        (row,) = plan(path, n_ctx=N_CTX, pairs=[pair], n_gpu_layers=layers).pairs
        with Model(path, n_gpu_layers=layers) as model, model.context(pair, STEP):
            pass  # the first one measures mean keys, in a context that the log shows as well
        caplog.clear()
        with (
            caplog.at_level(logging.DEBUG, "llama_tq.native"),
            Model(path, n_gpu_layers=layers) as model,
            model.context(pair, N_CTX) as context,
        ):
            allocated = context.memory
        assert (allocated.cache, allocated.total) == (row.cache_bytes, row.total_bytes)
        assert allocated.devices == row.devices
        assert any(device.device != CPU for device in row.devices) == bool(layers)
        buffers = re.findall(r"(?:KV|RS|TQ) buffer size = +([\d.]+) MiB", caplog.text)
        assert buffers
        assert sum(map(float, buffers)) == pytest.approx(row.cache_bytes / 2**20, abs=0.006 * len(buffers))


def test_sequences_and_full_windows(tiny):
    name, path = tiny
    model, pair = MODELS[name], Pair("q8_0", "q8_0")
    for sequences, swa_full in ((3, False), (1, True)):
        (row,) = plan(path, n_ctx=N_CTX, pairs=[pair], sequences=sequences, swa_full=swa_full).pairs
        how = {"sequences": sequences, "swa_full": swa_full}
        with Model(path) as opened, Context(opened, pair, N_CTX, **how) as context:
            assert context.memory.cache == row.cache_bytes
        cells = PADDED if swa_full else -(-(WINDOW * sequences + BATCH) // STEP) * STEP
        per_token = (model.k_per_token + model.v_per_token) * bits_per_value("q8_0") / 8
        window = 2 * model.windowed * bits_per_value("q8_0") / 8
        assert row.cache_bytes == PADDED * per_token + cells * window + sequences * model.state_bytes


def test_longest_context(tiny):
    """One step more does not fit."""
    _, path = tiny
    pair = Pair("q8_0", "q8_0")
    (whole,) = plan(path, pairs=[pair]).pairs
    (small,) = plan(path, n_ctx=STEP, pairs=[pair]).pairs
    for limit in (small.total_bytes, (small.total_bytes + whole.total_bytes) // 2, whole.total_bytes):
        (row,) = plan(path, n_ctx=STEP, memory=limit, pairs=[pair]).pairs
        assert STEP <= row.longest <= CONTEXT
        (there,) = plan(path, n_ctx=row.longest, pairs=[pair]).pairs
        assert there.total_bytes <= limit
        if row.longest < CONTEXT:
            (beyond,) = plan(path, n_ctx=row.longest + STEP, pairs=[pair]).pairs
            assert beyond.total_bytes > limit
    weights = plan(path, pairs=[pair]).weights_bytes
    assert plan(path, memory=weights, pairs=[pair]).pairs[0].longest == 0


def test_refusals(tiny):
    _, path = tiny
    with pytest.raises(InputError, match=f"9000 tokens .* takes 1 to {CONTEXT}"):
        plan(path, n_ctx=9000)
    with pytest.raises(InputError, match=r"weights, more than the 1000 B given"):
        plan(path, memory=1000)
    half = path.with_name("half.gguf")
    half.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InputError, match=r"Cannot load .*half\.gguf: .*incomplete"):
        plan(half)
