"""Centred keys in llama.cpp: exact for all means, positions and sequences; and where the means come from."""

from __future__ import annotations

import ctypes
import multiprocessing
import stat
from pathlib import Path

import llama_cpp.llama_cpp as api
import numpy as np
import pytest

import llama_models
from llama_session import Session, distance, model_file, sessions, tokens
from llama_tq import _native, centring
from test_llama_cache import TYPES, error_bound

pytestmark = pytest.mark.usefixtures("device")
CHUNK = _native.CENTRING_CHUNK
FLASH_ATTENTION_OFF = {"flash_attention": api.LLAMA_FLASH_ATTN_TYPE_DISABLED}

# Whose keys have a mean of many times their own length: with it, or with it put back in a wrong place, little
# is left.
BIASED = {
    "neox": (llama_models.biased, 64),
    "adjacent": (llama_models.biased, 128, "llama"),
    "parts-of-32": (llama_models.biased, 96, "llama"),
    "yarn": (llama_models.biased, 64, "llama", 1, "yarn"),
    "factors": (llama_models.biased, 64, "llama", 1, "factors"),
    "no-rope": (llama_models.biased, 64, "smollm3"),  # in the last of four layers
}
# With means as large as the keys that are not theirs: noise grows by 3 dB, and no more.
ANY_MEAN = {
    "whole": (llama_models.plain, 128, True),
    "sliding-window": (llama_models.sliding_window, 64, True),
    "partial": (llama_models.partial_rope, 128, True),
}
ALL = {**BIASED, **ANY_MEAN}


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """The folder of the side files."""
    monkeypatch.setenv("LLAMA_CACHE", str(tmp_path))
    return tmp_path / "llama-tq"


def bound(name: str) -> float:
    return 1.5 * error_bound(name, name)


def logits(path: Path, type_k: str, type_v: str, text: np.ndarray, **options: object) -> np.ndarray:
    """In parts, so that keys are stored at several places of a chunk."""
    with Session(path, type_k, type_v, **options) as session:
        return np.concatenate([session.decode(text[i : i + 50], i) for i in range(0, len(text), 50)])


@pytest.mark.parametrize("model", ALL)
@pytest.mark.parametrize("name", TYPES)
def test_predictions_are_those_of_f16(directory, name, model):
    path = model_file(directory, *ALL[model])
    text = tokens(200)
    assert distance(logits(path, name, name, text), logits(path, "f16", "f16", text)) < bound(name)


@pytest.mark.parametrize("model", BIASED)
def test_off_is_another_matter(directory, model):
    """The models above do need it, and what is off is as it was: a file of the same weights without means."""
    path = model_file(directory, *BIASED[model])
    text = tokens(200)
    expected = logits(path, "f16", "f16", text)
    with centring(False):
        assert distance(logits(path, "tq4_0", "tq4_0", text), expected) > 2 * bound("tq4_0")
        np.testing.assert_array_equal(logits(path, "f16", "f16", text), expected)
        np.testing.assert_array_equal(logits(path, "q8_0", "q8_0", text), logits(path, "q8_0", "q8_0", text))


@pytest.mark.parametrize("type", ["f16", "q8_0", "q4_0"])
def test_other_types_are_left_alone(directory, type):
    """Bit for bit, on a model that brings means."""
    path = model_file(directory, llama_models.plain, 128, True)
    text = tokens(150)
    expected = logits(path, type, type, text)
    with centring(False):
        np.testing.assert_array_equal(logits(path, type, type, text), expected)


@pytest.mark.parametrize("device", ["CPU"], indirect=True)  # others refuse it: test_gpu_cache.py
@pytest.mark.parametrize("model", ALL)
def test_without_flash_attention(directory, model):
    path = model_file(directory, *ALL[model])
    text = tokens(150)
    expected = logits(path, "f16", "f16", text, **FLASH_ATTENTION_OFF)
    assert distance(logits(path, "tq4_0", "f16", text, **FLASH_ATTENTION_OFF), expected) < bound("tq4_0")


@pytest.mark.parametrize("unified", [True, False])
@pytest.mark.parametrize("model", ALL)
def test_sequences_at_positions_of_their_own(directory, model, unified):
    path = model_file(directory, *ALL[model])
    texts, starts = [tokens(80, seed) for seed in range(3)], (0, 37, 200)
    entries = [(text[i], starts[s] + i, s) for i in range(80) for s, text in enumerate(texts)]
    options = {"cells": 1536, "sequences": 3, "unified": unified, "swa_full": True}
    with sessions(path, ("f16", "f16"), ("tq4_0", "tq4_0"), **options) as (reference, session):
        assert distance(session.decode_batch(entries), reference.decode_batch(entries)) < bound("tq4_0")


