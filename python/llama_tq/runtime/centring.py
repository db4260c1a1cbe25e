"""The switch of key centring: on unless LLAMA_TQ_CENTRE=off, or what a `with` block says."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import llama_cpp  # noqa: F401  loads the libraries that _native needs

from .. import _native

_AS_THE_VARIABLE_SAYS = -1
_forced = _AS_THE_VARIABLE_SAYS


def is_on() -> bool:
    """Whether contexts made now centre the keys of TQ caches."""
    return _native.centring_on()


@contextlib.contextmanager
def centring(on: bool) -> Iterator[None]:
    """Inside a ``with`` block, contexts are made with key centring on or off, in the whole process.

    Centring takes out of the stored keys what all keys of a head have in common, and gives it back to the
    scores; see the README. Off, a TQ cache holds keys as they are: to see what centring is worth, or to read
    states that were saved that way. Counts when a context is made (``llama_cpp.Llama(...)``, a
    :func:`llama_tq.evaluate`, ...), not while it is used, and comes before the variable ``LLAMA_TQ_CENTRE``.
    Afterwards, also after a nested block, everything is as before. Types other than ours are never centred.

    :param on: whether to centre
    """
    global _forced
    before, _forced = _forced, int(bool(on))
    _native.set_centring(_forced)
    try:
        yield
    finally:
        _forced = before
        _native.set_centring(before)
