"""The evaluation: that its figures are right, and that they come from the cache."""

from __future__ import annotations

import ctypes
import mmap
import re
import subprocess
import tracemalloc
from dataclasses import replace
from pathlib import Path

import llama_cpp
import numpy as np
import pytest

from llama_tq.commands.evaluate import evaluate
from llama_tq.errors import InputError
from llama_tq.evaluation.recall import DEPTHS, Questions
from llama_tq.evaluation.scoring import Chunk, cut, score
from llama_tq.runtime import embedded, ggml, memory
from llama_tq.runtime.models import Model, memory_of
from llama_tq.runtime.pairs import REFERENCE, Pair, type_id

N_CTX, CHUNKS = 512, 2
TQ4 = Pair("tq4_0", "tq4_0")


@pytest.fixture(scope="module")
def text() -> str:
    return embedded.held_out_text()


@pytest.fixture(scope="module")
def model():
    with Model("demo") as opened:
        yield opened


@pytest.fixture
def chunk(model, text) -> Chunk:
    """A chunk of text with its reference."""
    part = cut(model, text, N_CTX)[0]
    with model.context(REFERENCE, N_CTX) as context:
        score(context, part)
    return part


def test_scores_are_those_of_float64(model):
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, (2, 200, 50)).astype(np.float32)
    chunk = Chunk(np.zeros(201, np.int32), rng.integers(0, 50, 100, np.int32))
    reference, other = (score(_Scripted(rows), chunk) for rows in logits)

    log_p, log_q = (x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in logits[:, :100].astype(np.float64))
    rows = np.arange(100)
    np.testing.assert_allclose(reference.nll, -log_p[rows, chunk.targets], rtol=1e-5)
    np.testing.assert_allclose(other.nll, -log_q[rows, chunk.targets], rtol=1e-5)
    np.testing.assert_allclose(other.kld, (np.exp(log_p) * (log_p - log_q)).sum(1), rtol=1e-4)
    np.testing.assert_array_equal(other.same, log_p.argmax(1) == log_q.argmax(1))


class _Scripted:
    """Stands in for a context: the scored tokens get the given logits, in calls of 70 tokens."""

    batch = 70

    def __init__(self, logits: np.ndarray) -> None:
        self._rows = logits
        self.model = type("Model", (), {"n_vocab": logits.shape[1]})

    def clear(self) -> None:
        self._next = 0

    def decode(self, tokens: np.ndarray, position: int, *, outputs: int) -> np.ndarray:
        self._next += outputs
        return self._rows[self._next - outputs : self._next]


def test_f16_against_itself_is_exactly_zero(model, chunk):
    with model.context(REFERENCE, N_CTX) as context:
        scores = score(context, chunk)
    assert not scores.kld.any()
    assert scores.same.all()


def test_more_bits_diverge_less(model, chunk):
    means = []
    for name in ("q8_0", "tq4_0", "tq3_0", "tq2_1"):
        with model.context(Pair(name, name), N_CTX) as context:
            means.append(score(context, chunk).kld.mean())
    assert 0 < means[0] < means[1] < means[2] < means[3]


@pytest.mark.parametrize("pair", [Pair("tq4_0", "f16"), Pair("f16", "tq4_0")], ids=str)
def test_a_corrupted_type_shows(model, chunk, pair):
    """The figures come from the bytes in the cache: zero the scale of every eighth row written, and they
    move.
    """
    with model.context(pair, N_CTX) as context:
        sound = score(context, chunk).kld.mean()
        with _corrupted("tq4_0"):
            broken = score(context, chunk).kld.mean()
        again = score(context, chunk).kld.mean()
    assert broken > 5 * sound
    assert again == sound


