"""What ships with the package: a small language model, and text that it has not seen."""

from __future__ import annotations

from pathlib import Path

_DATA = Path(__file__).parents[1] / "data"
MODEL = _DATA / "demo.gguf"


def held_out_text() -> str:
    """Text that the model was not trained on."""
    return (_DATA / "heldout.txt").read_text(encoding="utf-8")
