"""Text from a model with a cache of chosen types."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..errors import InputError
from ..runtime.models import Context, Model
from ..runtime.pairs import REFERENCE, Pair
from .defaults import N_TOKENS


@dataclass(frozen=True)
class Generation:
    """What a model wrote, and how fast."""

    model: str
    pair: Pair
    text: str
    tokens: tuple[int, ...]
    pieces: tuple[str, ...]
    """The text, token by token."""
    prompt_tokens: int
    n_ctx: int
    cache_bytes: int
    prompt_tokens_per_second: float
    tokens_per_second: float


def generate(
    model: str | os.PathLike[str],
    prompt: str,
    pair: Pair = REFERENCE,
    *,
    n_tokens: int = N_TOKENS,
    n_ctx: int | None = None,
    temperature: float = 0.0,
    seed: int = 0,
    n_gpu_layers: int = 0,
    on_text: Callable[[str], object] = lambda _: None,
) -> Generation:
    """Continue `prompt` by at most `n_tokens` tokens; `on_text` gets each piece as soon as it is known.

    A temperature of 0 takes the most probable token. The context is as long as needed unless `n_ctx` says
    more. `n_gpu_layers` are on the GPU, with their cache; -1 for all. Raises InputError for bad input and for
    a prompt that does not fit.
    """
    with Model(model, n_gpu_layers=n_gpu_layers) as opened:
        tokens = prompt_tokens(opened, prompt, n_tokens, n_ctx)
        with opened.context(pair, n_ctx or len(tokens) + n_tokens) as context:
            return continue_text(context, tokens, n_tokens, temperature, seed, on_text)


def prompt_tokens(model: Model, prompt: str, n_tokens: int, n_ctx: int | None = None) -> np.ndarray:
    """The tokens of a prompt; InputError if it is empty or the answer does not fit behind it."""
    if n_tokens < 1:
        raise InputError(f"{n_tokens} tokens cannot be generated. Ask for at least 1.")
    tokens = model.tokenize(prompt)
    if not len(tokens):
        raise InputError("The prompt is empty. Give some text to continue.")
    room = model.check_context(n_ctx) if n_ctx is not None else model.n_ctx_train
    if len(tokens) + n_tokens > room:
        raise InputError(
            f"The prompt has {len(tokens)} tokens; with {n_tokens} to generate that is more than the context "
            f"of {room}. Shorten the prompt or generate less."
        )
    return tokens


def continue_text(
    context: Context,
    prompt: np.ndarray,
    n_tokens: int,
    temperature: float = 0.0,
    seed: int = 0,
    on_text: Callable[[str], object] = lambda _: None,
) -> Generation:
    """Generate in an empty `context`."""
    rng, to_text = np.random.default_rng(seed), context.model.pieces()
    began = time.perf_counter()
    logits = context.prefill(prompt)
    prefilled = time.perf_counter()
    tokens: list[int] = []
    pieces: list[str] = []
    while len(tokens) < n_tokens:
        token = _sample(logits, temperature, rng)
        if context.model.is_end(token):
            break
        tokens.append(token)
        pieces.append(to_text(token))
        on_text(pieces[-1])
        if len(tokens) < n_tokens:
            logits = context.decode(np.array([token], np.int32), len(prompt) + len(tokens) - 1)[0]
    finished = time.perf_counter()
    return Generation(
        context.model.name,
        context.pair,
        "".join(pieces),
        tuple(tokens),
        tuple(pieces),
        len(prompt),
        context.n_ctx,
        context.memory.cache,
        len(prompt) / (prefilled - began),
        len(tokens) / (finished - prefilled),
    )


def _sample(logits: np.ndarray, temperature: float, rng: np.random.Generator) -> int:
    if temperature <= 0:
        return int(np.argmax(logits))
    weights = np.exp((logits - logits.max()) / temperature).astype(np.float64)
    return int(rng.choice(len(weights), p=weights / weights.sum()))