class _corrupted:
    """Inside, rows of a type lose values on their way into the cache: ggml's table points to a function that
    does it.
    """

    def __init__(self, name: str) -> None:
        get = ggml.library("ggml-cpu").ggml_get_type_traits_cpu
        get.restype, get.argtypes = ctypes.c_void_p, [ctypes.c_int]
        self._slot = ctypes.c_void_p.from_address(get(type_id(name)))  # .from_float comes first
        original = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)
        convert, rows = original(self._slot.value), 0

        def broken(x: int, y: int, n: int) -> None:
            nonlocal rows
            rows += 1
            if rows % 8 == 0:
                ctypes.memset(x, 0, 4 * n)
            convert(x, y, n)

        self._broken = original(broken)

    def _write(self, function: int) -> None:
        page = ctypes.addressof(self._slot) // mmap.PAGESIZE * mmap.PAGESIZE
        libc = ctypes.CDLL(None)
        libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        assert libc.mprotect(page, 2 * mmap.PAGESIZE, mmap.PROT_READ | mmap.PROT_WRITE) == 0
        self._slot.value = function

    def __enter__(self) -> None:
        self._original = self._slot.value
        self._write(ctypes.cast(self._broken, ctypes.c_void_p).value)

    def __exit__(self, *_: object) -> None:
        self._write(self._original)


def test_agrees_with_llama_perplexity(tmp_path, text):
    """Same model, text, chunks: every figure within the standard error that llama-perplexity prints."""
    program = Path(llama_cpp.__file__).parent / "bin" / "llama-perplexity"
    (tmp_path / "text").write_text(text)
    files = ["-m", embedded.MODEL, "-f", tmp_path / "text", "--kl-divergence-base", tmp_path / "base"]
    sizes = ["-c", str(N_CTX), "-b", str(N_CTX), "--chunks", str(CHUNKS), "-fa", "on"]
    types = ["-ctk", "tq4_0", "-ctv", "tq3_0"]
    subprocess.run([program, *files, *sizes], check=True, capture_output=True)
    run = [program, *files, *sizes, *types, "--kl-divergence"]
    log = subprocess.run(run, check=True, capture_output=True, text=True).stdout

    def printed(label: str) -> tuple[float, float]:
        return tuple(map(float, re.search(rf"{label} *: +([\d.]+) ± +([\d.]+)", log).groups()))

    result = evaluate("demo", text, [Pair("tq4_0", "tq3_0")], n_ctx=N_CTX, chunks=CHUNKS, recall=False)
    reference, quality = result.pairs
    for estimate, (value, error), scale in (
        (reference.perplexity, printed(r"Mean PPL\(base\)"), 1),
        (quality.perplexity, printed(r"Mean PPL\(Q\)"), 1),
        (quality.divergence.mean, printed("Mean +KLD"), 1),
        (quality.same_top, printed("Same top p"), 100),
    ):
        assert abs(scale * estimate.value - value) < error
        assert scale * estimate.error == pytest.approx(error, rel=0.05)