@pytest.mark.parametrize("moved", [-40, -64, -1, 7, 100])
@pytest.mark.parametrize("model", [model for model in ALL if model != "no-rope"])
def test_shift_by_any_amount(directory, model, moved):
    """The first 5 cells stay, as in a context shift. A f16 cache moves likewise."""
    path = model_file(directory, *ALL[model])
    prompt, end = tokens(150), tokens(20, seed=1)
    with sessions(path, ("f16", "f16"), ("tq4_0", "tq4_0"), swa_full=True) as both:
        results = []
        for session in both:
            session.decode(prompt)
            api.llama_memory_seq_rm(session.memory, 0, 5, 5 + max(-moved, 0))
            api.llama_memory_seq_add(session.memory, 0, 5 + max(-moved, 0), -1, moved)
            results.append(session.decode(end, 150 + moved))
    assert distance(results[1], results[0]) < 1.5 * bound("tq4_0")  # keys are encoded twice


def test_shift_where_a_layer_has_no_rope(directory):
    """RoPE is relative: a text and its cache that move together give what they give where they were. A f16
    cache is no measure here: llama.cpp turns its keys in such layers as well.
    """
    path = model_file(directory, *BIASED["no-rope"])
    with sessions(path, ("f16", "f16"), ("tq4_0", "tq4_0")) as both:
        results = []
        for session, moved in zip(both, (0, -40), strict=True):
            session.decode(tokens(100))
            api.llama_memory_seq_rm(session.memory, 0, 0, 40)
            api.llama_memory_seq_add(session.memory, 0, 40, -1, moved)
            results.append(session.decode(tokens(20, seed=1), start=100 + moved))
    assert distance(results[1], results[0]) < 1.5 * bound("tq4_0")


def test_shift_without_rope(directory):
    """Keys stay what they are, and llama.cpp's graph would be empty."""
    path = model_file(directory, llama_models.learned_positions, 1)
    for centred in (True, False):
        with (
            centring(centred),
            sessions(path, ("f16", "f16"), ("tq4_0", "tq4_0")) as both,
        ):
            results = []
            for session in both:
                session.decode(tokens(100))
                api.llama_memory_seq_rm(session.memory, 0, 0, 40)
                api.llama_memory_seq_add(session.memory, 0, 40, -1, -40)
                results.append(session.decode(tokens(20, seed=1), start=60))
        assert distance(results[1], results[0]) < bound("tq4_0")


@pytest.mark.parametrize("model", [model for model in ALL if model != "no-rope"])
def test_division_of_positions(directory, model):
    """Self-extend, as a f16 cache does it."""
    path = model_file(directory, *ALL[model])
    with sessions(path, ("f16", "f16"), ("tq4_0", "tq4_0"), swa_full=True) as both:
        results = []
        for session in both:
            session.decode(tokens(120))
            api.llama_memory_seq_div(session.memory, 0, 40, 120, 4)
            results.append(session.decode(tokens(20, seed=1), start=40))
    assert distance(results[1], results[0]) < 1.5 * bound("tq4_0")


def test_divided_positions_are_where_they_say(directory):
    """Of one layer, keys depend on nothing but their token and its position."""
    path = model_file(directory, llama_models.plain, 128, False, 1)
    text, end = tokens(30), tokens(10, seed=1)
    with sessions(path, ("f16", "f16"), ("f16", "f16")) as (divided, direct):
        divided.decode(np.repeat(text, 4))
        for i in range(30):
            api.llama_memory_seq_rm(divided.memory, 0, 4 * i + 1, 4 * i + 4)
        api.llama_memory_seq_div(divided.memory, 0, 0, -1, 4)
        direct.decode(text)
        assert distance(divided.decode(end, 30), direct.decode(end, 30)) < 0.01


@pytest.mark.parametrize("unified", [True, False])
def test_copied_sequences(directory, unified):
    path = model_file(directory, llama_models.biased, 64)
    options = {"cells": 1024, "sequences": 2, "unified": unified}
    with sessions(path, ("f16", "f16"), ("tq4_0", "tq4_0"), **options) as both:
        results = []
        for session in both:
            session.decode(tokens(100))
            api.llama_memory_seq_cp(session.memory, 0, 1, -1, -1)
            api.llama_memory_seq_rm(session.memory, 0, -1, -1)
            api.llama_memory_seq_rm(session.memory, 1, 0, 30)
            api.llama_memory_seq_add(session.memory, 1, 30, -1, -30)
            results.append(session.decode(tokens(20, seed=1), start=70, sequence=1))
    assert distance(results[1], results[0]) < 1.5 * bound("tq4_0")


