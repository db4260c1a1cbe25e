#!/usr/bin/env python3
"""Run a model of every architecture of llama.cpp with the TQ types, and compare with f16 and q4_0.

The models are those of llama.cpp's own test-llama-archs: small, with random weights, here in Q4_0, which
ggml reorders for most processors; in float32 where llama.cpp fails with Q4_0 and a f16 cache. Each has a
process of its own, in which a cache is filled, copied, shared by sequences, saved, restored, shifted and
used again. Architectures are refused by name, or decode with the error of q4_0 or less; the exit status is
1 where one does neither.
"""

from __future__ import annotations

import collections
import contextlib
import ctypes
import functools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import click
import llama_cpp.llama_cpp as api
import numpy as np
import rich
import rich.box
import rich.table

ROOT = Path(__file__).resolve().parents[1]
sys.path += [str(ROOT / "python"), str(ROOT / "tests")]
import drivers  # noqa: E402
from llama_session import Session  # noqa: E402

PAIRS = ("q4_0/q4_0", "tq4_0/tq4_0", "tq3_0/tq3_0", "tq4_0/tq2_1")
RIVAL, OURS = PAIRS[:2]
FACTOR, SLACK = 1.5, 5e-4  # by which our error may exceed the rival's
OPTIONS = {"cells": 512, "flash_attention": api.LLAMA_FLASH_ATTN_TYPE_AUTO}
VOCABULARY = 128  # of all these models
SECONDS = 300


def generate(folder: Path) -> None:
    """Write the models, by a program of llama.cpp's that this compiles."""
    include, *others = drivers.headers()
    llama_cpp, libraries = include.parent, drivers.libraries()
    folders = [include, *others, *(llama_cpp / name for name in ("src", "common", "vendor"))]
    link = [f"-L{libraries}", f"-Wl,-rpath,{libraries}", "-lllama-common", "-lllama", "-lggml", "-lggml-base"]
    source, program = llama_cpp / "tests" / "test-llama-archs.cpp", folder / "test-llama-archs"
    includes = [f"-I{path}" for path in folders]
    subprocess.run(["c++", "-std=c++17", *includes, source, *link, "-o", program], check=True)
    subprocess.run([program, "-o", folder], check=True, capture_output=True)


def state(session: Session, sequence: int) -> bytes:
    """Of one sequence."""
    room = (ctypes.c_uint8 * api.llama_state_seq_get_size(session.context, sequence))()
    return bytes(room[: api.llama_state_seq_get_data(session.context, room, len(room), sequence)])


def restore(session: Session, saved: bytes, sequence: int) -> bool:
    """Whether it was."""
    room = (ctypes.c_uint8 * len(saved)).from_buffer_copy(saved)
    return bool(api.llama_state_seq_set_data(session.context, room, len(saved), sequence))


def scenario(path: Path, pair: str, unified: bool) -> dict[str, np.ndarray]:
    """The logits of each step that the model's memory can do. A context that is refused raises ValueError."""
    make = functools.partial(Session, path, *pair.split("/"), sequences=3, unified=unified, **OPTIONS)
    tokens = np.random.default_rng(1).integers(0, VOCABULARY, 105)
    with make() as session, make() as other:
        memory = session.memory
        found = {"fill": np.concatenate([session.decode(tokens[:60]), session.decode(tokens[60:80], 60)])}
        api.llama_memory_seq_cp(memory, 0, 1, -1, -1)
        found["copy"] = session.decode(tokens[80:88], 80, 1)
        mixed = [(tokens[90], 80, 0), (tokens[91], 88, 1), (tokens[92], 0, 2), (tokens[93], 1, 2)]
        found["sequences"] = session.decode_batch(mixed)
        if restore(other, state(session, 0), 2):
            found["state"] = other.decode(tokens[95:100], 81, 2)
        if api.llama_memory_can_shift(memory) and api.llama_memory_seq_rm(memory, 0, 10, 30):
            api.llama_memory_seq_add(memory, 0, 30, -1, -20)
            found["shift"] = session.decode(tokens[100:], api.llama_memory_seq_pos_max(memory, 0) + 1)
        api.llama_memory_clear(memory, True)
        found["again"] = session.decode(tokens[:20])
        return found


