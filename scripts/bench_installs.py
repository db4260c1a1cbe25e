#!/usr/bin/env python3
"""Time two installations against each other, such as a build for this machine and a wheel.

Their llama-bench run in turns, each on one thread. Processor time is compared, the median over the rounds,
because it does not count what else the machine does. It includes loading the model.
"""

from __future__ import annotations

import collections
import os
import statistics
import subprocess
from pathlib import Path

import click
import rich
import rich.box
import rich.progress
import rich.table

MODELS = {"demo": 20, "smollm2": 1}  # and how often one process repeats a task
TYPES = ("f16", "tq4_0")
TASKS = {"read": ["-p", "512", "-n", "0"], "write": ["-p", "0", "-n", "128"]}


def printed(python: Path, code: str) -> str:
    """What a line of Python prints there."""
    return subprocess.check_output([python, "-c", code], text=True).strip()


def seconds(bench: Path, model: str, repeats: int, type_: str, task: list[str]) -> float:
    """Processor time of one llama-bench."""
    options = ["-m", model, "-t", "1", "-r", str(repeats), "-fa", "1", "-ctk", type_, "-ctv", type_, *task]
    process = subprocess.Popen([bench, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise click.ClickException(f"{bench} {' '.join(options)} ended with {process.returncode}")
    return usage.ru_utime + usage.ru_stime


@click.command()
@click.argument("first", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("second", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--rounds", default=9, show_default=True, type=click.IntRange(1))
def main(first: Path, second: Path, rounds: int) -> None:
    """Compare the installations of two Pythons; a ratio below 1 means that SECOND is slower."""
    find = "import importlib.util as u; print(u.find_spec('llama_cpp').submodule_search_locations[0])"
    benches = [Path(printed(python, find), "bin", "llama-bench") for python in (first, second)]
    resolve = "from llama_tq.runtime import sources; print(sources.resolve({!r}))"
    models = {name: printed(first, resolve.format(name)) for name in MODELS}
    cases = [(model, type_, task) for model in MODELS for type_ in TYPES for task in TASKS]
    times = collections.defaultdict(lambda: ([], []))
    for _ in rich.progress.track(range(rounds), console=rich.console.Console(stderr=True)):
        for model, type_, task in cases:
            for bench, samples in zip(benches, times[model, type_, task], strict=True):
                samples.append(seconds(bench, models[model], MODELS[model], type_, TASKS[task]))
    table = rich.table.Table("model", "cache", "", "first, s", "second, s", "speed", box=rich.box.SIMPLE_HEAD)
    for case, samples in times.items():
        a, b = map(statistics.median, samples)
        table.add_row(*case, f"{a:.2f}", f"{b:.2f}", f"{a / b:.3f}")
    rich.print(table)


if __name__ == "__main__":
    main()
