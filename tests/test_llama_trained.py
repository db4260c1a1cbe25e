"""TQ caches of trained models: the packaged one, and the GGUF files in the directory LLAMA_TQ_TEST_MODELS."""

from __future__ import annotations

import functools
import os
from pathlib import Path

import llama_cpp.llama_cpp as api
import numpy as np
import pytest

import llama_tq
from llama_session import Session, distance, sessions
from llama_tq.runtime.models import Model

DATA = Path(llama_tq.__file__).parent / "data"
MORE = Path(os.environ.get("LLAMA_TQ_TEST_MODELS", os.devnull))
MODELS = [DATA / "demo.gguf", *sorted(MORE.glob("*.gguf"))]
TYPES = [t.name for t in llama_tq.types()]

pytestmark = [
    pytest.mark.usefixtures("device"),
    pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem),
]


@functools.cache
def text(path: Path) -> np.ndarray:
    """768 tokens that no model was trained on."""
    with Model(path, weights=False) as model:
        return model.tokenize((DATA / "heldout.txt").read_text())[:768]


@functools.cache
def log_probabilities(device: str, path: Path, type_k: str, type_v: str) -> np.ndarray:
    """In chunks, as a program that decodes a long prompt does."""
    with Session(path, type_k, type_v, cells=1024) as session:
        parts = [session.decode(text(path)[i : i + 256], i) for i in range(0, 768, 256)]
    logits = np.concatenate(parts).astype(np.float64)
    logits -= logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def divergence(device: str, path: Path, type_k: str, type_v: str) -> float:
    """Mean Kullback-Leibler divergence from the f16 cache, in nats."""
    p, q = (log_probabilities(device, path, *pair) for pair in (("f16", "f16"), (type_k, type_v)))
    return float((np.exp(p) * (p - q)).sum(-1).mean())


def test_divergence_is_below_that_of_upstreams_types(path, device):
    def of(type_k: str, type_v: str) -> float:
        return divergence(device, path, type_k, type_v)

    q4_0 = of("q4_0", "q4_0")
    assert of("tq4_0", "tq4_0") < 0.8 * q4_0
    assert of("tq3_0", "tq3_0") < 3.5 * q4_0
    assert of("tq4_0", "tq3_0") < of("tq3_0", "tq3_0")
    assert of("tq3_0", "tq3_0") < of("tq2_1", "tq2_1")


@pytest.mark.parametrize("name", TYPES)
def test_parallel_sequences_are_as_good_as_single_ones(path, name):
    """Next to others a sequence is as near to f16 as alone.

    Not bit for bit the same as alone: a batch is rounded differently, and the least difference in a value can
    make the encoder choose another scale for it.
    """
    texts = [text(path)[start : start + 40] for start in (0, 100, 200)]
    entries = [(part[i], i, sequence) for i in range(40) for sequence, part in enumerate(texts)]
    with Session(path, name, name, cells=768, sequences=3) as session:
        together = session.decode_batch(entries)
    for sequence, part in enumerate(texts):
        with Session(path, name, name) as session, Session(path, "f16", "f16") as reference:
            alone, f16 = session.decode(part), reference.decode(part)
        assert distance(together[sequence::3], f16) < 1.3 * distance(alone, f16)


@pytest.mark.parametrize("name", TYPES)
def test_cells_out_of_use_change_no_bit(path, name):
    """A cache with removed tokens in its cells answers as a fresh one."""
    prompt, removed = text(path)[:100], text(path)[300:500]
    with Session(path, name, name) as fresh:
        expected = fresh.decode(prompt)
    with Session(path, name, name) as used:
        used.decode(removed)
        api.llama_memory_seq_rm(used.memory, 0, -1, -1)
        np.testing.assert_array_equal(used.decode(prompt), expected)


@pytest.mark.parametrize("name", TYPES)
def test_sequence_copy_and_removal(path, name):
    prompt, end = text(path)[:200], text(path)[200:210]
    with Session(path, name, name, sequences=2) as session:
        session.decode(prompt)
        api.llama_memory_seq_cp(session.memory, 0, 1, -1, -1)
        expected = session.decode(end, 200)
        api.llama_memory_seq_rm(session.memory, 0, -1, -1)
        np.testing.assert_array_equal(session.decode(end, 200, sequence=1), expected)


@pytest.mark.parametrize("name", TYPES)
def test_state_round_trip_is_exact(path, name):
    prompt, end = text(path)[:200], text(path)[200:210]
    with sessions(path, (name, name), (name, name)) as (first, second):
        first.decode(prompt)
        second.restore(first.state())
        assert second.state() == first.state()
        np.testing.assert_array_equal(second.decode(end, 200), first.decode(end, 200))


@pytest.mark.parametrize("name", TYPES)
def test_context_shift(path, name):
    """RoPE is relative: a text and its cache that move together give what they give where they were."""
    prompt, end = text(path)[:200], text(path)[200:240]

    def after_removal(session: Session, shift: int) -> np.ndarray:
        session.decode(prompt)
        api.llama_memory_seq_rm(session.memory, 0, 0, 80)
        api.llama_memory_seq_add(session.memory, 0, 80, 200, -shift)
        return session.decode(end, 200 - shift)

    with sessions(path, ("f16", "f16"), (name, name), (name, name)) as (f16, unshifted, shifted):
        expected = after_removal(f16, 0)
        error = distance(after_removal(unshifted, 0), expected)
        assert distance(after_removal(shifted, 80), expected) < 1.5 * error  # K was quantized twice
