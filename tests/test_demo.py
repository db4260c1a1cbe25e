"""The shipped model, and what `llama-tq demo` shows with it."""

from __future__ import annotations

import functools
import json
import runpy
from pathlib import Path
from types import SimpleNamespace

import gguf
import pytest
from click.testing import CliRunner

import llama_tq
from llama_tq import cli
from llama_tq.commands import demo
from llama_tq.runtime import embedded
from llama_tq.runtime.models import Model
from llama_tq.runtime.pairs import Pair

GOLDEN = json.loads((Path(__file__).parent / "golden" / "demo_tokens.json").read_text())
SMALL = {"n_ctx": 1024, "chunks": 2, "n_tokens": 8}


@pytest.fixture(scope="module")
def model():
    with Model("demo") as opened:
        yield opened


@pytest.fixture(scope="module")
def result() -> demo.Demo:
    return llama_tq.demo(**SMALL)


def test_model_is_small():
    assert embedded.MODEL.stat().st_size <= 8_000_000


def test_model_has_head_size_128_and_grouped_kv_heads():
    reader = gguf.GGUFReader(embedded.MODEL)

    def attention(name: str) -> int:
        return reader.get_field(f"qwen3.attention.{name}").contents()

    assert attention("key_length") == attention("value_length") == 128
    assert attention("head_count") == 2 * attention("head_count_kv")


@pytest.mark.parametrize("sample", GOLDEN, ids=range(len(GOLDEN)))
def test_tokenizer_is_the_one_trained(model, sample):
    assert model.tokenize(sample["text"], special=False).tolist() == sample["ids"]


def test_tokenizer_loses_nothing(model):
    text = embedded.held_out_text()
    assert "".join(map(model.pieces(), model.tokenize(text, special=False))) == text


def test_model_has_learned(result):
    uniform = 4096
    assert result.evaluation.pairs[0].perplexity.value < uniform / 100


def test_every_pair_is_measured_and_writes(result):
    assert tuple(row.pair for row in result.evaluation.pairs) == demo.PAIRS
    assert tuple(made.pair for made in result.generations) == demo.PAIRS
    for made in result.generations:
        assert made.prompt_tokens == SMALL["n_ctx"] // 2
        assert 0 < len(made.tokens) <= SMALL["n_tokens"]
        assert made.text.strip()
        assert made.tokens_per_second > 0
    assert result.prompt in embedded.held_out_text()


def test_f16_is_the_reference_and_tq4_0_is_nearer_to_it_than_q4_0(result):
    rows = {row.pair: row for row in result.evaluation.pairs}
    f16, q4_0, tq4_0, tq3_0 = (rows[Pair.parse(name)] for name in ("f16", "q4_0", "tq4_0", "tq3_0"))
    assert f16.divergence.max == 0
    assert f16.same_top.value == 1
    assert 0 < tq4_0.divergence.mean.value < q4_0.divergence.mean.value < tq3_0.divergence.mean.value
    rotation = 4 * (128**2 + 64**2)  # bytes of the matrices, of keys and of values
    tables = tq4_0.cache_bytes - q4_0.cache_bytes - rotation  # of the centred keys
    assert 0 < tables < 0.02 * q4_0.cache_bytes < q4_0.cache_bytes < f16.cache_bytes


@pytest.fixture
def small_demo(monkeypatch):
    monkeypatch.setattr(demo, "demo", functools.partial(demo.demo, n_ctx=256, n_tokens=4))


def test_json_has_every_pair(small_demo):
    output = CliRunner().invoke(cli.main, ["demo", "--json"], catch_exceptions=False).stdout
    rows = json.loads(output)["evaluation"]["pairs"]
    assert [row["pair"] for row in rows] == [str(pair) for pair in demo.PAIRS]


def test_table_has_every_pair_and_texts_are_those_of_f16_and_tq(small_demo):
    output = CliRunner().invoke(cli.main, ["demo"], catch_exceptions=False).stdout
    texts, table = output.split("held-out tokens")
    for pair in demo.PAIRS:
        assert str(pair) in table
        assert (f"\n{pair}\n" in f"\n{texts}") == (pair.k == "f16" or "tq" in str(pair))


def test_a_damaged_model_is_one_line_and_exit_code_2(monkeypatch, tmp_path):
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(embedded.MODEL.read_bytes()[:100_000])
    monkeypatch.setattr(embedded, "MODEL", damaged)
    result = CliRunner().invoke(cli.main, ["demo"])
    assert result.exit_code == 2
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    assert f"Cannot load {damaged}" in result.stderr


@pytest.fixture(scope="module")
def script() -> SimpleNamespace:
    """The training script's functions; its stages need packages that the tests do not."""
    return SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "scripts" / "train_demo.py")))


def test_a_held_out_module_takes_its_tests_along(script):
    files = (
        "calendar.py",
        "test/test_calendar.py",
        "_pydecimal.py",
        "email/_policybase.py",
        "test/test_email/x.py",
    )
    subjects = [script.subject_of(Path(name)) for name in files]
    assert subjects == ["calendar", "calendar", "decimal", "email", "email"]


def test_split_holds_out_by_subject_and_drops_near_duplicates(script):
    def document(subject: str, words: str, kind: str = "source") -> object:
        return script.Document(subject, kind, " ".join(f"{words}{i}" for i in range(100)))

    fresh, seen = document("calendar", "a"), document("shlex", "b")
    train, validation, test = script.split(
        [
            fresh,
            seen,
            document("argparse", "b"),
            document("difflib", "c"),
            document("calendar", "d", "docstrings"),
        ]
    )
    assert [d.subject for d in train] == ["argparse"]
    assert [d.subject for d in validation] == ["difflib"]
    assert test == [fresh]
