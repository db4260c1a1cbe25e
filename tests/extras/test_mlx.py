"""llama_tq.mlx: the bytes of the reference, and mlx-lm generating with them."""

from __future__ import annotations

import os
import subprocess
import sys

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.generate import generate_step, speculative_generate_step
from mlx_lm.models.cache import (
    KVCache,
    RotatingKVCache,
    load_prompt_cache,
    make_prompt_cache,
    save_prompt_cache,
    trim_prompt_cache,
)
from scipy.linalg import hadamard
from scipy.special import log_softmax

import llama_tq.mlx
import mlx_models
from llama_tq import reference
from llama_tq.heads import KEY, VALUE, rotation_size
from llama_tq.mlx import TurboQuantCache, patch
from llama_tq.mlx.rotation import rotate
from llama_tq.runtime import embedded
from llama_tq.runtime.models import Model

TYPES = list(reference.TYPES)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def inputs() -> dict[str, np.ndarray]:
    """What an encoder could stumble over."""
    rng, n = np.random.default_rng(0), 2000
    scales = np.float32(10) ** rng.uniform(-8, 6, (n, 4)).astype(np.float32)
    raw = rng.integers(0, 1 << 32, (n, 64), dtype=np.uint32).view(np.float32)
    special = np.float32([0, -0.0, np.nan, np.inf, -np.inf, 1e-45, -1e-38, 2**-21, 121920, 3e38, 1, -1])
    return {
        "normal, in several parts": normal(9000, 64),
        "heavy tails": rng.standard_t(2, (n, 64)).astype(np.float32),
        "scales that do not fit together": np.repeat(scales, 16, axis=1) * normal(n, 64),
        "all bit patterns": raw,
        "special values": rng.choice(special, (n, 64)),
        "integers, for ties": rng.integers(-127, 128, (n, 64)).astype(np.float32),
        "zeros": np.zeros((2, 64), np.float32),
        "no rows": np.zeros((0, 64), np.float32),
        "one block": normal(32),
    }


# --- the codec ---


@pytest.mark.parametrize("type", TYPES)
@pytest.mark.parametrize("what", inputs())
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of NumPy, where the reference limits infinities
def test_bytes_are_those_of_the_reference(type, what):
    x = inputs()[what]
    b = llama_tq.mlx.quantize(mx.array(x), type)
    expected = reference.quantize(x, type)
    assert b.dtype == mx.uint8
    np.testing.assert_array_equal(np.array(b), expected)
    np.testing.assert_array_equal(
        np.array(llama_tq.mlx.dequantize(b, type)), reference.dequantize(expected, type)
    )


@pytest.mark.parametrize("type", TYPES)
def test_every_scale_word_decodes_as_in_the_reference(type):
    """Signs of zeros included."""
    size = reference.TYPES[type].block_bytes
    b = np.random.default_rng(0).integers(0, 256, (1 << 16, size), dtype=np.uint8)
    b[:, :2] = np.arange(1 << 16, dtype="<u2")[:, None].view(np.uint8)
    y = np.array(llama_tq.mlx.dequantize(mx.array(b), type))
    np.testing.assert_array_equal(y.view(np.uint32), reference.dequantize(b, type).view(np.uint32))


@pytest.mark.parametrize("type", TYPES)
@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_halves_are_widened(type, dtype):
    x = mx.array(normal(4, 3, 64)).astype(dtype)
    expected = reference.quantize(np.array(x.astype(mx.float32)), type)
    np.testing.assert_array_equal(np.array(llama_tq.mlx.quantize(x, type)), expected)


def test_refusals():
    with pytest.raises(ValueError, match=r"unknown type 'q4_0'; allowed are tq4_0, tq3_0, tq2_1"):
        llama_tq.mlx.quantize(mx.zeros(32), "q4_0")
    with pytest.raises(ValueError, match=r"x has dtype mlx\.core\.int32; allowed are float32, float16 and"):
        llama_tq.mlx.quantize(mx.zeros(32, mx.int32), "tq4_0")
    for shape in ((2, 33), ()):
        with pytest.raises(ValueError, match=r"x has shape .*; the last dimension must be a multiple of 32"):
            llama_tq.mlx.quantize(mx.zeros(shape), "tq4_0")
    with pytest.raises(ValueError, match=r"b has dtype mlx\.core\.int8; allowed is uint8"):
        llama_tq.mlx.dequantize(mx.zeros(18, mx.int8), "tq4_0")
    with pytest.raises(ValueError, match=r"b has shape \(17,\); the last dimension must be a multiple of 18"):
        llama_tq.mlx.dequantize(mx.zeros(17, mx.uint8), "tq4_0")


