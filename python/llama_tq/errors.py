"""The one exception that llama_tq raises for bad input."""

from __future__ import annotations


class InputError(ValueError):
    """What the caller asked for cannot be done. The message is one line: what is wrong, how to mend it."""
