#!/usr/bin/env python3
"""Time llama-bench over cache types and depths, on a random model that does little but attention."""

from __future__ import annotations

import collections
import dataclasses
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import click
import gguf
import numpy as np
import rich.console
import rich.progress
import rich.table

import llama_tq

BASELINE = "f16"
WIDTH, HEADS, KV_HEADS, HEAD, FEED_FORWARD, VOCABULARY = 2048, 32, 8, 128, 1024, 2048


def write_model(path: Path, layers: int) -> None:
    """A llama of random q8_0 weights, 120 MB with four layers. Its words mean nothing."""
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(1 << 17)
    writer.add_block_count(layers)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_key_length(HEAD)
    writer.add_value_length(HEAD)
    writer.add_rope_dimension_count(HEAD)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("llama")
    kinds = [gguf.TokenType.UNKNOWN, *[gguf.TokenType.CONTROL] * 2, *[gguf.TokenType.BYTE] * 256]
    kinds += [gguf.TokenType.NORMAL] * (VOCABULARY - len(kinds))
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    writer.add_token_list(special + [f"word{i}" for i in range(len(special), VOCABULARY)])
    writer.add_token_scores([0.0] * VOCABULARY)
    writer.add_token_types(kinds)

    def matrix(name: str, rows: int, columns: int) -> None:
        x = rng.standard_normal((rows, columns), dtype=np.float32) / np.sqrt(columns, dtype=np.float32)
        kind = gguf.GGMLQuantizationType.Q8_0
        writer.add_tensor(f"{name}.weight", gguf.quants.quantize(x, kind), raw_dtype=kind)

    def norm(name: str) -> None:
        writer.add_tensor(f"{name}.weight", np.ones(WIDTH, np.float32))

    matrix("token_embd", VOCABULARY, WIDTH)
    norm("output_norm")
    for layer in (f"blk.{i}" for i in range(layers)):
        norm(f"{layer}.attn_norm")
        matrix(f"{layer}.attn_q", HEADS * HEAD, WIDTH)
        matrix(f"{layer}.attn_k", KV_HEADS * HEAD, WIDTH)
        matrix(f"{layer}.attn_v", KV_HEADS * HEAD, WIDTH)
        matrix(f"{layer}.attn_output", WIDTH, HEADS * HEAD)
        norm(f"{layer}.ffn_norm")
        matrix(f"{layer}.ffn_gate", FEED_FORWARD, WIDTH)
        matrix(f"{layer}.ffn_up", FEED_FORWARD, WIDTH)
        matrix(f"{layer}.ffn_down", WIDTH, FEED_FORWARD)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@dataclasses.dataclass(frozen=True)
class Job:
    """What one process of llama-bench times: reading every number of `prompts` tokens, or writing
    `generated`, with every number of `depths` tokens in the cache.
    """

    what: str
    prompts: tuple[int, ...]
    generated: int
    depths: tuple[int, ...]

    def key(self, row: dict) -> int:
        """By which the figures of this job are told apart."""
        return row["n_depth"] if self.generated else row["n_prompt"]

    def alone(self) -> Iterator[Job]:
        """Every figure in a process of its own."""
        for prompt, depth in itertools.product(self.prompts, self.depths):
            yield Job(self.what, (prompt,), self.generated, (depth,))


def timed(
    model: Path, candidate: str, device: str, threads: int, job: Job, repeats: int
) -> Iterator[tuple[int, list[float]]]:
    """Tokens per second by key. `candidate` is a cache type, two of them as k/v, or type@instruction-set."""
    kind, _, isa = candidate.partition("@")
    k, _, v = kind.partition("/")
    options = {"-m": model, "-fa": 1, "-t": threads, "-ctk": k, "-ctv": v or k, "-r": repeats, "-o": "json"}
    options |= {"-ngl": 99 if device == "cuda" else 0}
    options |= {"-p": ",".join(map(str, job.prompts)), "-n": job.generated}
    options |= {"-d": ",".join(map(str, job.depths))}
    command = ["llama-bench", *(str(word) for option in options.items() for word in option)]
    environment = os.environ | ({"LLAMA_TQ_ISA": isa} if isa else {})
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    if result.returncode:
        raise click.ClickException(f"{' '.join(command)}\n{result.stderr.strip()}")
    for row in json.loads(result.stdout):
        yield job.key(row), row["samples_ts"]


def slope(speeds: dict[int, float]) -> float:
    """Microseconds a token takes longer for every 1000 tokens of depth, by least squares."""
    depths, seconds = list(speeds), [1 / speed for speed in speeds.values()]
    return float(np.polyfit(depths, seconds, 1)[0] * 1e9) if len(speeds) > 1 else float("nan")


def show(title: str, candidates: list[str], rows: dict[str, list[str]]) -> None:
    table = rich.table.Table("", title=title)
    for candidate in candidates:
        table.add_column(candidate, justify="right")
    for heading, cells in rows.items():
        table.add_row(heading, *cells)
    rich.print(table)


