#!/usr/bin/env python3
"""Time two installations against each other, such as a wheel and a build for this machine.

Their llama-bench run in turns, so that whatever else the machine does falls on both; medians are compared.
"""

from __future__ import annotations

import collections
import json
import statistics
import subprocess
from pathlib import Path

import click
import rich
import rich.box
import rich.progress
import rich.table

MODELS = ("demo", "smollm2")
TYPES = ("f16", "tq4_0")
PROMPT, WRITTEN, DEPTH = 512, 64, 1024


def text_of(python: Path, code: str) -> str:
    return subprocess.check_output([python, "-c", code], text=True).strip()


def measure(bench: Path, model: str, name: str) -> dict[str, float]:
    """Tokens per second of reading and of writing, with DEPTH tokens in a cache of this type."""
    options = {"-m": model, "-p": PROMPT, "-n": WRITTEN, "-d": DEPTH, "-r": 1, "-fa": 1, "-o": "json"}
    options |= {"-ctk": name, "-ctv": name}
    words = (str(word) for option in options.items() for word in option)
    rows = json.loads(subprocess.check_output([bench, *words], stderr=subprocess.DEVNULL))
    return {"write" if row["n_gen"] else "read": row["avg_ts"] for row in rows}


@click.command()
@click.argument("first", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("second", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--rounds", default=9, show_default=True, type=click.IntRange(1))
def main(first: Path, second: Path, rounds: int) -> None:
    """Compare the installations of two Pythons; the ratio is SECOND's speed to FIRST's."""
    find = "import importlib.util as u; print(u.find_spec('llama_cpp').submodule_search_locations[0])"
    benches = [Path(text_of(python, find), "bin", "llama-bench") for python in (first, second)]
    resolve = "from llama_tq.runtime import sources; print(sources.resolve({!r}))"
    models = {name: text_of(first, resolve.format(name)) for name in MODELS}
    speeds = collections.defaultdict(lambda: ([], []))
    for _ in rich.progress.track(range(rounds), console=rich.console.Console(stderr=True)):
        for model, path in models.items():
            for name in TYPES:
                for which, bench in enumerate(benches):
                    for what, speed in measure(bench, path, name).items():
                        speeds[model, name, what][which].append(speed)
    table = rich.table.Table("model", "cache", "", "first", "second", "ratio", box=rich.box.SIMPLE_HEAD)
    for key, samples in speeds.items():
        a, b = map(statistics.median, samples)
        table.add_row(*key, f"{a:.0f}", f"{b:.0f}", f"{b / a:.3f}")
    rich.print(table)


if __name__ == "__main__":
    main()
