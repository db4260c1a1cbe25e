"""What key centring does to a model's keys, and a copy of the model that carries its means."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError
from ..runtime import centred_copy
from ..runtime.centring import is_on
from ..runtime.means import Means, means, not_centred
from ..runtime.models import STEP, Model, memory_of
from ..runtime.pairs import Pair

_ANY_TQ = Pair("tq4_0", "tq4_0")  # llama.cpp takes all TQ types for a model or none


@dataclass(frozen=True)
class Layer:
    """One layer of the model; those without an ordinary K cache have no heads."""

    heads: int
    """KV heads."""
    centred: int
    """KV heads whose keys are stored without their mean."""
    gain_db: float
    """Energy of the stored keys, and so of quantisation noise, taken off: 10 log10(before / after), measured
    on text that the mean was not taken from.
    """


@dataclass(frozen=True)
class Token:
    """A token of the vocabulary, and its text; empty in a model without a vocabulary."""

    id: int
    text: str


@dataclass(frozen=True)
class Centring:
    """What a TQ cache would do with the keys of a model."""

    model: str
    description: str
    reason: str | None
    """Why no key is centred; then all that follows is empty."""
    on: bool
    """Whether the switch is: see `llama_tq.centring`."""
    heads: int
    """KV heads, over all layers."""
    centred: int
    """KV heads that are centred, over all layers."""
    gain_db: float
    """Mean of the layers' gains."""
    layers: tuple[Layer, ...]
    first_is_plain: bool
    """The key at position 0 is stored as it is."""
    plain_tokens: tuple[Token, ...]
    """Their keys are, too."""
    source: str
    """Where the means came from: "the model file", "measured" just now, or the path of a side file."""
    side_file: str
    """Where measured means are kept; empty where no folder is known."""
    copy: str | None
    """The file that was written."""


def centre(
    model: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    force: bool = False,
    n_gpu_layers: int = 0,
) -> Centring:
    """Look up or measure the mean keys of `model`; with `out`, write a copy of the GGUF file that has them.

    llama.cpp then finds them in the copy, and needs no side file. The copy has every key and tensor of the
    original, byte for byte; it replaces a file at `out` with `force` only, and is complete or not there.
    Means are measured with `n_gpu_layers` on the GPU; -1 for all.

    Raises InputError for a model whose keys cannot be centred, and when `out` cannot be written.
    """
    with Model(model, weights=False, n_gpu_layers=n_gpu_layers) as metadata:
        reason = reason_against(metadata)
        if reason:
            raise InputError(f"The keys of {metadata.name} cannot be centred: {reason}.")
        if out is not None:
            centred_copy.check(metadata.path, Path(out), force)
    with Model(model, n_gpu_layers=n_gpu_layers) as opened:
        found = means(opened)
        if out is not None:
            if not found.centred:
                raise InputError(f"No head of {opened.name} gains from centring: there is nothing to write.")
            centred_copy.write(opened.path, Path(out), found)
        return _describe(opened, found, out)


def examine(model: str | os.PathLike[str], n_gpu_layers: int) -> Centring:
    """As `centre` without a copy, but the reason against centring is part of the result."""
    with Model(model, weights=False, n_gpu_layers=n_gpu_layers) as metadata:
        reason = reason_against(metadata)
        if reason:
            return Centring(
                *(metadata.name, metadata.description, reason, is_on()),
                *(0, 0, 0.0, (), False, (), "", "", None),
            )
    with Model(model, n_gpu_layers=n_gpu_layers) as opened:
        return _describe(opened, means(opened), None)


def reason_against(metadata: Model) -> str | None:
    """Why TQ caches do not centre the keys of this model, or do not take it at all; needs no weights."""
    try:
        memory_of(metadata, _ANY_TQ, STEP)
    except InputError as error:
        return str(error).partition(f"{metadata.name}: ")[2] or str(error)
    return not_centred(metadata)


def _describe(model: Model, found: Means, copy: str | os.PathLike[str] | None) -> Centring:
    nothing = None if found.heads else "no layer has an ordinary K cache"
    if found.heads and not found.centred:
        nothing = "no head gains from it"
    return Centring(
        model.name,
        model.description,
        nothing,
        is_on(),
        found.heads,
        found.centred,
        found.gain_db,
        tuple(Layer(layer.heads, layer.centred, layer.gain_db) for layer in found.layers),
        found.first_is_plain,
        tuple(Token(token, model.text_of(token)) for token in found.plain_tokens),
        found.source,
        found.side_file,
        os.fspath(copy) if copy is not None else None,
    )
