"""What a quantised cache does to a model, against f16 in the same process, on the user's own text."""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import InputError
from ..evaluation.recall import LOOKUPS, Questions, Recall
from ..evaluation.scoring import Scores, cut, score
from ..evaluation.store import Store
from ..runtime import memory
from ..runtime.centring import is_on
from ..runtime.means import not_centred
from ..runtime.models import BATCH, Memory, Model, memory_of
from ..runtime.pairs import FLOOR, RECOMMENDED, REFERENCE, YARDSTICKS, Pair, is_tq
from .defaults import EVAL_CTX, EVAL_SECONDS


@dataclass(frozen=True)
class Estimate:
    """A mean over tokens and its standard error."""

    value: float
    error: float

    @classmethod
    def of(cls, samples: np.ndarray) -> Estimate:
        """Of independent samples."""
        samples = samples.astype(np.float64)
        return cls(float(samples.mean()), float(samples.std() / max(len(samples) - 1, 1) ** 0.5))


@dataclass(frozen=True)
class Divergence:
    """KL divergence of the predictions from those with the f16 cache, in nats: its mean and its tail over
    tokens.
    """

    mean: Estimate
    p99: float
    p999: float
    max: float


@dataclass(frozen=True)
class PairQuality:
    """How the model does with one pair of cache types."""

    pair: Pair
    bits_per_value: float
    cache_bytes: int
    perplexity: Estimate
    divergence: Divergence
    same_top: Estimate
    """Share of tokens whose most probable continuation is that of f16."""
    tokens_per_second: float
    """Of reading the text."""
    recall: tuple[Recall, ...]
    """Empty when it was not asked for."""


@dataclass(frozen=True)
class Evaluation:
    """The result for every pair, f16 first."""

    model: str
    description: str
    n_ctx: int
    chunks: int
    possible_chunks: int
    """As many as the text has."""
    scored_tokens: int
    needed_bytes: int
    """Main memory that the evaluation took at most: see `needed_memory`."""
    pairs: tuple[PairQuality, ...]
    floor: PairQuality | None
    """The f32 cache without flash attention, which rounds less than f16: what it differs by is no loss. Any
    change of the cache, however small, flips roundings of the 8-bit activations that quantised weights are
    multiplied with, so no pair can measure much below it. None when it was not asked for.
    """


Progress = Callable[[str, int, int], None]
"""Told what is being done, how many steps are done, and how many there are."""


def evaluate(
    model: str | os.PathLike[str],
    text: str,
    pairs: Sequence[Pair] | None = None,
    *,
    n_ctx: int = EVAL_CTX,
    chunks: int | None = None,
    recall: bool = True,
    floor: bool = True,
    uncentred: bool = False,
    n_gpu_layers: int = 0,
    keep: str | os.PathLike[str] | None = None,
    resume: bool = False,
    progress: Progress = lambda *_: None,
    on_first: Callable[[PairQuality], object] = lambda _: None,
) -> Evaluation:
    """Compare `pairs` with f16 on the first `chunks` chunks of `n_ctx` tokens of `text`.

    Without `chunks` on as many as EVAL_SECONDS are enough for at the speed of the first, and at least that;
    `on_first` is told how each pair does in it as soon as that is known.

    By default the recommended pairs, and q8_0, q5_0 and q4_0. `recall` adds key-value lookups, `floor` one
    pass with an f32 cache (see `Evaluation.floor`), and `uncentred` every pair with a TQ type for K a second
    time, with its keys stored as they are. `n_gpu_layers` are on the GPU, with their cache; -1 for all.
    Finished parts are kept in the directory `keep`; with `resume` they are read from there instead of
    computed, if they come from the same model, text, context, pairs and GPU layers.

    Raises InputError for bad input, for a text shorter than asked for, when there is too little memory, and
    for `uncentred` where nothing would be centred.
    """
    chosen = pairs if pairs is not None else (*YARDSTICKS, *RECOMMENDED)
    pairs = (REFERENCE, *(p for p in dict.fromkeys(chosen) if p != REFERENCE))
    if len(pairs) == 1:
        raise InputError(f"There is nothing to compare with {REFERENCE}. Name another pair.")
    with Model(model, weights=False, n_gpu_layers=n_gpu_layers) as metadata:
        if uncentred:
            pairs = _with_uncentred(metadata, pairs)
        measured = tuple(dict.fromkeys((REFERENCE, *([FLOOR] if floor else []), *pairs)))
        parts = cut(metadata, text, n_ctx, chunks)
        questions = Questions(metadata, n_ctx) if recall else None
        memories = {pair: memory_of(metadata, pair, n_ctx) for pair in measured}
        needed = needed_memory(metadata, memories.values(), n_ctx)
        memory.require(needed, f"Evaluating {metadata.name} with {n_ctx} tokens", "Lower the context.")
        identity = _identity(metadata, text, n_ctx, measured, n_gpu_layers)
        store = Store(Path(keep), identity, resume) if keep is not None else None

    with Model(model, n_gpu_layers=n_gpu_layers) as opened:
        count, done = chunks or 1, itertools.count()
        scores: list[dict[Pair, Scores]] = []
        while len(scores) < count:
            number, chunk = len(scores), parts[len(scores)]
            total = len(measured) * count + len(pairs) * bool(questions)
            found = (store.scores(number) if store else None) or {}
            for pair in measured:
                progress(f"chunk {number + 1} of {count}, {pair}", next(done), total)
                if pair not in found:
                    with opened.context(pair, n_ctx) as context:
                        found[pair] = score(context, chunk)
                if number == 0:
                    on_first(_summarise(pair, found[pair], memories[pair].cache, ()))
            if store and chunk.reference is not None:
                store.save_scores(number, found)
            chunk.reference = None  # as large as everything else together
            scores.append(found)
            if number == 0 and chunks is None:
                count = min(len(parts), _affordable(found))

        answers: dict[Pair, tuple[Recall, ...]] = {}
        for pair in pairs if questions else ():
            progress(f"recall, {pair}", next(done), total)
            kept = store.recall(pair) if store else None
            if kept is None:
                with opened.context(pair, n_ctx, swa_full=True) as context:
                    kept = questions.ask(context)
                if store:
                    store.save_recall(pair, kept)
            answers[pair] = kept
        progress("done", total, total)

        rows = {
            pair: _summarise(
                pair, Scores.join([s[pair] for s in scores]), memories[pair].cache, answers.get(pair, ())
            )
            for pair in measured
        }
        return Evaluation(
            opened.name,
            opened.description,
            n_ctx,
            count,
            len(parts),
            sum(len(part.targets) for part in parts[:count]),
            needed,
            tuple(rows[pair] for pair in pairs),
            rows[FLOOR] if floor else None,
        )


