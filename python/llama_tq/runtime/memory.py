"""Bytes: read, written, and how many of them are free."""

from __future__ import annotations

import os
import re
from pathlib import Path

from ..errors import InputError

_UNITS = {
    "": 1,
    "k": 10**3,
    "m": 10**6,
    "g": 10**9,
    "t": 10**12,
    "ki": 2**10,
    "mi": 2**20,
    "gi": 2**30,
    "ti": 2**40,
}


def parse_bytes(text: str) -> int:
    """`8GiB`, `500 MB`, `1.5g` or a plain number of bytes."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?i?)b?\s*", text.lower())
    if not match or match[2] not in _UNITS:
        raise InputError(f"{text!r} is not an amount of memory. Write it as 8GiB, 500MiB or 16GB.")
    return int(float(match[1]) * _UNITS[match[2]])


def format_bytes(count: float) -> str:
    """With a binary unit and about three digits."""
    units = ("B", "KiB", "MiB", "GiB")
    power = min(max(int(count).bit_length() - 1, 0) // 10, len(units) - 1)
    number = count / 1024**power
    return f"{number:.0f} {units[power]}" if power == 0 or number >= 100 else f"{number:.3g} {units[power]}"


def available() -> int | None:
    """Bytes of main memory that a new allocation can get; None where the system does not say."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, AttributeError):
        return None


def require(needed: int, purpose: str, remedy: str) -> None:
    """InputError if `needed` bytes are more than there are; `remedy` says how to need less."""
    free = available()
    if free is not None and needed > free:
        raise InputError(
            f"{purpose} needs {format_bytes(needed)}, but {format_bytes(free)} are free. {remedy}"
        )
