"""Key centring from Python: the switch, the means, copies that carry them, and what the commands show."""

from __future__ import annotations

import dataclasses
import errno
import json
import shutil
from pathlib import Path

import gguf
import numpy as np
import pytest
from click.testing import CliRunner

import llama_tq
from llama_tq import cli
from llama_tq.commands.centre import centre, examine
from llama_tq.commands.evaluate import evaluate
from llama_tq.errors import InputError
from llama_tq.evaluation.scoring import score
from llama_tq.runtime import centred_copy, embedded
from llama_tq.runtime.centring import is_on
from llama_tq.runtime.means import MEASURED, MODEL_FILE, means
from llama_tq.runtime.models import Model
from llama_tq.runtime.pairs import FLOOR, REFERENCE, Pair, parse_pairs
from tiny_models import MODELS

TQ4, PLAIN = Pair("tq4_0", "tq4_0"), Pair("tq4_0", "tq4_0", centred=False)
N_CTX = 256


@pytest.fixture(scope="module")
def text() -> str:
    return embedded.held_out_text()


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty folder for side files."""
    monkeypatch.setenv("LLAMA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "llama-tq"


@pytest.fixture
def tiny(tmp_path):
    def write(name: str) -> Path:
        path = tmp_path / f"{name}.gguf"
        MODELS[name].write(path)
        return path

    return write


def logits(model: str | Path, pair: Pair) -> np.ndarray:
    tokens = np.random.default_rng(0).integers(0, 64, N_CTX, np.int32)
    with Model(model) as opened, opened.context(pair, N_CTX) as context:
        return context.decode(tokens, 0, outputs=N_CTX).copy()


def fail(*arguments: object) -> str:
    """The one line that a command with bad input prints on standard error."""
    result = CliRunner().invoke(cli.main, [str(a) for a in arguments])
    assert (result.exit_code, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    return line


def run(*arguments: object) -> str:
    result = CliRunner().invoke(cli.main, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


# --- the switch ---


def test_switch_is_restored_after_nested_blocks(monkeypatch):
    assert is_on()
    with llama_tq.centring(False):
        assert not is_on()
        with llama_tq.centring(True):
            assert is_on()
        with pytest.raises(KeyError), llama_tq.centring(True):
            raise KeyError
        assert not is_on()
    monkeypatch.setenv("LLAMA_TQ_CENTRE", "off")
    assert not is_on()
    with llama_tq.centring(True):
        assert is_on()
    assert not is_on()  # the variable decides again


def test_switch_counts_when_a_context_is_made():
    centred, plain = logits("demo", TQ4), logits("demo", PLAIN)
    assert (centred != plain).any()
    with llama_tq.centring(False):
        np.testing.assert_array_equal(logits("demo", TQ4), plain)
    np.testing.assert_array_equal(logits("demo", TQ4), centred)


@pytest.mark.parametrize("name", ["f16", "q8_0"])
def test_other_types_are_the_same_without(name):
    pair = Pair(name, "tq4_0")
    with llama_tq.centring(False):
        off = logits("demo", pair)
    np.testing.assert_array_equal(logits("demo", pair), off)


# --- the means ---


def test_means_are_measured_once_and_kept(cache):
    with Model("demo") as model:
        measured = means(model)
    assert measured.source == MEASURED
    assert [str(f) for f in cache.iterdir()] == [measured.side_file]
    with Model("demo") as model:
        read = means(model)
    assert read.source == read.side_file == measured.side_file
    assert_equal(measured, read)
    assert [(layer.heads, layer.mean.shape) for layer in read.layers] == [(2, (256,))] * 7
    assert 0 < read.centred <= read.heads == 14
    assert read.gain_db > 1
    for layer in read.layers:
        assert layer.mean.dtype == np.float32
        assert (layer.centred > 0) == layer.mean.any() == (layer.gain_db > 0)


def assert_equal(a, b) -> None:
    """Bit for bit."""
    assert (a.first_is_plain, a.plain_tokens) == (b.first_is_plain, b.plain_tokens)
    for x, y in zip(a.layers, b.layers, strict=True):
        np.testing.assert_array_equal(x.mean.view(np.uint32), y.mean.view(np.uint32))
        assert (x.heads, x.centred, x.energy_before, x.energy_after) == (
            y.heads,
            y.centred,
            y.energy_before,
            y.energy_after,
        )


# --- copies ---


def test_copy_needs_no_side_file_and_gives_the_same(tmp_path, cache, monkeypatch):
    expected = logits("demo", TQ4)
    with Model("demo") as model:
        original = means(model)
    centre("demo", tmp_path / "copy.gguf")

    monkeypatch.setenv("LLAMA_CACHE", str(tmp_path / "none"))
    with Model(tmp_path / "copy.gguf") as model:
        copied = means(model)
    assert copied.source == MODEL_FILE
    assert_equal(original, copied)
    np.testing.assert_array_equal(logits(tmp_path / "copy.gguf", TQ4), expected)
    assert not (tmp_path / "none").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cache", "copy.gguf"]


def test_copy_has_everything_of_the_original(tmp_path):
    """Also what gguf's writer drops, and another alignment."""
    source = tmp_path / "odd.gguf"
    MODELS["grouped_query"].write(tmp_path / "plain.gguf")
    add_metadata(tmp_path / "plain.gguf", source)
    centre(source, tmp_path / "copy.gguf")
    old, new = gguf.GGUFReader(source), gguf.GGUFReader(tmp_path / "copy.gguf")
    assert new.alignment == old.alignment == 128
    assert new.data_offset % 128 == 0
    added = [name for name in new.fields if name not in old.fields]
    assert {"tq.centre.version", "tq.centre.mean.2"} <= set(added)
    assert all(name.startswith("tq.centre.") for name in added)
    for name, field in old.fields.items():
        if name != "GGUF.kv_count":
            assert field.types == new.fields[name].types
            assert b"".join(p.tobytes() for p in field.parts) == b"".join(
                p.tobytes() for p in new.fields[name].parts
            )
    for a, b in zip(old.tensors, new.tensors, strict=True):
        assert (a.name, a.tensor_type, a.shape.tolist()) == (b.name, b.tensor_type, b.shape.tolist())
        assert a.data.tobytes() == b.data.tobytes()

    with llama_tq.centring(False):  # reading and copying means does not depend on the switch
        centre(tmp_path / "copy.gguf", tmp_path / "again.gguf")
    assert (tmp_path / "again.gguf").read_bytes() == (tmp_path / "copy.gguf").read_bytes()