@pytest.mark.parametrize("n", [32, 64, 128])
def test_rotation_is_the_hadamard_matrix(n):
    x = normal(5, 128)
    expected = x.reshape(5, -1, n) @ (hadamard(n) / np.sqrt(n))
    found = rotate(mx.array(x), n)
    np.testing.assert_allclose(np.array(found), expected.reshape(5, 128), atol=1e-5)
    np.testing.assert_allclose(np.array(rotate(found, n)), x, atol=1e-5)


# --- the cache ---


@pytest.mark.parametrize(("k", "v"), [("tq4_0", "tq4_0"), ("tq3_0", "tq2_1"), ("tq2_1", "tq4_0")])
@pytest.mark.parametrize("head", [64, 96, 128])
def test_cache_holds_the_bytes_of_the_reference(k, v, head):
    """After rotation, with what keys and values have for a rotation; appended at once or in parts."""
    keys, values = mx.array(normal(2, 3, 300, head)), mx.array(normal(2, 3, 300, head, seed=1))
    whole, parts = TurboQuantCache(k, v), TurboQuantCache(k, v)
    found = whole.update_and_fetch(keys, values)
    for start, end in ((0, 1), (1, 200), (200, 300)):
        last = parts.update_and_fetch(keys[:, :, start:end], values[:, :, start:end])
    for x, held, side, type in ((keys, whole.keys, KEY, k), (values, whole.values, VALUE, v)):
        rotated = np.array(rotate(x, rotation_size(side, head)))
        np.testing.assert_array_equal(np.array(held[..., :300, :]), reference.quantize(rotated, type))
    for a, b, x in zip(found, last, (keys, values), strict=True):
        np.testing.assert_array_equal(np.array(a), np.array(b))
        error = np.square(np.array(a - x)).sum() / np.square(np.array(x)).sum()
        assert error < 0.09  # of tq2_1: FORMAT.md
    assert whole.size() == whole.offset == 300 and whole.keys.shape[2] == 512
    assert whole.nbytes == 2 * 3 * 512 * head // 32 * sum(reference.TYPES[t].block_bytes for t in (k, v))


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
def test_memory_is_what_the_types_promise(dtype):
    keys, values = (mx.array(normal(1, 2, 512, 128)).astype(dtype) for _ in range(2))
    plain, packed = KVCache(), TurboQuantCache("tq4_0", "tq2_1")
    for cache in (plain, packed):
        out = cache.update_and_fetch(keys, values)
        assert [x.dtype for x in out] == [dtype, dtype]
    assert packed.nbytes / plain.nbytes == (4.5 + 2.5) / 2 / (8 * dtype.size)


def test_trimmed_tokens_are_written_over():
    keys = mx.array(normal(1, 1, 20, 64))
    cache, expected = TurboQuantCache(), TurboQuantCache()
    assert cache.empty() and cache.nbytes == 0 and cache.trim(5) == 0
    cache.update_and_fetch(keys, keys)
    assert trim_prompt_cache([cache], 8) == 8 and cache.offset == 12
    cache.update_and_fetch(-keys[:, :, 12:15], keys[:, :, 12:15])
    both = mx.concatenate([keys[:, :, :12], -keys[:, :, 12:15]], axis=2)
    expected.update_and_fetch(both, keys[:, :, :15])
    for a, b in zip(cache.keys_and_values(), expected.keys_and_values(), strict=True):
        np.testing.assert_array_equal(np.array(a), np.array(b))
    assert cache.trim(100) == 15 and cache.offset == 0


@pytest.mark.parametrize("head", [16, 80, 112])
def test_heads_that_fill_no_blocks_are_refused(head):
    model = mlx_models.random_llama(head)
    with pytest.raises(ValueError, match=f"keys have heads of {head} values; allowed are multiples of 32"):
        model(mx.array([[1, 2]]), cache=patch(model))


# --- mlx-lm ---


def test_patch_takes_bits_and_types():
    model = mlx_models.random_llama()
    assert {(c.k, c.v) for c in patch(model, bits_k=4, bits_v=2)} == {("tq4_0", "tq2_1")}
    assert {(c.k, c.v) for c in patch(model, 3, v="tq2_1")} == {("tq3_0", "tq2_1")}
    assert len(patch(model)) == mlx_models.LAYERS
    with pytest.raises(ValueError, match="no type has 5 bits; allowed are 4 "):
        patch(model, bits_k=5)
    with pytest.raises(ValueError, match="unknown type 'q8_0'"):
        patch(model, k="q8_0")


