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
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import click
import llama_cpp.llama_cpp as api
import numpy as np
import rich
import rich.box
import rich.table
from llama_cpp._logger import set_verbose
from llama_cpp._tq import cache_type, native_errors

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "python"))

from tq_build import upstream

PAIRS = ("q4_0/q4_0", "tq4_0/tq4_0", "tq3_0/tq3_0", "tq4_0/tq2_1")
RIVAL, OURS = PAIRS[:2]
FACTOR, SLACK = 1.5, 5e-4  # by which our error may exceed the rival's
CELLS, BATCH, TOKENS, SEQUENCES = 512, 64, 128, 3
SECONDS = 300


class Refusal(ValueError):
    """A context was not made; the message says why."""


def generate(folder: Path) -> None:
    """Write the models, by a program of llama.cpp's that this compiles."""
    llama_cpp = upstream.prepare(upstream.read_pin()) / "vendor" / "llama.cpp"
    libraries = Path(importlib.util.find_spec("llama_cpp").origin).parent / "lib"
    program = folder / "test-llama-archs"
    includes = [f"-I{llama_cpp / name}" for name in ("include", "src", "ggml/include", "common", "vendor")]
    link = [f"-L{libraries}", f"-Wl,-rpath,{libraries}", "-lllama-common", "-lllama", "-lggml", "-lggml-base"]
    source = llama_cpp / "tests" / "test-llama-archs.cpp"
    csrc = upstream.ROOT / "csrc"
    own = [f"-I{csrc}", f"-I{csrc / 'hooks'}"]
    subprocess.run(["c++", "-std=c++17", *includes, *own, source, *link, "-o", program], check=True)
    subprocess.run([program, "-o", folder], check=True, capture_output=True)


class Model:
    """One of llama.cpp."""

    def __init__(self, path: Path) -> None:
        params = api.llama_model_default_params()
        params.n_gpu_layers = 0
        self.handle = api.llama_model_load_from_file(os.fsencode(path), params)
        assert self.handle, path
        self.vocabulary = api.llama_vocab_n_tokens(api.llama_model_get_vocab(self.handle))

    @contextlib.contextmanager
    def context(self, pair: str, unified: bool) -> Iterator[Context]:
        """For SEQUENCES. Raises Refusal where llama.cpp or we refuse."""
        k, v = pair.split("/")
        params = api.llama_context_default_params()
        params.type_k, params.type_v = cache_type(k, "type_k"), cache_type(v, "type_v")
        params.n_ctx, params.n_batch, params.n_ubatch = CELLS, BATCH, BATCH
        params.n_seq_max, params.kv_unified = SEQUENCES, unified
        with native_errors() as errors:
            handle = api.llama_init_from_model(self.handle, params)
        if not handle:
            raise Refusal("; ".join(errors))
        try:
            yield Context(self, handle)
        finally:
            api.llama_free(handle)


class Context:
    """What the scenario does with one."""

    def __init__(self, model: Model, handle: int) -> None:
        self.model, self.handle, self.memory = model, handle, api.llama_get_memory(handle)
        self.tokens = np.random.default_rng(1).integers(0, min(model.vocabulary, TOKENS), TOKENS)
        if api.llama_model_has_encoder(model.handle):
            with self._batch([(token, i, 0) for i, token in enumerate(self.tokens[:BATCH])]) as batch:
                assert api.llama_encode(handle, batch) == 0

    def decode(self, entries: list[tuple[int, int, int]]) -> np.ndarray:
        """Logits (n, vocabulary) of (token, position, sequence) entries."""
        with self._batch(entries) as batch:
            status = api.llama_decode(self.handle, batch)
        if status:
            raise RuntimeError(f"llama_decode returned {status}")
        shape = (self.model.vocabulary,)
        rows = (api.llama_get_logits_ith(self.handle, i) for i in range(len(entries)))
        return np.array([np.ctypeslib.as_array(row, shape).copy() for row in rows])

    def read(self, first: int, end: int, position: int, sequence: int) -> np.ndarray:
        """The logits of tokens[first:end], from a position on."""
        return self.decode(
            [(token, position + i, sequence) for i, token in enumerate(self.tokens[first:end])]
        )

    def state(self, sequence: int) -> bytes:
        room = (ctypes.c_uint8 * api.llama_state_seq_get_size(self.handle, sequence))()
        return bytes(room[: api.llama_state_seq_get_data(self.handle, room, len(room), sequence)])

    def restore(self, state: bytes, sequence: int) -> bool:
        room = (ctypes.c_uint8 * len(state)).from_buffer_copy(state)
        return bool(api.llama_state_seq_set_data(self.handle, room, len(state), sequence))

    @contextlib.contextmanager
    def _batch(self, entries: list[tuple[int, int, int]]) -> Iterator[api.llama_batch]:
        batch = api.llama_batch_init(len(entries), 0, 1)
        batch.n_tokens = len(entries)
        for i, (token, position, sequence) in enumerate(entries):
            batch.token[i], batch.pos[i], batch.logits[i] = int(token), position, 1
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
        try:
            yield batch
        finally:
            api.llama_batch_free(batch)


def scenario(model: Model, pair: str, unified: bool) -> dict[str, np.ndarray]:
    """The logits of each step that the model's memory can do."""
    with model.context(pair, unified) as context:
        tokens, memory = context.tokens, context.memory
        found = {"fill": np.concatenate([context.read(0, 60, 0, 0), context.read(60, 80, 60, 0)])}
        api.llama_memory_seq_cp(memory, 0, 1, -1, -1)
        found["copy"] = context.read(80, 88, 80, 1)
        mixed = [(tokens[90], 80, 0), (tokens[91], 88, 1), (tokens[92], 0, 2), (tokens[93], 1, 2)]
        found["sequences"] = context.decode(mixed)
        state = context.state(0)
        with model.context(pair, unified) as other:
            if other.restore(state, 2):
                found["state"] = other.read(95, 100, 81, 2)
        removed = api.llama_memory_can_shift(memory) and api.llama_memory_seq_rm(memory, 0, 10, 30)
        if removed:
            api.llama_memory_seq_add(memory, 0, 30, -1, -20)
            found["shift"] = context.read(100, 105, api.llama_memory_seq_pos_max(memory, 0) + 1, 0)
        api.llama_memory_clear(memory, True)
        found["again"] = context.read(0, 20, 0, 0)
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
    model, errors, refusals = Model(path), collections.defaultdict(float), {}
    for unified in (True, False):
        steps = {}
        try:
            reference = scenario(model, "f16/f16", unified)
        except Refusal:  # llama.cpp cannot do that
            continue
        for pair in pairs:
            try:
                found = scenario(model, pair, unified)
            except Refusal as reason:
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
    set_verbose(False)
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