# --- states ---


def sequence_state(session: Session, sequence: int) -> bytes:
    buffer = (ctypes.c_uint8 * api.llama_state_seq_get_size(session.context, sequence))()
    return bytes(buffer[: api.llama_state_seq_get_data(session.context, buffer, len(buffer), sequence)])


def restore_sequence(session: Session, sequence: int, state: bytes) -> bool:
    buffer = (ctypes.c_uint8 * len(state)).from_buffer_copy(state)
    return api.llama_state_seq_set_data(session.context, buffer, len(state), sequence) == len(state)


@pytest.mark.parametrize("model", ALL)
def test_a_state_gives_the_same_predictions(directory, model):
    path = model_file(directory, *ALL[model])
    prompt, end = tokens(130), tokens(10, seed=1)
    with Session(path, "tq4_0", "tq4_0", swa_full=True) as session:
        session.decode(prompt)
        state, part = session.state(), sequence_state(session, 0)
        expected = session.decode(end, start=130)
    # llama.cpp goes on in other cells of a window, where weights round differently.
    allowed = bound("tq4_0") / 5 if model == "sliding-window" else 0
    with Session(path, "tq4_0", "tq4_0", swa_full=True) as session:
        session.restore(state)
        assert session.state() == state
        assert distance(session.decode(end, start=130), expected) <= allowed
    with Session(path, "tq4_0", "tq4_0", swa_full=True) as session:
        assert restore_sequence(session, 0, part)
        assert distance(session.decode(end, start=130), expected) <= allowed


def measured_elsewhere(path: Path, directory: Path) -> Path:
    """A copy of a biased model with other means than are measured here: those of another machine."""
    other = directory / f"elsewhere-{path.name}"
    if not other.exists():
        rng = np.random.default_rng(5)
        bias = np.tile(llama_models.key_bias(64, neox=True), llama_models.KV_HEADS)
        means = [bias + rng.normal(size=128) for _ in range(2)]
        llama_models.biased(other, 64, means=means)
    return other


def test_a_state_brings_its_means(directory, cache):
    path = model_file(directory, llama_models.biased, 64)
    prompt, end = tokens(130), tokens(10, seed=1)
    with Session(measured_elsewhere(path, directory), "tq4_0", "tq4_0", sequences=2) as session:
        session.decode(prompt)
        state, part = session.state(), sequence_state(session, 0)
        expected = session.decode(end, start=130)
    with Session(path, "tq4_0", "tq4_0", sequences=2) as session:
        session.decode(prompt)
        assert distance(session.decode(end, start=130), expected) > 0  # its own means are others
        session.restore(state)
        assert session.state() == state
        np.testing.assert_array_equal(session.decode(end, start=130), expected)
    with Session(path, "tq4_0", "tq4_0", sequences=2) as session:
        session.decode(tokens(20), sequence=1)  # stored with means that the state cannot replace
        assert not restore_sequence(session, 0, part)
        api.llama_memory_seq_rm(session.memory, 1, -1, -1)
        assert restore_sequence(session, 0, part)
        np.testing.assert_array_equal(session.decode(end, start=130), expected)


@pytest.mark.parametrize("saved", [True, False])
def test_a_state_of_the_other_kind_is_refused(directory, saved):
    path = model_file(directory, llama_models.biased, 64)
    with centring(saved), Session(path, "tq4_0", "tq4_0") as session:
        session.decode(tokens(20))
        state = session.state()
    with centring(not saved), Session(path, "tq4_0", "tq4_0") as session:
        with pytest.raises(ValueError, match=r"the state's keys are (not )?centred, .*LLAMA_TQ_CENTRE"):
            session.restore(state)
        session.decode(tokens(20))  # empty, and usable


def test_a_state_of_before_is_refused(directory):
    """llama-tq 0.1.0 wrote the number of cells where the mark is now."""
    path = model_file(directory, llama_models.plain, 128)
    with Session(path, "tq4_0", "tq4_0") as session:
        session.decode(tokens(20))
        state = session.state()
        mark = b"tqc1"
        assert state.count(mark) == 1
        begin = state.index(mark)
        end = state.index((20).to_bytes(4, "little"), begin + 4)
        with pytest.raises(ValueError, match=r"llama-tq 0\.1\.0"):
            session.restore(state[:begin] + state[end:])