def add_metadata(source: Path, target: Path) -> None:
    """A copy with alignment 128, an array of strings, an empty array, and text that is not UTF-8."""
    T, reader = gguf.GGUFValueType, gguf.GGUFReader(source)

    def pair(key: bytes, value: bytes) -> bytes:
        return np.uint64(len(key)).tobytes() + key + value

    def string(value: bytes) -> bytes:
        return np.uint64(len(value)).tobytes() + value

    def array(type: int, count: int) -> bytes:
        return np.array([T.ARRAY, type], np.uint32).tobytes() + np.uint64(count).tobytes()

    new = [
        pair(b"general.alignment", np.array([T.UINT32, 128], np.uint32).tobytes()),
        pair(b"odd.strings", array(T.STRING, 2) + string(b"") + string("ß".encode())),
        pair(b"odd.empty", array(T.INT32, 0)),
        pair(b"odd.bytes", np.uint32(T.STRING).tobytes() + string(b"caf\xe9")),
    ]
    data, counts = reader.data.tobytes(), np.frombuffer(reader.data[8:24].tobytes(), np.uint64)
    tensors = reader.tensors[0].field.offset
    last = reader.tensors[-1].field
    end = last.offset + sum(p.nbytes for p in last.parts)
    infos = bytearray(data[tensors:end])
    place = 0
    for tensor in reader.tensors:  # lie at multiples of 128
        offset = tensor.field.offset - tensors + sum(p.nbytes for p in tensor.field.parts[:-1])
        infos[offset : offset + 8] = np.uint64(place).tobytes()
        place += -(-tensor.n_bytes // 128) * 128
    head = data[:8] + counts[:1].tobytes() + np.uint64(counts[1] + len(new)).tobytes()
    head += data[24:tensors] + b"".join(new) + infos
    blocks = [t.data.tobytes() + bytes(-t.n_bytes % 128) for t in reader.tensors]
    target.write_bytes(head + bytes(-len(head) % 128) + b"".join(blocks))


def test_copies_that_are_refused(tmp_path, tiny):
    model = tiny("grouped_query")
    before, target = model.read_bytes(), tmp_path / "copy.gguf"
    target.write_text("mine")
    assert "exists. Name another file, or replace it with --force" in fail("centre", model, "--out", target)
    assert target.read_text() == "mine"
    assert "is the model itself" in fail("centre", model, "--out", model, "--force")
    assert "There is no directory" in fail("centre", model, "--out", tmp_path / "no" / "copy.gguf")
    assert "is a directory" in fail("centre", model, "--out", tmp_path)
    run("centre", model, "--out", target, "--force")
    assert target.read_bytes() != b"mine"
    assert model.read_bytes() == before


def test_parts_of_a_model_are_refused(tmp_path):
    part = tmp_path / "part.gguf"
    writer = gguf.GGUFWriter(part, "llama")
    writer.add_uint16("split.count", 3)
    for step in ("header", "kv_data", "tensors"):
        getattr(writer, f"write_{step}_to_file")()
    writer.close()
    with pytest.raises(InputError, match=r"is one of 3 parts.*llama-gguf-split --merge"):
        centred_copy.check(part, tmp_path / "out.gguf", False)


def test_a_failed_write_leaves_what_was_there(tmp_path, tiny, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    model, target = tiny("grouped_query"), tmp_path / "copy.gguf"
    target.write_text("mine")
    monkeypatch.setattr(shutil, "copyfileobj", full)
    assert "No space left" in fail("centre", model, "--out", target, "--force")
    assert "No space left" in fail("centre", model, "--out", tmp_path / "new.gguf")
    assert target.read_text() == "mine"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["copy.gguf", "grouped_query.gguf"]


def test_a_side_file_that_is_not_the_models_is_not_copied(tmp_path, tiny, monkeypatch):
    monkeypatch.setenv("LLAMA_CACHE", str(tmp_path / "none"))
    (tmp_path / "none").write_text("no folder")
    model = tiny("grouped_query")
    assert "Name a folder in LLAMA_CACHE" in fail("centre", model, "--out", tmp_path / "copy.gguf")
    assert "no cache folder can be written" in " ".join(run("info", model).split())

    monkeypatch.setenv("LLAMA_CACHE", str(tmp_path / "cache"))
    with Model(model) as opened:
        found = means(opened)
    other = dataclasses.replace(found.layers[0], mean=-found.layers[0].mean)
    with pytest.raises(InputError, match="holds other means"):
        centred_copy.write(
            model, tmp_path / "copy.gguf", dataclasses.replace(found, layers=(other, *found.layers[1:]))
        )
    assert not (tmp_path / "copy.gguf").exists()


# --- models that cannot be centred ---


def test_models_without_means(tmp_path, tiny):
    latent, recurrent = tiny("latent"), tiny("recurrent")
    assert "does not support" in examine(latent, 0).reason
    assert "latent.gguf cannot be centred" in fail("centre", latent, "--out", tmp_path / "copy.gguf")
    assert examine(recurrent, 0).reason == "no layer has an ordinary K cache"
    assert "No head" in fail("centre", recurrent, "--out", tmp_path / "copy.gguf")
    assert "no layer has an ordinary K cache" in run("info", recurrent)
    assert "does not support" in " ".join(run("info", latent).split())


def test_layers_without_keys_have_no_heads(tiny):
    found = centre(tiny("hybrid"))
    assert [layer.heads for layer in found.layers] == [0, 1, 0, 0]
    assert found.heads == 1


# --- commands ---


def test_centre_shows_layers_and_plots(tmp_path):
    found = json.loads(run("centre", "demo", "--json"))
    assert [layer["heads"] for layer in found["layers"]] == [2] * 7
    assert found["gain_db"] == pytest.approx(np.mean([layer["gain_db"] for layer in found["layers"]]))
    text = run("centre", "demo", "--plot", tmp_path / "gain.png")
    assert f"{found['layers'][3]['gain_db']:.1f}" in text
    assert "Stored as they are" in text
    assert (tmp_path / "gain.png").stat().st_size > 5000


def test_info_with_a_model():
    bare, full = json.loads(run("info", "--json")), json.loads(run("info", "demo", "--json"))
    centring = full.pop("centring")
    assert bare == full
    assert centring["centred"] > 0
    assert "TQ caches centre the keys of" in run("info", "demo")
    with llama_tq.centring(False):
        assert "switched off" in run("info", "demo")
    assert "There is no file" in fail("info", "absent.gguf")


# --- evaluation ---


def test_pairs_by_name():
    assert parse_pairs("tq4_0, tq4_0 uncentred,q8_0/tq3_0") == (TQ4, PLAIN, Pair("q8_0", "tq3_0"))
    assert Pair.parse(str(PLAIN)) == PLAIN != TQ4
    with pytest.raises(InputError, match="q8_0 keys are never centred"):
        Pair.parse("q8_0/tq4_0 uncentred")
    with pytest.raises(InputError, match="'off' cannot stand after tq4_0"):
        Pair.parse("tq4_0 off")


def test_eval_shows_both_and_keeps_them_apart(tmp_path, text, monkeypatch):
    out = tmp_path / "out"
    options = ["--ctx", 512, "--chunks", 1, "--pairs", "tq3_0,q8_0/tq3_0", "--no-yardsticks", "--uncentred"]
    result = json.loads(run("eval", "demo", *options, "--out", out, "--json"))
    names = ["f16/f16", "tq3_0/tq3_0", "tq3_0/tq3_0 uncentred", "q8_0/tq3_0"]
    assert [row["pair"] for row in result["pairs"]] == names
    centred, plain = (result["pairs"][i]["divergence"]["mean"]["value"] for i in (1, 2))
    assert 0 < centred < plain
    assert result["floor"] is None
    assert all((out / f"{name}.png").stat().st_size > 5000 for name in ("pareto", "heatmap"))
    assert (out / "recall-tq3_0-tq3_0-uncentred.json").exists()

    scored = []
    monkeypatch.setattr("llama_tq.commands.evaluate.score", lambda *a: scored.append(a) or score(*a))
    assert json.loads(run("eval", "demo", *options, "--out", out, "--json", "--resume")) == result
    assert not scored
    assert "  uncentred" in run("eval", "demo", *options, "--out", out, "--resume")
    with llama_tq.centring(False):
        line = fail("eval", "demo", *options[:-1], "--out", out, "--resume")
    assert "centring was on, is off" in line


def test_uncentred_needs_something_to_centre(text, tiny):
    with pytest.raises(InputError, match="No pair has a TQ type for K"):
        evaluate("demo", text, [Pair("q8_0", "tq4_0")], n_ctx=512, uncentred=True)
    with pytest.raises(InputError, match="centring is off"), llama_tq.centring(False):
        evaluate("demo", text, [TQ4], n_ctx=512, uncentred=True)
    with pytest.raises(InputError, match="cannot be centred: latent attention"):
        evaluate(tiny("latent"), text, [TQ4], n_ctx=512, uncentred=True)


def test_floor_is_the_f32_cache_without_flash_attention(text, monkeypatch):
    made = []
    monkeypatch.setattr("llama_tq.commands.evaluate.score", lambda *a: made.append(a[0].pair) or score(*a))
    options = {"n_ctx": 512, "chunks": 1, "recall": False}
    result = evaluate("demo", text, [TQ4, FLOOR], **options)
    assert made == [REFERENCE, FLOOR, TQ4]
    assert [row.pair for row in result.pairs] == [REFERENCE, TQ4, FLOOR]
    assert result.floor == result.pairs[2]
    assert 0 < result.floor.divergence.mean.value < result.pairs[1].divergence.mean.value / 3
    assert evaluate("demo", text, [TQ4], **options, floor=False).floor is None


def test_floor_is_shown(tmp_path):
    options = ["--ctx", 512, "--chunks", 1, "--pairs", "tq4_0", "--no-recall", "--out", tmp_path / "out"]
    assert "f32, the floor" in run("eval", "demo", *options)
    floor = json.loads((tmp_path / "out" / "result.json").read_text())["floor"]
    assert floor["pair"] == "f32/f32"
