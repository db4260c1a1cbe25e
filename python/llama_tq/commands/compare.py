"""The same prompt continued with the f16 cache and with others, token by token."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..runtime.models import Model
from ..runtime.pairs import RECOMMENDED, REFERENCE, Pair
from .defaults import N_TOKENS
from .generate import Generation, continue_text, prompt_tokens


@dataclass(frozen=True)
class Continuation:
    """What one pair wrote, next to f16."""

    generation: Generation
    first_difference: int | None
    """Number of the first token that is not f16's; None if all are."""
    equal_share: float
    """Share of the positions at which both have the same token."""


@dataclass(frozen=True)
class Comparison:
    """Greedy continuations of one prompt; the reference is that of the f16 cache."""

    model: str
    prompt: str
    reference: Generation
    continuations: tuple[Continuation, ...]


def compare(
    model: str | os.PathLike[str],
    prompt: str,
    pairs: Sequence[Pair] | None = None,
    *,
    system: str | None = None,
    raw: bool = False,
    n_tokens: int = N_TOKENS,
    n_gpu_layers: int = 0,
    on_pair: Callable[[Pair], object] = lambda _: None,
    on_text: Callable[[str], object] = lambda _: None,
) -> Comparison:
    """Answer `prompt` with f16 and with every pair, always taking the most probable token.

    By default with the recommended pairs. `system` and `raw` are those of `generate`. `n_gpu_layers` are on
    the GPU, with their cache; -1 for all. `on_pair` is told whose turn it is, and `on_text` gets each
    piece of that answer as soon as it is known.

    Raises InputError for bad input and for a prompt that does not fit the model's context.
    """
    pairs = (REFERENCE, *(p for p in dict.fromkeys(pairs or RECOMMENDED) if p != REFERENCE))
    with Model(model, n_gpu_layers=n_gpu_layers) as opened:
        tokens = prompt_tokens(opened, prompt, n_tokens, system=system, raw=raw)
        made = []
        for pair in pairs:
            on_pair(pair)
            with opened.context(pair, len(tokens) + n_tokens) as context:
                made.append(continue_text(context, tokens, n_tokens, on_text=on_text))
        reference, *others = made
        return Comparison(
            opened.name, prompt, reference, tuple(_against(reference, other) for other in others)
        )


def _against(reference: Generation, other: Generation) -> Continuation:
    longest = max(len(reference.tokens), len(other.tokens))
    equal = [a == b for a, b in zip(reference.tokens, other.tokens, strict=False)]
    equal += [False] * (longest - len(equal))
    first = equal.index(False) if False in equal else None
    return Continuation(other, first, sum(equal) / longest if longest else 1.0)
