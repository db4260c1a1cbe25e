"""Results for people (rich tables) and for programs (JSON)."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ..commands.bench import Bench, Speed
from ..commands.benchmark import TypeBenchmark
from ..commands.centre import Centring
from ..commands.compare import Comparison
from ..commands.demo import Demo
from ..commands.evaluate import Estimate, Evaluation, PairQuality
from ..commands.generate import Generation
from ..commands.info import Info, InfoWithModel
from ..commands.plan import PairPlan, Plan
from ..runtime.means import MEASURED
from ..runtime.memory import format_bytes
from ..runtime.pairs import UNCENTRED, YARDSTICKS, Pair
from .look import facts, table

_FLOOR_NOTE = (
    "The floor of this model is {}: that far from f16 is\n"
    "even the f32 cache, which loses nothing. A pair near it is as good as f16.\n"
)


def to_json(result: Any) -> str:
    """Any result of this package: dataclasses become objects, pairs become `k/v`, NaN becomes null."""
    return json.dumps(_plain(result), indent=2, allow_nan=False, ensure_ascii=False)


def _plain(value: Any) -> Any:
    if isinstance(value, Pair):
        return str(value)
    if dataclasses.is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    return None if value != value else value


def info(result: Info) -> RenderableType:
    types = table("Types", "type", "id", "bits per value")
    for t in result.types:
        types.add_row(t.name, str(t.id), f"{t.bits_per_value:.1f}")
    tiers = table("Instruction sets", "name", "on this machine", "used")
    for tier in result.tiers:
        tiers.add_row(tier.name, _yes(tier.supported), _yes(tier.active))
    backends = table("Backends", "name", "device", "cache types")
    for backend in result.backends:
        backends.add_row(backend.name, backend.description, " ".join(backend.types))
    head = (
        f"llama-cpp-python {result.version}, llama.cpp {result.llama_cpp_commit}, ggml {result.ggml_version}"
    )
    about = [Text(), centring_summary(result.centring)] if isinstance(result, InfoWithModel) else []
    more = [
        facts(title, ((fact.name, fact.value or "not set") for fact in rows))
        for title, rows in {
            "System": result.system,
            "Packages": result.packages,
            "Environment": result.variables,
        }.items()
    ]
    return Group(head, types, tiers, backends, *more, *about)


def centring(result: Centring) -> RenderableType:
    """Layer by layer."""
    made = table("", "layer", "heads", "centred", "gain dB")
    for number, layer in enumerate(result.layers):
        if layer.heads:
            gain = f"{layer.gain_db:.1f}" if layer.centred else ""
            made.add_row(str(number), str(layer.heads), str(layer.centred), gain)
    if result.layers:
        made.add_section()
        made.add_row("in all", str(result.heads), str(result.centred), f"{result.gain_db:.1f}")
    about = _exempt(result) if result.centred else f"Nothing is centred: {result.reason}."
    return Group(_headline(result), made, Text(about))


def centring_summary(result: Centring) -> RenderableType:
    """In a few lines."""
    head = _headline(result)
    if result.reason:
        return Group(head, Text(f"TQ caches store its keys as they are: {result.reason}."))
    layers = [number for number, layer in enumerate(result.layers) if layer.centred]
    what = (
        f"TQ caches centre the keys of {result.centred} of {result.heads} heads, in layers {_ranges(layers)}"
    )
    return Group(head, Text(f"{what}, for a gain of {result.gain_db:.1f} dB.\n{_exempt(result)}"))


def _headline(result: Centring) -> Text:
    return Text(f"{result.model} ({result.description})", style="bold")


def _exempt(result: Centring) -> str:
    """What stays as it is, and where the means are."""
    first = ["position 0"] if result.first_is_plain else []
    tokens = [repr(token.text) if token.text else f"token {token.id}" for token in result.plain_tokens]
    lines = [f"Stored as they are: {', '.join([*first, *tokens]) or 'no keys'}."]
    if result.source == MEASURED:
        kept = bool(result.side_file) and Path(result.side_file).is_file()
        where = f"kept in {result.side_file}" if kept else "not kept: no cache folder can be written"
        lines.append(f"The means were measured just now, and are {where}.")
    else:
        lines.append(f"The means are in {result.source}.")
    if result.copy:
        lines.append(f"{result.copy} has them inside.")
    if not result.on:
        lines.append("But centring is switched off: LLAMA_TQ_CENTRE=off.")
    return "\n".join(lines)


def _ranges(numbers: list[int]) -> str:
    """`0 to 3, 5`."""
    starts = [n for n in numbers if n - 1 not in numbers]
    ends = [n for n in numbers if n + 1 not in numbers]
    return ", ".join(str(a) if a == b else f"{a} to {b}" for a, b in zip(starts, ends, strict=True))


def benchmark(rows: tuple[TypeBenchmark, ...]) -> Table:
    of_paper = any(r.tier == "numpy" for r in rows)
    made = table(
        "N(0, 1) values. gap: dB short of the rate-distortion limit. in: million values\n"
        "quantised, out: billion values dequantised per second by one thread"
        + ("\nmse b, prod b: TurboQuant_mse and TurboQuant_prod of b bits" if of_paper else ""),
        *("type", "tier", "bits", "NMSE", "SNR", "gap", "cosine", "bias", "corr.", "in", "out"),
    )
    for r in rows:
        made.add_row(
            r.type,
            r.tier,
            f"{r.bits_per_value:.4g}",
            f"{r.nmse:.5f}",
            f"{r.snr_db:.2f}",
            f"{r.limit_db:.1f}",
            f"{r.cosine:.4f}",
            f"{r.inner_product_bias:+.1%}",
            f"{r.inner_product_correlation:.4f}",
            f"{r.quantize_per_second / 1e6:.0f}",
            f"{r.dequantize_per_second / 1e9:.1f}",
        )
    return made


def measured(row: TypeBenchmark) -> str:
    """One row of a benchmark of the types, in a line."""
    return (
        f"{row.type}, {row.tier}: SNR {row.snr_db:.2f} dB, million values per second "
        f"{row.quantize_per_second / 1e6:.0f} in, {row.dequantize_per_second / 1e6:.0f} out"
    )


def plan(result: Plan) -> RenderableType:
    """With a column for every device, if there is one besides the CPU."""
    limited = result.memory_bytes is not None
    names = sorted({device.device for row in result.pairs for device in row.devices})
    names = names if result.n_gpu_layers else []
    made = table(
        f"{result.model} ({result.description})\n{result.n_ctx} of {result.n_ctx_train} tokens, weights "
        f"{format_bytes(result.weights_bytes)}"
        + (f"; the longest context in {format_bytes(result.memory_bytes)}" if limited else ""),
        *("K/V", "bits", "bytes/token", "fixed", "cache", "in all", *names),
        *(["longest"] if limited else []),
    )
    refused = []
    for row in result.pairs:
        if row.refused:
            refused.append(Text(row.refused, style="yellow"))
            continue
        made.add_row(
            str(row.pair),
            f"{row.pair.bits_per_value:.2f}",
            str(row.bytes_per_token),
            format_bytes(row.fixed_bytes),
            format_bytes(row.cache_bytes),
            format_bytes(row.total_bytes),
            *(_of_device(row, name) for name in names),
            *([str(row.longest or "none")] if limited else []),
        )
    return Group(made, *refused)


def first(row: PairQuality) -> str:
    """How a pair does in the first chunk, in a line."""
    return (
        f"first chunk, {row.pair}: perplexity {row.perplexity.value:.2f}, "
        f"mean KLD {row.divergence.mean.value:.5f}, same top {row.same_top.value:.1%}"
    )


def _of_device(row: PairPlan, name: str) -> str:
    return format_bytes(sum(device.total for device in row.devices if device.device == name))


def evaluation(result: Evaluation) -> RenderableType:
    made = table(
        f"{result.model} ({result.description})\n{result.scored_tokens} tokens scored, "
        f"{result.chunks} of {result.possible_chunks} chunks of {result.n_ctx}; "
        f"at most {format_bytes(result.needed_bytes)} of memory",
        *("K/V", "cache", "perplexity", "mean KLD", "same top %", "tok/s"),
    )
    depths = [f"at {answer.depth:.0%}" for answer in result.pairs[0].recall]
    title = "KL divergence of the worst tokens" + (", and keys recalled by depth" if depths else "")
    tails = table(title, "K/V", "99 %", "99.9 %", "max", *depths)
    for name, row in _named(result):
        made.add_row(
            name,
            format_bytes(row.cache_bytes),
            _estimate(row.perplexity, 2),
            _estimate(row.divergence.mean, 5),
            _estimate(row.same_top, 1, 100),
            f"{row.tokens_per_second:.0f}",
        )
        worst = (row.divergence.p99, row.divergence.p999, row.divergence.max)
        tails.add_row(name, *(f"{x:.4f}" for x in worst), *(f"{r.share:.0%}" for r in row.recall))
    notes = [Text(_FLOOR_NOTE.format(_estimate(result.floor.divergence.mean, 5)))] if result.floor else []
    return Group(made, *notes, tails)


def demo(result: Demo) -> RenderableType:
    texts = []
    for made in result.generations:
        if made.pair not in YARDSTICKS:
            texts.append(Text.assemble((f"\n{made.pair}\n", "bold"), (result.prompt, "dim"), made.text))
    measured = result.evaluation
    figures = table(
        f"\n{measured.scored_tokens} held-out tokens, {measured.n_ctx // 2} to {measured.n_ctx} deep",
        *("K/V", "bits", "cache MiB", "mean KLD", "99.9 % KLD", "same top %", "tok/s"),
    )
    for row, made in zip(measured.pairs, result.generations, strict=True):
        figures.add_row(
            str(row.pair),
            f"{row.bits_per_value:.2f}",
            f"{row.cache_bytes / 2**20:.2f}",
            f"{row.divergence.mean.value:.5f}",
            f"{row.divergence.p999:.4f}",
            f"{100 * row.same_top.value:.2f}",
            f"{made.tokens_per_second:.0f}",
        )
    return Group(*texts, figures)


def comparison(result: Comparison) -> RenderableType:
    made = table("", "K/V", "same", "differs at", "text")
    made.columns[-1].justify, made.columns[-1].no_wrap = "left", False
    made.columns[-1].ratio = 1
    made.show_lines = True
    made.add_row(str(result.reference.pair), "", "", result.reference.text)
    for other in result.continuations:
        first = other.first_difference
        pieces = other.generation.pieces
        text = Text("".join(pieces[:first]))
        if first is not None:
            text.append("".join(pieces[first : first + 1]) or "(end)", style="bold reverse")
            text.append("".join(pieces[first + 1 :]), style="dim")
        made.add_row(str(other.generation.pair), f"{other.equal_share:.0%}", _number(first), text)
    return made


def generation(result: Generation) -> str:
    return (
        f"{result.pair}: {result.prompt_tokens} tokens read at {result.prompt_tokens_per_second:.1f}/s, "
        f"{len(result.tokens)} written at {result.tokens_per_second:.1f}/s, "
        f"cache {format_bytes(result.cache_bytes)} for {result.n_ctx} tokens"
    )


def turn(result: Generation) -> str:
    """The status of a conversation after an answer."""
    used = result.prompt_tokens + len(result.tokens)
    return (
        f"{result.pair}: {used} of {result.n_ctx} tokens used, cache {format_bytes(result.cache_bytes)}; "
        f"{result.prompt_tokens - result.reused_tokens} read at {result.prompt_tokens_per_second:.1f}/s, "
        f"{len(result.tokens)} written at {result.tokens_per_second:.1f}/s"
    )


def speed(result: Speed) -> str:
    """One of a benchmark, in a line."""
    return f"{result.pair} at {result.depth}: {result.read:.1f} read/s, {result.write:.1f} written/s"


def bench(result: Bench) -> Table:
    gpu = f", layers on the GPU: {_layers(result.n_gpu_layers)}" if result.n_gpu_layers else ""
    made = table(
        f"{result.model}, threads: {result.threads}{gpu}; tokens/s",
        *("K/V", "depth", "read", "write"),
    )
    for speed in result.speeds:
        made.add_row(str(speed.pair), str(speed.depth), f"{speed.read:.1f}", f"{speed.write:.1f}")
    return made


def _named(result: Evaluation) -> Iterator[tuple[str, PairQuality]]:
    """The rows and what they are called: the floor after f16, an uncentred pair under its twin."""
    before = None
    for row in result.pairs:
        twin = not row.pair.centred and before == Pair(row.pair.k, row.pair.v)
        yield f"  {UNCENTRED}" if twin else str(row.pair), row
        if before is None and result.floor:
            yield "f32, the floor", result.floor
        before = row.pair


def _estimate(estimate: Estimate, digits: int, scale: float = 1) -> str:
    return f"{scale * estimate.value:.{digits}f} ±{scale * estimate.error:.{digits}f}"


def _yes(condition: bool) -> str:
    return "yes" if condition else "no"


def _layers(count: int) -> str:
    return "all" if count < 0 else str(count)


def _number(value: int | None) -> str:
    return "none" if value is None else str(value)