def with_ratio(speeds: dict[str, dict[int, float]], candidate: str, key: int) -> str:
    speed = speeds[candidate].get(key)
    if speed is None:
        return ""
    base = speeds.get(BASELINE, {}).get(key)
    return f"{speed:.1f}" + (f" ({speed / base:.2f})" if base else "")


def plot(path: Path, decode: dict[str, dict[int, float]]) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for candidate, speeds in decode.items():
        axes.plot(list(speeds), list(speeds.values()), marker="o", label=candidate)
    axes.set(xlabel="tokens in the cache", ylabel="tokens per second", ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend(title="K and V")
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def integers(context: click.Context, parameter: click.Parameter, text: str) -> list[int]:
    try:
        return [int(word) for word in text.split(",") if word]
    except ValueError as error:
        raise click.BadParameter(f"{text!r} is not a list of integers like 0,4096") from error


@click.command(help=__doc__)
@click.option(
    "--types",
    default="f16,q8_0,q4_0,tq4_0,tq3_0",
    show_default=True,
    help="Cache types, k/v where they differ; tq4_0@avx2 restricts the TQ kernels to an instruction set.",
)
@click.option("--device", type=click.Choice(("cpu", "cuda")), default="cpu", show_default=True)
@click.option("--layers", default=4, show_default=True, help="Of the model.")
@click.option(
    "--depths",
    default="0,1024,4096,16384",
    callback=integers,
    show_default=True,
    help="Decode with so many tokens in the cache.",
)
@click.option(
    "--prompts", default="4096", callback=integers, show_default=True, help="Prefill of so many tokens."
)
@click.option(
    "--batches",
    default="",
    callback=integers,
    help="Batches of so many tokens, for example 1,2,4,8,16,32,63.",
)
@click.option(
    "--batch-depth", default=4096, show_default=True, help="Batches with so many tokens in the cache."
)
@click.option(
    "--upstream-depth",
    default=4096,
    show_default=True,
    help="No deeper with ggml's quantized types, whose prefill takes minutes.",
)
@click.option("--generated", default=128, show_default=True, help="Tokens of a decode run.")
@click.option(
    "--rounds", default=3, show_default=True, help="Samples of every figure, of which the median counts."
)
@click.option("--threads", default=2, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
@click.option(
    "--plot", "picture", type=click.Path(path_type=Path), help="Chart of decode speed to this file."
)
def main(
    types: str,
    device: str,
    layers: int,
    depths: list[int],
    prompts: list[int],
    batches: list[int],
    batch_depth: int,
    upstream_depth: int,
    generated: int,
    rounds: int,
    threads: int,
    as_json: bool,
    picture: Path | None,
) -> None:
    candidates = types.split(",")
    fast = (
        {BASELINE, *(spec.name for spec in llama_tq.types())}
        if device == "cpu"
        else {word.partition("/")[0] for word in candidates}
    )
    jobs = [
        Job("prefill", tuple(prompts), 0, (0,)),
        Job("decode", (0,), generated, tuple(depths)),
        Job("batch", tuple(batches), 0, (batch_depth,)),
    ]
    jobs = [job for job in jobs if job.prompts and job.depths]
    if device == "cpu":  # the speed of a machine drifts, so that candidates take turns
        jobs = [single for job in jobs for single in job.alone()]
    runs = [
        (candidate, job)
        for job in jobs
        for candidate in candidates
        if candidate.partition("@")[0].partition("/")[0] in fast
        or max(*job.prompts, *job.depths) <= upstream_depth
    ]
    turns, repeats = (rounds, 1) if device == "cpu" else (1, rounds)
    samples = collections.defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "random.gguf"
        write_model(model, layers)
        progress = rich.progress.Progress(console=rich.console.Console(stderr=True), transient=True)
        with progress:
            for candidate, job in progress.track(runs * turns, description="timing"):
                for key, values in timed(model, candidate, device, threads, job, repeats):
                    samples[job.what, candidate, key] += values

    speeds = {what: {candidate: {} for candidate in candidates} for what in ("decode", "prefill", "batch")}
    for (what, candidate, key), values in samples.items():
        speeds[what][candidate][key] = statistics.median(values)
    slopes = {candidate: slope(speeds["decode"][candidate]) for candidate in candidates}
    if picture:
        plot(picture, speeds["decode"])
    if as_json:
        machine = {"machine": platform.processor() or platform.machine(), "isa": llama_tq.active_isa()}
        json.dump(machine | {"threads": threads, "slopes": slopes, **speeds}, sys.stdout)
        return
    titles = {
        "decode": "decode, tokens per second by depth",
        "prefill": "prefill, tokens per second by length of the prompt",
        "batch": f"batches at depth {batch_depth}, tokens per second by size",
    }
    for what, keys in (("decode", depths), ("prefill", prompts), ("batch", batches)):
        if not keys:
            continue
        rows = {str(key): [with_ratio(speeds[what], c, key) for c in candidates] for key in keys}
        if what == "decode":
            rows["µs per 1000 tokens of depth"] = [f"{slopes[c]:.0f}" for c in candidates]
        show(f"{titles[what]} (ratio to {BASELINE})", candidates, rows)


if __name__ == "__main__":
    main()
