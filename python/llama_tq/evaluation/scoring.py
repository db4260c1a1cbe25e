"""Scores of predicted tokens, by the protocol of llama-perplexity --kl-divergence.

The text is cut into chunks of `n_ctx` tokens. Each starts with an empty cache, and the predictions in its
second half are scored.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import InputError
from ..runtime.models import Context, Model

_ROWS = 64  # rows of logits turned into probabilities at a time


@dataclass
class Chunk:
    """`n_ctx` tokens of text, and how the model with the reference cache continues the scored ones."""

    inputs: np.ndarray
    """int32 (n_ctx,), with the start token first where the model wants one."""
    targets: np.ndarray
    """int32 (n_ctx - 1 - n_ctx // 2,): what follows each scored token, from number n_ctx // 2 on."""
    reference: np.ndarray | None = None
    """float32 (targets, n_vocab) log-probabilities."""

    @property
    def first(self) -> int:
        """Number of the first scored token."""
        return len(self.inputs) - 1 - len(self.targets)


@dataclass(frozen=True)
class Scores:
    """For every scored token, in float32 arrays (tokens,); and what decoding took."""

    nll: np.ndarray
    """Negative log-probability of the right token, in nats."""
    kld: np.ndarray
    """KL divergence from the reference, in nats."""
    same: np.ndarray
    """1 where the most probable token is that of the reference."""
    seconds: float
    decoded: int
    """Tokens decoded in these seconds."""

    @classmethod
    def join(cls, parts: Sequence[Scores]) -> Scores:
        """The scores of several chunks as one."""
        arrays = (np.concatenate([getattr(p, name) for p in parts]) for name in ("nll", "kld", "same"))
        return cls(*arrays, sum(p.seconds for p in parts), sum(p.decoded for p in parts))


def cut(model: Model, text: str, n_ctx: int, wanted: int | None = None) -> list[Chunk]:
    """All chunks of the text; what is left at the end is dropped. InputError if there are not as many as
    `wanted`, or none.
    """
    model.check_context(n_ctx)
    if n_ctx < 8:
        raise InputError(f"A context of {n_ctx} tokens is too short to score anything. Take at least 8.")
    if wanted is not None and wanted < 1:
        raise InputError(f"{wanted} chunks cannot be measured. Ask for at least 1.")
    tokens = model.tokenize(text)
    possible = len(tokens) // n_ctx
    if possible < (wanted or 1):
        raise InputError(
            f"The text has {len(tokens)} tokens, too few for {wanted or 1} chunks of {n_ctx}. "
            "Give a longer text, fewer chunks or a shorter context."
        )
    parts = []
    for part in tokens[: possible * n_ctx].reshape(possible, n_ctx):
        inputs = part.copy()
        if model.bos is not None:
            inputs[0] = model.bos
        parts.append(Chunk(inputs, part[n_ctx // 2 + 1 :]))
    return parts


def score(context: Context, chunk: Chunk) -> Scores:
    """Run the chunk through the model. Where it has no reference yet, this run becomes the reference."""
    count, first = len(chunk.targets), chunk.first
    is_reference = chunk.reference is None
    reference = np.empty((count, context.model.n_vocab), np.float32) if is_reference else chunk.reference
    nll, kld, same = np.empty((3, count), np.float32)
    context.clear()
    seconds, done = 0.0, 0
    for start in range(0, len(chunk.inputs), context.batch):
        tokens = chunk.inputs[start : start + context.batch]
        began = time.perf_counter()
        logits = context.decode(tokens, start, outputs=max(0, min(len(tokens), start + len(tokens) - first)))
        seconds += time.perf_counter() - began
        for row in range(0, len(logits), _ROWS):
            rows = slice(done, min(done + _ROWS, count, done + len(logits) - row))
            size = rows.stop - rows.start
            log_p = _log_softmax(logits[row : row + size])
            if is_reference:
                reference[rows] = log_p
            base = reference[rows]
            nll[rows] = -log_p[np.arange(size), chunk.targets[rows]]
            kld[rows] = (np.exp(base) * (base - log_p)).sum(axis=1)
            same[rows] = base.argmax(axis=1) == log_p.argmax(axis=1)
            done += size
    chunk.reference = reference
    return Scores(nll, kld, same, seconds, len(chunk.inputs))


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