def test_positions_past_the_table_are_stored_as_they_are(directory):
    path = model_file(directory, llama_models.plain, 128, True)
    text = tokens(100)
    entries = [(token, 450 + i, 0) for i, token in enumerate(text)]  # n_ctx is 512
    with sessions(path, ("f16", "f16"), ("tq4_0", "tq4_0")) as (reference, session):
        assert distance(session.decode_batch(entries), reference.decode_batch(entries)) < bound("tq4_0")
        state = session.state()
    with (
        Session(path, "tq4_0", "tq4_0", cells=1024) as larger,
        pytest.raises(ValueError, match="a smaller context"),
    ):
        larger.restore(state)


# --- where the means come from ---


def side_files(cache: Path) -> list[Path]:
    return sorted(cache.glob("*")) if cache.exists() else []


def start(path: Path) -> np.ndarray:
    with Session(path, "tq4_0", "tq4_0") as session:
        return session.decode(tokens(100))


def test_measured_once(directory, cache):
    path = model_file(directory, llama_models.biased, 64)
    first = start(path)
    (file,) = side_files(cache)
    written = file.stat().st_mtime_ns
    np.testing.assert_array_equal(start(path), first)
    assert side_files(cache) == [file]
    assert file.stat().st_mtime_ns == written
    start(model_file(directory, llama_models.biased, 64, "seed_oss", 2))  # other weights
    assert len(side_files(cache)) == 2


@pytest.mark.parametrize("ftype", ["Q4_0", "Q8_0", "IQ4_NL"])
def test_weights_that_ggml_puts_in_another_order(directory, cache, tmp_path, ftype):
    """Nothing can get these back from ggml, on the processors for which it does so: Q4_0's on most."""
    paths = []
    for seed in (1, 2):
        source = model_file(directory, llama_models.biased, 64, "seed_oss", seed)
        paths.append(tmp_path / f"{ftype}-{seed}.gguf")
        params = api.llama_model_quantize_default_params()
        params.ftype = getattr(api, f"LLAMA_FTYPE_MOSTLY_{ftype}")
        assert api.llama_model_quantize(str(source).encode(), str(paths[-1]).encode(), params) == 0
    first = start(paths[0])
    np.testing.assert_array_equal(start(paths[0]), first)
    assert len(side_files(cache)) == 1
    start(paths[1])
    assert len(side_files(cache)) == 2


@pytest.mark.parametrize(
    "damage", [b"", b"GGUF", b"not a side file", None], ids=["empty", "short", "text", "cut"]
)
def test_a_damaged_side_file_is_measured_again(directory, cache, damage):
    path = model_file(directory, llama_models.biased, 64)
    expected = start(path)
    (file,) = side_files(cache)
    good = file.read_bytes()
    file.write_bytes(good[: len(good) // 2] if damage is None else damage)
    np.testing.assert_array_equal(start(path), expected)
    assert file.read_bytes() == good


def test_a_folder_that_cannot_be_written(directory, tmp_path, monkeypatch):
    path = model_file(directory, llama_models.biased, 64)
    expected = start(path)
    blocked = tmp_path / "a file"
    blocked.write_text("in the way")
    monkeypatch.setenv("LLAMA_CACHE", str(blocked))
    np.testing.assert_array_equal(start(path), expected)
    assert stat.S_ISREG(blocked.stat().st_mode)


def test_two_processes_at_once(directory, cache):
    path = model_file(directory, llama_models.biased, 64)
    context = multiprocessing.get_context("spawn")
    with context.Pool(3) as pool:
        results = pool.map(start, [path] * 6, chunksize=1)
    assert len({result.tobytes() for result in results}) == 1
    assert len(side_files(cache)) == 1  # nobody's draft stays


def test_means_in_the_model_file_need_no_side_file(directory, cache):
    start(model_file(directory, llama_models.plain, 128, True))
    assert side_files(cache) == []


def test_other_types_measure_nothing(directory, cache):
    path = model_file(directory, llama_models.biased, 64)
    with Session(path, "q8_0", "tq4_0") as session, centring(False), Session(path, "tq4_0", "f16") as plain:
        session.decode(tokens(10))
        plain.decode(tokens(10))
    assert side_files(cache) == []


def test_latent_attention_is_not_measured(directory, cache):
    path = model_file(directory, llama_models.latent)
    with Session(path, "f16", "f16") as session:
        session.decode(tokens(10))
    assert side_files(cache) == []


def test_the_variable_is_checked(directory, monkeypatch):
    monkeypatch.setenv("LLAMA_TQ_CENTRE", "maybe")
    path = model_file(directory, llama_models.plain, 128)
    with pytest.raises(ValueError, match="LLAMA_TQ_CENTRE=maybe: it can be on or off"):
        Session(path, "tq4_0", "tq4_0")
    Session(path, "f16", "f16").__exit__()