def quantise(path: Path) -> Path:
    """The model in Q4_0, or as it is where llama.cpp cannot do that."""
    quantised, params = path.with_suffix(".q4_0"), api.llama_model_quantize_default_params()
    params.ftype = api.LLAMA_FTYPE_MOSTLY_Q4_0
    with contextlib.suppress(RuntimeError):
        if api.llama_model_quantize(os.fsencode(path), os.fsencode(quantised), params) == 0:
            return quantised
    return path


def examine(path: Path, pairs: tuple[str, ...]) -> dict[str, object]:
    """Of one model the largest squared error of all steps for each pair, relative to f16; or the refusal."""
    errors, refusals = collections.defaultdict(float), {}
    for unified in (True, False):
        steps = {}
        try:
            reference = scenario(path, "f16/f16", unified)
        except ValueError:  # llama.cpp cannot do that
            continue
        for pair in pairs:
            try:
                found = scenario(path, pair, unified)
            except ValueError as reason:
                refusals[pair] = str(reason)
                continue
            steps[pair] = sorted(found)
            for step in steps[pair]:
                error = np.square(found[step] - reference[step]).sum() / np.square(reference[step]).sum()
                errors[pair] = max(errors[pair], float(error)) if np.isfinite(error) else float("inf")
        assert steps.get(OURS) in (None, steps.get(RIVAL)), steps
    return {"errors": errors, "refusals": refusals}


def examine_apart(path: Path, pairs: tuple[str, ...] = PAIRS) -> dict[str, object]:
    """The same, in a process that may crash."""
    environment = os.environ | {"LLAMA_CACHE": str(path.with_suffix(".means")), "GOMP_SPINCOUNT": "2000"}
    command = [sys.executable, __file__, "--model", str(path), *pairs]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, env=environment)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [""])[-1]
        return {"failed": f"exit status {done.returncode}: {last}"}
    return json.loads(done.stdout)


def examine_either(path: Path) -> dict[str, object]:
    """In Q4_0, or in float32 where that is too much for llama.cpp."""
    quantised = quantise(path)
    found = examine_apart(quantised)
    if "failed" in found and "failed" in examine_apart(quantised, ()):
        found = examine_apart(path)
    return found


def verdict(found: dict[str, object]) -> str:
    """How a model is listed."""
    if "failed" in found:
        return "failed"
    if OURS in found["refusals"]:
        return "refused"
    errors = found["errors"]
    rival = errors.get(RIVAL, 0.0)
    return "works" if errors[OURS] <= FACTOR * rival + SLACK else "failed"


@click.command()
@click.option(
    "--model", type=click.Path(path_type=Path, exists=True), help="This file, here, with the pairs NAMES."
)
@click.argument("names", nargs=-1)
def main(model: Path | None, names: tuple[str, ...]) -> None:
    """Examine the architectures whose NAMES are given, or all."""
    if model:
        print(json.dumps(examine(model, names)))
        return
    table = rich.table.Table("model", "", *PAIRS, box=rich.box.SIMPLE_HEAD)
    listed, reasons = collections.Counter(), collections.defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        for path in sorted(Path(folder).glob("*.gguf")):
            if names and not any(path.stem.startswith(name) for name in names):
                continue
            found = examine_either(path)
            word = verdict(found)
            listed[word] += 1
            errors = found.get("errors", {})
            table.add_row(path.stem, word, *(f"{errors[p]:.5f}" if p in errors else "" for p in PAIRS))
            if word == "refused":
                reasons[found["refusals"][OURS]].append(path.stem)
            click.echo(f"{path.stem}: {word} {found.get('failed', '')}", err=True)
    rich.print(table)
    for reason, models in reasons.items():
        click.echo(f"{reason}: {', '.join(models)}")
    click.echo(", ".join(f"{count} {word}" for word, count in listed.items()))
    if listed["failed"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
