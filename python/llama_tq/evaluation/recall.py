"""Key-value recall: can the model still read a value that lies far back in the cache?

The context is filled with a Python dictionary of random keys and numbers. Then keys from the beginning, the
middle and the end are looked up, and the greedy answers are compared with what the dictionary says.
"""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass

import numpy as np

from ..errors import InputError
from ..runtime.models import Context, Model

DEPTHS = (0.1, 0.5, 0.9)  # where in the dictionary the keys lie: 0 is its start, farthest from the question
LOOKUPS = 16  # per depth
_SHOTS = 3  # lookups shown with their answers, so that the model knows the form
_MARGIN = 160  # tokens kept for these, the question and the answer
_WORDS = [
    "amber",
    "anchor",
    "apple",
    "basket",
    "bell",
    "bridge",
    "butter",
    "candle",
    "canyon",
    "carpet",
    "castle",
    "cloud",
    "copper",
    "cotton",
    "desert",
    "engine",
    "falcon",
    "feather",
    "forest",
    "garden",
    "ginger",
    "glacier",
    "harbor",
    "hammer",
    "island",
    "ivory",
    "jacket",
    "jungle",
    "kettle",
    "ladder",
    "lantern",
    "lemon",
    "marble",
    "meadow",
    "mirror",
    "needle",
    "ocean",
    "olive",
    "orchid",
    "paper",
    "pearl",
    "pepper",
    "piano",
    "planet",
    "pocket",
    "puzzle",
    "quartz",
    "rabbit",
    "ribbon",
    "river",
    "saddle",
    "salt",
    "shadow",
    "silver",
    "spider",
    "stone",
    "sugar",
    "tiger",
    "tunnel",
    "valley",
    "velvet",
    "walnut",
    "window",
]


@dataclass(frozen=True)
class Recall:
    """Share of lookups answered exactly, with the depth of the keys asked for."""

    depth: float
    share: float
    lookups: int


class Questions:
    """A dictionary as long as the context, and lookups in it; the same for every pair of types."""

    def __init__(self, model: Model, n_ctx: int) -> None:
        rng = random.Random(0)
        keys = [f"{a}_{b}" for a, b in itertools.permutations(_WORDS, 2)]
        rng.shuffle(keys)
        table = {key: str(rng.randrange(1000, 10000)) for key in keys}
        line_tokens = len(model.tokenize(_line(keys[0], table[keys[0]])))
        room = n_ctx - _MARGIN
        lines = min(len(keys), room // line_tokens)
        while len(model.tokenize(_dictionary(keys[:lines], table))) > room:
            lines = lines * 15 // 16
        per_depth = min(LOOKUPS, lines // (len(DEPTHS) + 1))
        if per_depth < 1:
            raise InputError(
                f"A context of {n_ctx} tokens is too short for the recall test. Take at least 512."
            )
        keys = keys[:lines]
        examples = keys[:: max(1, lines // _SHOTS)][:_SHOTS]
        self._text = _dictionary(keys, table) + "".join(_question(k) + f"{table[k]!r}\n" for k in examples)
        self._table = table
        self._asked = {depth: _around(keys, depth, per_depth, set(examples)) for depth in DEPTHS}

    def ask(self, context: Context) -> tuple[Recall, ...]:
        """The shares for the cache of `context`, which is cleared first."""
        context.clear()
        tokens = context.model.tokenize(self._text)
        context.prefill(tokens)
        shares = []
        for depth, keys in self._asked.items():
            right = sum(self._answer(context, tokens, key) == repr(self._table[key]) for key in keys)
            shares.append(Recall(depth, right / len(keys), len(keys)))
        return tuple(shares)

    def _answer(self, context: Context, read: np.ndarray, key: str) -> str:
        """The first line that the model writes after the question; `read` is in the cache already."""
        tokens = context.model.tokenize(self._text + _question(key))
        logits, _ = context.resume(tokens, read)  # a token may span the seam
        text, to_text = "", context.model.pieces()
        for position in range(len(tokens), len(tokens) + 12):
            token = int(np.argmax(logits))
            text += to_text(token)
            if "\n" in text or context.model.is_end(token):
                break
            logits = context.decode(np.array([token], np.int32), position)[0]
        return text.partition("\n")[0].strip()


def _line(key: str, value: str) -> str:
    return f"    {key!r}: {value!r},\n"


def _dictionary(keys: list[str], table: dict[str, str]) -> str:
    return "codes = {\n" + "".join(_line(key, table[key]) for key in keys) + "}\n\n"


def _question(key: str) -> str:
    return f">>> codes[{key!r}]\n"


def _around(keys: list[str], depth: float, count: int, excluded: set[str]) -> list[str]:
    """`count` keys nearest to `depth`."""
    centre = depth * (len(keys) - 1)
    order = sorted(range(len(keys)), key=lambda i: abs(i - centre))
    return [keys[i] for i in order if keys[i] not in excluded][:count]
