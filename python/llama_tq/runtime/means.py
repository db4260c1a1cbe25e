"""The mean keys of a model, as its contexts with TQ caches use them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .. import _native
from .._api import threads
from ..errors import InputError
from .models import Model, native_log

MODEL_FILE, MEASURED = "the model file", "measured"  # other sources are side files


def gain_db(before: float, after: float) -> float:
    """Energy taken off in dB; 0 where there is none."""
    return 10 * math.log10(before / after) if before > 0 and after > 0 else 0.0


@dataclass(frozen=True)
class LayerMeans:
    """One layer; one without an ordinary K cache has no heads."""

    heads: int
    """KV heads."""
    centred: int
    """KV heads whose keys are stored without their mean."""
    energy_before: float
    """Sum of squares of keys that the mean was not taken from, over all heads, as they are."""
    energy_after: float
    """The same as they are stored: what quantisation noise is in proportion to."""
    mean: np.ndarray
    """float32 (heads * head size,), before RoPE; zeros for heads that are left as they are."""

    @property
    def gain_db(self) -> float:
        return gain_db(self.energy_before, self.energy_after)


@dataclass(frozen=True)
class Means:
    """The mean keys of a model, and what is exempt from centring."""

    layers: tuple[LayerMeans, ...]
    first_is_plain: bool
    """The key at position 0 is stored as it is: it draws attention, and would drown in noise."""
    plain_tokens: tuple[int, ...]
    """So are the keys of these tokens, at any position."""
    source: str
    """MODEL_FILE, MEASURED in this process, or the path of a side file."""
    side_file: str
    """Path of the file beside the user's caches that keeps measured means; empty where no folder is known."""

    @property
    def centred(self) -> int:
        """Heads, over all layers."""
        return sum(layer.centred for layer in self.layers)

    @property
    def heads(self) -> int:
        """KV heads, over all layers."""
        return sum(layer.heads for layer in self.layers)

    @property
    def gain_db(self) -> float:
        """Mean over the layers that have keys."""
        gains = [layer.gain_db for layer in self.layers if layer.heads]
        return sum(gains) / len(gains) if gains else 0.0


def means(model: Model) -> Means:
    """The mean keys of a model with its weights: known, read from its file or side file, or measured now.

    Measuring reads a short text with the model, and writes the side file.

    Raises InputError for a model whose keys cannot be centred, with the reason.
    """
    reason = not_centred(model)
    if reason:
        raise InputError(f"The keys of {model.name} cannot be centred: {reason}.")
    with native_log():
        try:
            found = _native.means_of(model.address, threads())
        except RuntimeError as error:
            raise InputError(f"The mean keys of {model.name} cannot be measured: {error}.") from None
    return Means(
        tuple(
            LayerMeans(layer["kv_heads"], layer["heads"], layer["before"], layer["after"], layer["mean"])
            for layer in found["layers"]
        ),
        found["first_is_plain"],
        tuple(found["plain_tokens"]),
        found["source"] or MODEL_FILE,
        found["side_file"],
    )


def not_centred(model: Model) -> str | None:
    """Why no context of the model centres its keys; None if they do. Needs no weights."""
    return _native.not_centred(model.address) or None