def _affordable(first: dict[Pair, Scores]) -> int:
    """Chunks to read when nobody says how many: by what the first took, also where it was read from disk."""
    return max(1, int(EVAL_SECONDS / sum(scores.seconds for scores in first.values())))


def _with_uncentred(model: Model, pairs: Sequence[Pair]) -> tuple[Pair, ...]:
    """Behind every pair with a TQ type for K, the same without centring."""
    reason = not_centred(model)
    if reason:
        raise InputError(f"The keys of {model.name} cannot be centred: {reason}. Ask for no uncentred pairs.")
    if not is_on():
        raise InputError("Key centring is off: LLAMA_TQ_CENTRE=off, or a `with llama_tq.centring(False)`.")
    if not any(is_tq(pair.k) for pair in pairs):
        raise InputError("No pair has a TQ type for K, and others are never centred. Add one, such as tq4_0.")
    both = ((p, Pair(p.k, p.v, centred=False)) if is_tq(p.k) else (p,) for p in pairs)
    return tuple(dict.fromkeys(itertools.chain.from_iterable(both)))


def needed_memory(model: Model, memories: Iterable[Memory], n_ctx: int) -> int:
    """Bytes of main memory that `evaluate` takes at most with such contexts, however many chunks and pairs.

    Weights, the largest context, and logits: those of one decode call in llama.cpp, and the reference's of
    the scored half of one chunk.
    """
    logits = (BATCH + n_ctx // 2) * model.n_vocab * 4
    return max(m.main for m in memories) + logits


def _summarise(pair: Pair, scores: Scores, cache_bytes: int, recall: tuple[Recall, ...]) -> PairQuality:
    loss = Estimate.of(scores.nll)
    perplexity = float(np.exp(loss.value))
    p99, p999 = (float(p) for p in np.percentile(scores.kld, (99, 99.9)))
    return PairQuality(
        pair,
        pair.bits_per_value,
        cache_bytes,
        Estimate(perplexity, perplexity * loss.error),
        Divergence(Estimate.of(scores.kld), p99, p999, float(scores.kld.max())),
        Estimate.of(scores.same),
        scores.decoded / scores.seconds,
        recall,
    )


def _identity(
    model: Model, text: str, n_ctx: int, pairs: Sequence[Pair], n_gpu_layers: int
) -> dict[str, str]:
    """What a kept part depends on."""
    stat = model.path.stat()
    return {
        "model": f"{model.path.resolve()}, {stat.st_size} bytes, {stat.st_mtime_ns}",
        "text": hashlib.sha256(text.encode()).hexdigest(),
        "context": str(n_ctx),
        "pairs": ", ".join(map(str, pairs)),
        "centring": "on" if is_on() else "off",
        "recall": str(LOOKUPS),
        "layers on the GPU": str(n_gpu_layers),
    }
