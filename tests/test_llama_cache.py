"""The TQ types as KV caches of tiny models: accuracy, sequences, shifts, states."""

from __future__ import annotations

import itertools

import llama_cpp.llama_cpp as api
import numpy as np
import pytest

import devices
import llama_models
import llama_tq
from llama_session import Session, distance, model_file, sessions, tokens

pytestmark = pytest.mark.usefixtures("device")
TYPES = [t.name for t in llama_tq.types()]
OTHERS = ["f16", "q8_0", "q4_0"]
HEADS = [64, 96, 128, 192, 256]

# The relative error of a cache of Gaussian values is 10 ** (-SNR / 20), and that of the logits here
# twice as large; a cache that is wrong gives 1 or more. Allowed is 2.5 times.
SNR = {"tq4_0": 23.5, "tq3_0": 17.25, "tq2_1": 10.9, "q4_0": 20.0, "q8_0": 43.0, "f16": 70.0}


def error_bound(type_k: str, type_v: str) -> float:
    return 2.5 * 10 ** (-min(SNR[type_k], SNR[type_v]) / 20)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


def logits(path, type_k, type_v, text, **options):
    with Session(path, type_k, type_v, **options) as session:
        return session.decode(text)


@pytest.mark.parametrize(
    ("type_k", "type_v"), [*itertools.product(TYPES, TYPES + OTHERS), *itertools.product(OTHERS, TYPES)]
)
def test_every_pair_decodes_close_to_f16(directory, device, type_k, type_v):
    path = model_file(directory, llama_models.plain, 128)
    if device != devices.CPU and "q4_0" in (type_k, type_v):
        with pytest.raises(
            ValueError, match=f"{device} has no flash attention for a K cache of type {type_k} "
        ):
            Session(path, type_k, type_v)
        return
    text = tokens(200)
    with sessions(path, ("f16", "f16"), (type_k, type_v)) as (reference, session):
        expected = reference.decode(text[:150]), reference.decode(text[150:], start=150)
        prompt, continuation = session.decode(text[:150]), session.decode(text[150:], start=150)
    assert distance(prompt, expected[0]) < error_bound(type_k, type_v)
    assert distance(continuation, expected[1]) < error_bound(type_k, type_v)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("name", TYPES)
def test_every_head_size_is_close_to_f16(directory, name, head):
    path = model_file(directory, llama_models.plain, head)
    text = tokens(200)
    assert distance(logits(path, name, name, text), logits(path, "f16", "f16", text)) < error_bound(
        name, name
    )


def test_every_head_size_is_rotated(directory):
    """Large channels among small ones do the same harm in heads of every size."""
    text = tokens(200)
    errors = {}
    for head in HEADS:
        path = model_file(directory, llama_models.outliers, head)
        errors[head] = distance(logits(path, "tq4_0", "tq4_0", text), logits(path, "f16", "f16", text))
    assert max(errors.values()) < 1.15 * min(errors.values())
    path = model_file(directory, llama_models.outliers, 96)
    unrotated = distance(logits(path, "q4_0", "q4_0", text), logits(path, "f16", "f16", text))
    assert unrotated > 1.5 * errors[96]  # what it would look like: upstream does not rotate q4_0 here


@pytest.mark.parametrize("device", ["CPU"], indirect=True)  # others refuse it: test_gpu_cache.py
@pytest.mark.parametrize("name", TYPES)
def test_k_without_flash_attention(directory, name):
    path = model_file(directory, llama_models.plain, 128)
    text = tokens(100)
    off = {"flash_attention": api.LLAMA_FLASH_ATTN_TYPE_DISABLED}
    assert distance(logits(path, name, "f16", text, **off), logits(path, "f16", "f16", text)) < error_bound(
        name, "f16"
    )


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("swa_full", [False, True])
def test_sliding_window(directory, name, swa_full):
    path = model_file(directory, llama_models.sliding_window, 64)
    text = tokens(200)
    with sessions(path, ("f16", "f16"), (name, name), swa_full=swa_full) as (reference, session):
        for start in range(0, 200, 40):
            part = text[start : start + 40]
            expected = reference.decode(part, start)
            assert distance(session.decode(part, start), expected) < error_bound(name, name)


@pytest.mark.parametrize("unified", [True, False])
@pytest.mark.parametrize("name", TYPES)
def test_parallel_sequences_equal_single_ones(directory, name, unified):
    path = model_file(directory, llama_models.plain, 128)
    texts = [tokens(40, seed) for seed in range(3)]
    alone = [logits(path, name, name, text) for text in texts]
    entries = [(text[i], i, sequence) for i in range(40) for sequence, text in enumerate(texts)]
    with Session(path, name, name, cells=768, sequences=3, unified=unified) as session:
        together = session.decode_batch(entries)
    for sequence, expected in enumerate(alone):
        # Rows of other sequences stand between, so that weights round differently (csrc/cpu/attention), and
        # in the next layer what is near a tie is encoded differently.
        assert distance(together[sequence::3], expected) < error_bound(name, name) / 5


@pytest.mark.parametrize("unified", [True, False])
@pytest.mark.parametrize("name", TYPES)
def test_sequence_copy_and_removal(directory, name, unified):
    path = model_file(directory, llama_models.plain, 128)
    prompt, end = tokens(60), tokens(10, seed=1)
    with Session(path, name, name, cells=768, sequences=2, unified=unified) as session:
        session.decode(prompt)
        api.llama_memory_seq_cp(session.memory, 0, 1, -1, -1)
        expected = session.decode(end, start=60)
        api.llama_memory_seq_rm(session.memory, 0, -1, -1)
        np.testing.assert_array_equal(session.decode(end, start=60, sequence=1), expected)

        api.llama_memory_seq_rm(session.memory, 1, 60, -1)  # and once more from position 60
        np.testing.assert_array_equal(session.decode(end, start=60, sequence=1), expected)