def test_interrupted_and_resumed(tmp_path, text, monkeypatch):
    options = {"pairs": [TQ4], "n_ctx": N_CTX, "chunks": CHUNKS, "recall": True}
    whole = evaluate("demo", text, **options)

    def interrupt(what: str, done: int, total: int) -> None:
        if what.startswith("chunk 2"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate("demo", text, **options, keep=tmp_path, progress=interrupt)
    scored = []
    monkeypatch.setattr("llama_tq.commands.evaluate.score", lambda *a: scored.append(a) or score(*a))
    resumed = evaluate("demo", text, **options, keep=tmp_path, resume=True)
    assert len(scored) == 3  # f16, the floor and TQ4 on the second chunk
    for a, b in zip(whole.pairs, resumed.pairs, strict=True):
        assert (a.perplexity, a.divergence, a.same_top, a.recall) == (
            b.perplexity,
            b.divergence,
            b.same_top,
            b.recall,
        )

    with pytest.raises(InputError, match=r"is another one: pairs was"):
        evaluate("demo", text, **options | {"pairs": [Pair("q8_0", "q8_0")]}, keep=tmp_path, resume=True)
    with pytest.raises(InputError, match="no evaluation to resume"):
        evaluate("demo", text, **options, keep=tmp_path / "new", resume=True)


def test_memory_does_not_grow_with_chunks(text):
    peaks = []
    for chunks in (1, 3):
        tracemalloc.start()
        result = evaluate("demo", text, [TQ4], n_ctx=N_CTX, chunks=chunks, recall=False)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    with Model("demo", weights=False) as model:
        reference = N_CTX // 2 * model.n_vocab * 4
    assert peaks[1] - peaks[0] < reference / 2
    assert reference < peaks[1] < result.needed_bytes


def test_recall_asks_at_its_depths(model):
    """The keys asked for stand where the depth says, and f16 knows some."""
    questions = Questions(model, N_CTX)
    table = questions._text
    end = table.index("}")
    for depth, keys in questions._asked.items():
        places = [table.index(f"{key!r}:") / end for key in keys]
        assert abs(np.mean(places) - depth) < 0.15
    with model.context(REFERENCE, N_CTX, swa_full=True) as context:
        answers = questions.ask(context)
        assert answers == questions.ask(context)
    assert tuple(a.depth for a in answers) == DEPTHS
    assert sum(a.share for a in answers) > 0


def test_bytes_are_those_of_llama_cpp(model, text):
    result = evaluate("demo", text, [TQ4], n_ctx=N_CTX, chunks=1, recall=False)
    assert [p.cache_bytes for p in result.pairs] == [
        memory_of(model, p.pair, N_CTX).cache for p in result.pairs
    ]


def test_refusals(text, monkeypatch):
    with pytest.raises(InputError, match=r"The text has \d+ tokens, too few for 1 chunks of 512"):
        evaluate("demo", "short", n_ctx=512)
    with pytest.raises(InputError, match="takes 1 to"):
        evaluate("demo", text, n_ctx=1 << 20)
    with pytest.raises(InputError, match="nothing to compare"):
        evaluate("demo", text, [REFERENCE], n_ctx=512)
    with pytest.raises(InputError, match="too short to score"):
        evaluate("demo", text, n_ctx=4)
    monkeypatch.setattr(memory, "available", lambda: 1 << 20)
    with pytest.raises(InputError, match=r"needs .* but 1 MiB are free\. Lower the context"):
        evaluate("demo", text, n_ctx=512)


def test_without_a_number_of_chunks_the_time_decides(text, monkeypatch, tmp_path):
    """At least one chunk, at most all, in between by what the first takes; resumed, by what it took then."""
    options = {"pairs": [TQ4], "n_ctx": 128, "recall": False, "floor": False}
    some = text[:6000]
    with Model("demo", weights=False) as model:
        possible = len(cut(model, some, 128))
    for budget, chunks in ((0, 1), (3 * 2 * 1.0, 3), (1e9, possible)):
        monkeypatch.setattr("llama_tq.commands.evaluate.EVAL_SECONDS", budget)
        monkeypatch.setattr("llama_tq.commands.evaluate.score", lambda *a: replace(score(*a), seconds=1.0))
        result = evaluate("demo", some, **options, keep=tmp_path)
        assert (result.chunks, result.possible_chunks) == (chunks, possible)
        assert result.scored_tokens == chunks * 63
        monkeypatch.setattr("llama_tq.commands.evaluate.score", lambda *_: pytest.fail("measured again"))
        assert evaluate("demo", some, **options, keep=tmp_path, resume=True).chunks == chunks


def test_the_first_chunk_is_told_at_once(text):
    """Of every pair, before the second chunk is begun."""
    told = []
    evaluate(
        "demo",
        text,
        [TQ4],
        n_ctx=128,
        chunks=2,
        recall=False,
        floor=False,
        progress=lambda what, *_: told.append(what),
        on_first=lambda row: told.append((str(row.pair), row.divergence.mean.value > 0)),
    )
    assert told[1] == ("f16/f16", False)
    assert told[3] == ("tq4_0/tq4_0", True)
    assert told[4].startswith("chunk 2 of 2")
