"""What the cache types cost, shown on the model and the text that ship with the package."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..runtime import embedded
from ..runtime.models import Model
from ..runtime.pairs import REFERENCE, Pair
from ..runtime.sources import DEMO
from .evaluate import Evaluation, PairQuality, evaluate
from .generate import Generation, continue_text

PAIRS = (REFERENCE, *map(Pair.parse, ("q8_0", "q4_0", "tq4_0", "tq3_0", "tq4_0/tq2_1")))
N_CTX = 4096  # as deep as the model was trained
CHUNKS = 1
N_TOKENS = 64
TEMPERATURE, SEED = 0.8, 1  # so small a model repeats itself when it takes the most probable token


@dataclass(frozen=True)
class Demo:
    """The figures and the continuations of every pair, in the same order, f16 first."""

    evaluation: Evaluation
    prompt: str
    """The end of what was continued: its last line."""
    generations: tuple[Generation, ...]


def demo(
    *,
    pairs: Sequence[Pair] = PAIRS,
    n_ctx: int = N_CTX,
    chunks: int = CHUNKS,
    n_tokens: int = N_TOKENS,
    n_gpu_layers: int = 0,
    progress: Callable[[str, int, int], None] = lambda *_: None,
    on_first: Callable[[PairQuality], object] = lambda _: None,
    on_generation: Callable[[Generation], object] = lambda _: None,
) -> Demo:
    """Evaluate `pairs` on held-out text, and continue the first `n_ctx / 2` tokens of it with each.

    All continuations draw the same random numbers, so that they differ by what the cache does.
    `n_gpu_layers` are on the GPU, with their cache; -1 for all. `on_first` is that of `evaluate`, and
    `on_generation` is told each continuation at once.
    """
    text, pairs = embedded.held_out_text(), (REFERENCE, *(p for p in dict.fromkeys(pairs) if p != REFERENCE))
    total = len(pairs) * (chunks + 1)
    evaluation = evaluate(
        DEMO,
        text,
        pairs,
        n_ctx=n_ctx,
        chunks=chunks,
        recall=False,
        floor=False,
        n_gpu_layers=n_gpu_layers,
        progress=lambda what, done, _: progress(what, done, total),
        on_first=on_first,
    )
    with Model(DEMO, n_gpu_layers=n_gpu_layers) as model:
        tokens, pieces = model.tokenize(text)[: n_ctx // 2], model.pieces()
        generations = []
        for number, pair in enumerate(pairs):
            progress(f"writing, {pair}", len(pairs) * chunks + number, total)
            with model.context(pair, len(tokens) + n_tokens) as context:
                generations.append(continue_text(context, tokens, n_tokens, TEMPERATURE, SEED))
            on_generation(generations[-1])
        progress("done", total, total)
        prompt = "".join(map(pieces, tokens)).splitlines()[-1]
    return Demo(evaluation, prompt, tuple(generations))