@pytest.mark.parametrize(
    ("write", "arguments"),
    [
        (llama_models.plain, (128,)),
        (llama_models.plain, (96,)),
        (llama_models.partial_rope, (64,)),
        (llama_models.sliding_window, (64,)),
    ],
    ids=["whole", "parts-of-32", "partial-rope", "sliding-window"],
)
@pytest.mark.parametrize("name", TYPES)
def test_context_shift(directory, name, write, arguments):
    """RoPE is relative: a text and its cache that move together give what they give where they were."""
    path = model_file(directory, write, *arguments)
    prompt, end = tokens(100), tokens(20, seed=1)

    def after_removal(session: Session, moved: int, start: int) -> np.ndarray:
        session.decode(prompt)
        api.llama_memory_seq_rm(session.memory, 0, 0, 40)
        assert api.llama_memory_can_shift(session.memory)
        api.llama_memory_seq_add(session.memory, 0, 40, 40 + moved, -40)
        return session.decode(end, start)

    with sessions(path, ("f16", "f16"), (name, name), swa_full=True) as (reference, session):
        expected = after_removal(reference, moved=0, start=100)
        assert distance(after_removal(session, moved=60, start=60), expected) < error_bound(name, name)
    with Session(path, "f16", "f16", swa_full=True) as session:  # these models do see positions
        assert distance(after_removal(session, moved=50, start=100), expected) > 0.2


def test_context_shift_of_an_unrotated_cache(directory):
    """q8_0 in heads of 96, which upstream does not rotate and where its shift dereferences a null pointer."""
    path = model_file(directory, llama_models.plain, 96)
    with sessions(path, ("f16", "f16"), ("q8_0", "q8_0")) as both:
        results = []
        for session in both:
            session.decode(tokens(100))
            api.llama_memory_seq_rm(session.memory, 0, 0, 40)
            api.llama_memory_seq_add(session.memory, 0, 40, 100, -40)
            results.append(session.decode(tokens(20, seed=1), start=60))
    assert distance(results[1], results[0]) < error_bound("q8_0", "q8_0")


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("name", TYPES)
def test_state_round_trip_is_exact(directory, name, head):
    path = model_file(directory, llama_models.plain, head)
    prompt, end = tokens(60), tokens(10, seed=1)
    with Session(path, name, name) as session:
        session.decode(prompt)
        state = session.state()
        expected = session.decode(end, start=60)
    with Session(path, name, name) as session:
        session.restore(state)
        assert session.state() == state
        np.testing.assert_array_equal(session.decode(end, start=60), expected)


@pytest.mark.parametrize("swa_full", [False, True])
@pytest.mark.parametrize("name", TYPES)
def test_state_round_trip_of_a_sliding_window(directory, name, swa_full):
    """llama.cpp goes on in other cells than before, whatever the type: see the parallel sequences above."""
    path = model_file(directory, llama_models.sliding_window, 64)
    with Session(path, name, name, cells=1024, swa_full=swa_full) as session:
        for start in range(0, 600, 100):
            session.decode(tokens(100, start), start)
        state = session.state()
        expected = session.decode(tokens(10), start=600)
    with Session(path, name, name, cells=1024, swa_full=swa_full) as session:
        session.restore(state)
        assert session.state() == state
        assert distance(session.decode(tokens(10), start=600), expected) < error_bound(name, name) / 5


@pytest.mark.parametrize("name", [*TYPES, "f16"])
def test_state_round_trip_where_one_of_two_caches_has_no_layers(directory, name):
    """As in LFM2, whose attention never slides. Cells lie elsewhere than before, as above."""
    path = model_file(directory, llama_models.sliding_window, 64, False, 5)
    with Session(path, name, name) as session:
        session.decode(tokens(60))
        state = session.state()
        expected = session.decode(tokens(10, seed=1), start=60)
    with Session(path, name, name) as session:
        session.restore(state)
        assert session.state() == state
        assert distance(session.decode(tokens(10, seed=1), start=60), expected) < max(
            error_bound(name, name) / 5, 0.003
        )


@pytest.mark.parametrize(("saved", "restored"), list(itertools.permutations([*TYPES, "q4_0", "f16"], 2)))
def test_state_of_another_type_is_refused(directory, saved, restored):
    path = model_file(directory, llama_models.plain, 128)
    with sessions(path, (saved, saved), (restored, restored)) as (writer, reader):
        writer.decode(tokens(10))
        with pytest.raises(ValueError, match="mismatched key type"):
            reader.restore(writer.state())
        reader.decode(tokens(10))  # empty, and usable


def test_state_of_another_version_of_the_format_is_refused(directory):
    """An older version has ids of its own: 16 less."""
    path = model_file(directory, llama_models.plain, 128)
    current = next(t.id for t in llama_tq.types() if t.name == "tq4_0")
    with Session(path, "tq4_0", "tq4_0") as session:
        session.decode(tokens(10))
        state = session.state()
        row_size = 18 * (llama_models.KV_HEADS * 128 // 32)
        marker = current.to_bytes(4, "little") + row_size.to_bytes(8, "little")
        assert state.count(marker) == 4  # K and V of two layers
        older = state.replace(marker, (current - 16).to_bytes(4, "little") + marker[4:], 1)
        with pytest.raises(ValueError, match=f"mismatched key type \\({current} != {current - 16}"):
            session.restore(older)
