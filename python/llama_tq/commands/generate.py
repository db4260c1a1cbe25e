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
from ..runtime.template import Template, source_of
from .defaults import N_TOKENS

_NOTHING = np.empty(0, np.int32)


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
    reused_tokens: int
    """Of the prompt, those that were in the cache already: earlier turns of a conversation."""
    n_ctx: int
    cache_bytes: int
    prompt_tokens_per_second: float
    tokens_per_second: float


def generate(
    model: str | os.PathLike[str],
    prompt: str,
    pair: Pair = REFERENCE,
    *,
    system: str | None = None,
    raw: bool = False,
    n_tokens: int = N_TOKENS,
    n_ctx: int | None = None,
    temperature: float = 0.0,
    seed: int = 0,
    n_gpu_layers: int = 0,
    on_text: Callable[[str], object] = lambda _: None,
) -> Generation:
    """Answer `prompt` in at most `n_tokens` tokens; `on_text` gets each piece as soon as it is known.

    The prompt goes through the model's chat template, behind `system` if that is given. With `raw`, and in a
    model that has no template, it is text to be continued.

    A temperature of 0 takes the most probable token. The context is as long as needed unless `n_ctx` says
    more. `n_gpu_layers` are on the GPU, with their cache; -1 for all. Raises InputError for bad input and for
    a prompt that does not fit.
    """
    with Model(model, n_gpu_layers=n_gpu_layers) as opened:
        tokens = prompt_tokens(opened, prompt, n_tokens, n_ctx, system=system, raw=raw)
        with opened.context(pair, n_ctx or len(tokens) + n_tokens) as context:
            return continue_text(context, tokens, n_tokens, temperature, seed, on_text)


def prompt_tokens(
    model: Model,
    prompt: str,
    n_tokens: int,
    n_ctx: int | None = None,
    *,
    system: str | None = None,
    raw: bool = False,
) -> np.ndarray:
    """The tokens of a prompt; InputError if it is empty or the answer does not fit behind it."""
    check_tokens(n_tokens)
    if raw and system is not None:
        raise InputError(
            "A system message goes through the chat template, and raw does without. Leave out one."
        )
    if not prompt:
        raise InputError("The prompt is empty. Give some text to continue.")
    if raw or (system is None and source_of(model) is None):
        tokens = model.tokenize(prompt)
    else:
        tokens = Template(model).tokens(conversation(system, prompt))
    room = model.check_context(n_ctx) if n_ctx is not None else model.n_ctx_train
    if len(tokens) + n_tokens > room:
        raise InputError(
            f"The prompt has {len(tokens)} tokens; with {n_tokens} to generate that is more than the context "
            f"of {room}. Shorten the prompt or generate less."
        )
    return tokens


def conversation(system: str | None, *turns: str) -> list[dict[str, str]]:
    """Messages of a system message, if there is one, and turns of the user and the model."""
    first = [{"role": "system", "content": system}] if system is not None else []
    roles = ("user", "assistant")
    return first + [{"role": roles[i % 2], "content": turn} for i, turn in enumerate(turns)]


def check_tokens(n_tokens: int) -> None:
    """InputError for a number of tokens that cannot be generated."""
    if n_tokens < 1:
        raise InputError(f"{n_tokens} tokens cannot be generated. Ask for at least 1.")


def continue_text(
    context: Context,
    prompt: np.ndarray,
    n_tokens: int,
    temperature: float = 0.0,
    rng: np.random.Generator | int = 0,
    on_text: Callable[[str], object] = lambda _: None,
    *,
    read: np.ndarray = _NOTHING,
    stop: Callable[[], bool] = lambda: False,
) -> Generation:
    """Generate in a `context` whose cache begins with `read`, until `stop` says so at the latest.

    `rng` draws the random numbers: a generator of them, or a seed.
    """
    rng, to_text = np.random.default_rng(rng), context.model.pieces()
    began = time.perf_counter()
    logits, reused = context.resume(prompt, read)
    prefilled = time.perf_counter()
    tokens: list[int] = []
    pieces: list[str] = []
    while len(tokens) < n_tokens and not stop():
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
        reused,
        context.n_ctx,
        context.memory.cache,
        (len(prompt) - reused) / (prefilled - began),
        len(tokens) / (finished - prefilled),
    )


def _sample(logits: np.ndarray, temperature: float, rng: np.random.Generator) -> int:
    if temperature <= 0:
        return int(np.argmax(logits))
    weights = np.exp((logits - logits.max()) / temperature).astype(np.float64)
    return int(rng.choice(len(weights), p=weights / weights.sum()))
