"""Damaged states, model files and side files: refused, or taken for what they are, but no process ends."""

from __future__ import annotations

import ctypes
import os
import struct
import subprocess
from pathlib import Path

import llama_cpp
import llama_cpp.llama_cpp as api
import pytest

import damaged
import drivers
import llama_models
import llama_tq
from llama_session import Session, tokens

COUNTS = {"state": 1000, "gguf": 300}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return damaged.environment(tmp_path_factory.mktemp("damaged"))


@pytest.mark.parametrize("target", COUNTS)
def test_fuzz_target(target: str, files: dict[str, str], tmp_path: Path):
    """The corpus, and random edits; scripts/fuzz.py looks for others."""
    program = drivers.build_damager(target, tmp_path)
    corpus = sorted((drivers.TESTS / "fuzz" / "corpus" / target).iterdir())
    assert corpus
    command = [program, str(COUNTS[target]), *corpus]
    done = subprocess.run(command, env=os.environ | files, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]


# --- found by the targets ---


@pytest.fixture
def session(files: dict[str, str]):
    """With something in its cache."""
    with Session(Path(files["LLAMA_TQ_FUZZ_MODEL"]), "tq4_0", "tq3_0") as made:
        made.decode(tokens(60))
        yield made


def whole_state(session: Session) -> bytes:
    size = api.llama_state_get_size(session.context)
    buffer = (ctypes.c_uint8 * size)()
    return bytes(buffer[: api.llama_state_get_data(session.context, buffer, size)])


def restore(session: Session, state: bytes) -> int:
    """Bytes read, 0 if it is refused."""
    return api.llama_state_set_data(
        session.context, (ctypes.c_uint8 * len(state)).from_buffer_copy(state), len(state)
    )


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99, 0.9999])
def test_a_slot_file_that_was_cut_off(session: Session, tmp_path: Path, share: float):
    path, words, count = str(tmp_path / "slot").encode(), (ctypes.c_int32 * 3)(1, 2, 3), ctypes.c_size_t()
    assert api.llama_state_seq_save_file(session.context, path, 0, words, 3)
    load = (session.context, path, 0, words, 3, ctypes.byref(count))
    assert api.llama_state_seq_load_file(*load)
    whole = Path(path.decode()).read_bytes()
    Path(path.decode()).write_bytes(whole[: int(len(whole) * share)])
    assert not api.llama_state_seq_load_file(*load)


def test_a_length_that_is_wrong(session: Session):
    state = whole_state(session)
    assert restore(session, state) == len(state)
    assert state[:4] == struct.pack("<I", len("llama"))
    assert restore(session, b"\xff\xff\xff\xff" + state[4:]) == 0


def test_cells_that_cannot_be(session: Session):
    """Two sequences of which one is the other, and a position before the first."""
    state = whole_state(session)
    cell = struct.pack("<iIi", 5, 1, 0)  # its position, one sequence, which
    assert state.count(cell) == 1
    assert restore(session, state.replace(cell, struct.pack("<iIi", -5, 1, 0))) == 0
    twice = struct.pack("<iIii", 5, 2, 0, 0)
    assert restore(session, state.replace(cell, twice)) == 0


def test_a_model_that_llama_cpp_asserts_about(tmp_path: Path):
    """A process that only looks at a file goes on, whatever is in it."""
    path = tmp_path / "experts.gguf"
    model = llama_models._Model(path, "llama", 1, damaged.HEAD)
    model.writer.add_rope_dimension_count(damaged.HEAD)
    model.writer.add_expert_count(5)  # and none of them is used
    model.attention(0, damaged.HEAD)
    model.feed_forward(0)
    model.finish()
    with pytest.raises(llama_tq.InputError, match="GGML_ASSERT"):
        llama_tq.plan(path)
    with pytest.raises(ValueError, match=r"Failed to load model from file: .*GGML_ASSERT"):
        llama_cpp.Llama(str(path), verbose=False)