def test_layers_that_do_not_grow_are_left_alone():
    caches = patch(mlx_models.random_gemma())
    assert sorted(type(c).__name__ for c in caches) == ["RotatingKVCache", "TurboQuantCache"]
    assert generate(mlx_models.random_gemma(), caches, 12)
    assert any(isinstance(c, RotatingKVCache) and c.offset > 8 for c in caches)
    with pytest.raises(
        ValueError, match="no layer of the model has a KVCache to replace; its caches are Arr"
    ):
        patch(mlx_models.random_mamba())


def generate(model, cache, count: int, prompt=(5, 17, 3, 88, 42)) -> list[int]:
    steps = generate_step(mx.array(prompt), model, max_tokens=count, prompt_cache=cache)
    return [int(token) for token, _ in steps]


def test_logits_are_near_those_of_the_plain_cache():
    model = mlx_models.random_llama()
    tokens = mx.random.randint(0, mlx_models.VOCABULARY, (1, 330))
    logits = {}
    for bits in (4, 3, 2):
        cache = patch(model, bits, bits)
        head = model(tokens[:, :300], cache=cache)
        rest = [model(tokens[:, i : i + 1], cache=cache) for i in range(300, 330)]
        logits[bits] = np.array(mx.concatenate([head, *rest], axis=1))
    plain = np.array(model(tokens, cache=make_prompt_cache(model)))
    errors = [np.square(logits[bits] - plain).sum() / np.square(plain).sum() for bits in (4, 3, 2)]
    assert 0 < errors[0] < errors[1] < errors[2]
    assert errors[0] < 0.01


def test_generate():
    model, cache = mlx_models.random_llama(), patch(mlx_models.random_llama())
    written = generate(model, cache, 40)
    assert len(written) == 40 and len(set(written)) > 5 and cache[0].offset >= 44
    assert generate(model, patch(model), 40) == written


def test_kv_bits_leaves_the_cache_as_it_is():
    """mlx-lm's own quantisation takes only what offers it."""
    model, cache = mlx_models.random_llama(), patch(mlx_models.random_llama())
    list(generate_step(mx.array([1, 2, 3]), model, max_tokens=4, prompt_cache=cache, kv_bits=8))
    assert all(type(c) is TurboQuantCache for c in cache)


def test_speculative_decoding():
    """Drafts are taken back by trimming. With a draft model that always agrees, and one that never does."""
    model = mlx_models.random_llama()
    expected = generate(model, patch(model), 30)
    for seed in (0, 1):
        draft = mlx_models.random_llama(seed=seed)
        steps = speculative_generate_step(
            mx.array((5, 17, 3, 88, 42)),
            model,
            draft,
            max_tokens=30,
            prompt_cache=patch(model) + patch(draft),
        )
        written = [(int(token), accepted) for token, _, accepted in steps]
        assert [token for token, _ in written] == expected
        share = np.mean([accepted for _, accepted in written])
        assert share > 0.5 if seed == 0 else share < 0.2


def test_prompt_caches_are_saved_and_loaded(tmp_path):
    model, path = mlx_models.random_llama(), str(tmp_path / "prompt.safetensors")
    cache = patch(model, bits_k=3, bits_v=2)
    written = generate(model, cache, 10)
    save_prompt_cache(path, cache)
    loaded = load_prompt_cache(path)
    for a, b in zip(cache, loaded, strict=True):
        assert (a.k, a.v, a.offset, a.dtype, a.nbytes) == (b.k, b.v, b.offset, b.dtype, b.nbytes)
    more = (written[-1],)
    assert generate(model, loaded, 20, more) == generate(model, cache, 20, more)


def test_trained_model_is_as_close_to_the_plain_cache_as_in_llama_cpp():
    """``llama-tq eval demo --ctx 512 --chunks 1 --uncentred`` says 0.0046, 0.019 and 0.095 nats."""
    model = mlx_models.demo()
    with Model("demo", weights=False) as metadata:
        tokens = mx.array(metadata.tokenize(embedded.held_out_text())[:256])[None]

    def predictions(cache) -> np.ndarray:
        return log_softmax(np.array(model(tokens, cache=cache)[0, 128:-1]), axis=1)

    plain = predictions(make_prompt_cache(model))
    assert -plain[np.arange(127), np.array(tokens)[0, 129:]].mean() < 3  # it can read
    for bits, limit in {4: 0.008, 3: 0.03, 2: 0.2}.items():
        found = predictions(patch(model, bits, bits))
        kld = (np.exp(plain) * (plain - found)).sum(1).mean()
        assert limit / 8 < kld < limit


def test_without_mlx_it_says_what_to_install():
    code = "import sys; sys.modules['mlx_lm'] = None; import llama_tq.mlx"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "ImportError: llama_tq.mlx needs MLX and mlx-lm: "
        "pip install mlx-lm, on Linux with 'mlx[cpu]' (the extra [mlx])"
    )
