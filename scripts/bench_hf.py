#!/usr/bin/env python3
"""Compare the packed cache with transformers' own caches: on the demo model how close to full precision, how
large and how fast; on a GPU how fast a random model decodes with a long context, and in how much memory.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import click
import rich.box
import rich.console
import rich.table
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, Cache, DynamicCache, LlamaConfig, QuantizedCache

import llama_tq.hf
from llama_tq import torch as tq

DATA = Path(llama_tq.hf.__file__).parents[1] / "data"
PAIRS = ("tq4_0/tq4_0", "tq3_0/tq3_0", "tq4_0/tq2_1")
WINDOW = 128  # of the newest tokens in full precision: as many as QuantizedCache keeps, at most
WITH_WINDOW = tuple(f"{pair}, window" for pair in PAIRS)
RIVALS = ("quanto/4", "quanto/2", "hqq/4", "hqq/2")  # backend of QuantizedCache, and bits
HEADS, KV_HEADS, HEAD = 32, 8, 128


def make_cache(model: transformers.PreTrainedModel, name: str) -> Cache:
    """`name` is "full", a pair of types (", window"), or a backend and bits; sets the attention for it."""
    if name in RIVALS:
        backend, bits = name.split("/")
        axis = {"axis_key": 1, "axis_value": 1} if backend == "hqq" else {}
        model.set_attn_implementation("sdpa")
        return QuantizedCache(backend=backend, config=model.config, nbits=int(bits), **axis)
    if name == "full":
        model.set_attn_implementation("sdpa")
        return DynamicCache(config=model.config)
    pair, _, window = name.partition(", ")
    k, v = pair.split("/")
    return llama_tq.hf.patch(model, k=k, v=v, window=WINDOW if window else 0)


def held_bytes(thing: object, seen: set | None = None) -> int:
    """Bytes of all tensors that an object holds, each once, also those that tensors are made of."""
    seen = set() if seen is None else seen
    if id(thing) in seen or isinstance(thing, (torch.nn.Module, transformers.PreTrainedConfig)):
        return 0
    seen.add(id(thing))
    if isinstance(thing, torch.Tensor):
        if hasattr(thing, "__tensor_flatten__"):
            return sum(held_bytes(getattr(thing, name), seen) for name in thing.__tensor_flatten__()[0])
        storage = thing.untyped_storage()
        known = ("storage", storage.data_ptr()) in seen
        seen.add(("storage", storage.data_ptr()))
        return 0 if known else storage.nbytes()
    if isinstance(thing, dict):
        return sum(held_bytes(value, seen) for value in thing.values())
    if isinstance(thing, (list, tuple)):
        return sum(held_bytes(value, seen) for value in thing)
    return held_bytes(vars(thing), seen) if hasattr(thing, "__dict__") else 0


def feed(
    model: transformers.PreTrainedModel, cache: Cache, ids: torch.Tensor, **options: object
) -> torch.Tensor:
    """Logits of tokens that go through the model with a cache."""
    return model(ids, past_key_values=cache, **options).logits


# --- quality, on the demo model ---


@torch.inference_mode()
def log_probabilities(
    model: transformers.PreTrainedModel, ids: torch.Tensor, name: str, step: int
) -> tuple[torch.Tensor, int]:
    """Of the tokens in the second half of a chunk: the first half goes in at once, the second `step` at a
    time, so that every cache is read as it is stored. Also the cache's bytes.
    """
    half = ids.shape[1] // 2
    cache = make_cache(model, name)
    feed(model, cache, ids[:, :half])
    parts = [feed(model, cache, ids[:, i : i + step])[0] for i in range(half, ids.shape[1], step)]
    return torch.cat(parts).float().log_softmax(-1), held_bytes(cache)


@torch.inference_mode()
def decode_speed(model: transformers.PreTrainedModel, ids: torch.Tensor, name: str, count: int) -> float:
    """Tokens per second, one at a time, after all of `ids`."""
    cache = make_cache(model, name)
    token = feed(model, cache, ids)[:, -1:].argmax(-1)
    start = time.perf_counter()
    for _ in range(count):
        token = feed(model, cache, token).argmax(-1)
    token.cpu()
    return count / (time.perf_counter() - start)


def quality(names: list[str], context: int, chunks: int, step: int, device: str) -> rich.table.Table:
    model = AutoModelForCausalLM.from_pretrained(DATA, gguf_file="demo.gguf", dtype=torch.float32)
    model = model.eval().to(device)
    tokenizer = AutoTokenizer.from_pretrained(DATA, gguf_file="demo.gguf")
    ids = tokenizer((DATA / "heldout.txt").read_text(), return_tensors="pt").input_ids.to(device)
    table = markdown("cache", "bits per value", "perplexity", "mean KLD", "same top %", "tokens/s")
    values = 2 * model.config.num_hidden_layers * model.config.num_key_value_heads * model.config.head_dim
    base = []
    for name in names:
        losses, divergences, same, size = [], [], [], 0
        for chunk in range(chunks):
            part = ids[:, chunk * context : (chunk + 1) * context]
            logs, size = log_probabilities(model, part, name, step)
            if name == "full":
                base.append(logs)
            next_token = part[0, context // 2 + 1 :, None]
            losses.append(-logs[:-1].gather(1, next_token))
            divergences.append((base[chunk].exp() * (base[chunk] - logs)).sum(-1))
            same.append(base[chunk].argmax(-1) == logs.argmax(-1))
        speed = statistics.median(decode_speed(model, ids[:, : context // 2], name, 64) for _ in range(3))
        table.add_row(
            name,
            f"{8 * size / (context * values):.2f}",
            f"{torch.cat(losses).mean().exp():.3f}",
            f"{torch.cat(divergences).mean():.5f}",
            f"{100 * torch.cat(same).float().mean():.1f}",
            f"{speed:.0f}",
        )
    return table


# --- speed and memory, on a GPU ---


def random_model(layers: int) -> transformers.PreTrainedModel:
    """A llama of random weights that does little but attention, as in bench_attention.py."""
    config = LlamaConfig(
        vocab_size=2048,
        hidden_size=2048,
        intermediate_size=1024,
        num_hidden_layers=layers,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        head_dim=HEAD,
        max_position_embeddings=1 << 17,
    )
    torch.manual_seed(0)
    with torch.device("cuda"):
        return AutoModelForCausalLM.from_config(config, dtype=torch.float16).eval()


@torch.inference_mode()
def long_context(
    model: transformers.PreTrainedModel, name: str, depth: int, batch: int, count: int
) -> tuple[float, float, float]:
    """Tokens per second of a prefill and of decoding after it, and the peak of memory over both, in bytes
    above the weights.
    """
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    weights = torch.cuda.memory_allocated()
    ids = torch.randint(0, 2048, (batch, depth), generator=torch.manual_seed(1)).cuda()
    cache = make_cache(model, name)
    prefill = timed(lambda: [feed(model, cache, part, logits_to_keep=1) for part in ids.split(2048, 1)])
    token = ids[:, -1:]
    for _ in range(8):  # compiles
        token = feed(model, cache, token).argmax(-1)

    def decode() -> None:
        nonlocal token
        for _ in range(count):
            token = feed(model, cache, token).argmax(-1)

    decoding = min(timed(decode) for _ in range(3))
    peak = torch.cuda.max_memory_allocated() - weights
    return batch * depth / prefill, batch * count / decoding, peak


def timed(work: Callable[[], object]) -> float:
    torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - start


@torch.inference_mode()
def attention_time(name: str, depth: int, batch: int) -> float:
    """Microseconds of a layer's attention for one token, replayed from a graph: no time of Python's."""
    q = torch.randn(batch, HEADS, 1, HEAD, device="cuda", dtype=torch.float16)
    sides = [torch.randn(batch, KV_HEADS, depth, HEAD, device="cuda", dtype=torch.float16) for _ in range(2)]
    if name == "full":

        def work() -> object:
            return torch.nn.functional.scaled_dot_product_attention(q, *sides, enable_gqa=True)

    else:
        types = name.split("/")
        packed = [tq.quantize(side, type) for side, type in zip(sides, types, strict=True)]

        def work() -> object:
            return tq.attention(q, *packed, *types)

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        work()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(20):
            work()
    graph.replay()
    return 1e6 * statistics.median(timed(graph.replay) for _ in range(9)) / 20


def speed(names: list[str], depth: int, batches: list[int], layers: int) -> rich.table.Table:
    model = random_model(layers)
    columns = ("prefill, tokens/s", "decode, tokens/s", "peak memory, MiB", "attention of a layer, µs")
    table = markdown("cache", "sequences", *columns)
    for batch in batches:
        for name in names:
            long_context(model, name, 4096, batch, 8)  # compiles
            prefill, decode, peak = long_context(model, name, depth, batch, 64)
            micros = attention_time(name, depth, batch)
            table.add_row(
                name, str(batch), f"{prefill:.0f}", f"{decode:.1f}", f"{peak / 2**20:.0f}", f"{micros:.0f}"
            )
    return table


def markdown(*columns: str) -> rich.table.Table:
    made = rich.table.Table(box=rich.box.MARKDOWN)
    for number, column in enumerate(columns):
        made.add_column(column, justify="right" if number else "left", no_wrap=True)
    return made


@click.command(help=__doc__)
@click.option("--device", type=click.Choice(("cpu", "cuda")), default="cpu", show_default=True)
@click.option("--context", default=2048, show_default=True, help="Tokens of a chunk of the demo's text.")
@click.option("--chunks", default=2, show_default=True)
@click.option("--step", default=64, show_default=True, help="Tokens of the second half at a time.")
@click.option(
    "--rivals/--no-rivals", default=True, show_default=True, help="QuantizedCache with quanto and hqq."
)
@click.option("--depth", default=32768, show_default=True, help="Tokens in the cache, on a GPU.")
@click.option("--layers", default=8, show_default=True, help="Of the random model, on a GPU.")
def main(device: str, context: int, chunks: int, step: int, rivals: bool, depth: int, layers: int) -> None:
    console = rich.console.Console(width=160)
    names = ["full", *PAIRS]
    where = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    console.print(f"{where}; torch {torch.__version__}, transformers {transformers.__version__}")
    console.print(quality([*names, *WITH_WINDOW, *(RIVALS if rivals else ())], context, chunks, step, device))
    if device == "cuda":
        console.print(speed(names, depth, [1, 4], layers))


if __name__ == "__main__":
    main()
