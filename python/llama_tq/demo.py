"""The embedded model and what `llama-tq demo` shows with it."""

from __future__ import annotations

from pathlib import Path

DATA = Path(__file__).parent / "data"
MODEL = DATA / "demo.gguf"
HELD_OUT = DATA / "heldout.txt"
