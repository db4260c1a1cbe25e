"""Plots of results, as image files."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import numpy as np
from matplotlib import pyplot
from matplotlib.ticker import MaxNLocator

from ..commands.bench import Bench
from ..commands.centre import Centring
from ..commands.evaluate import Evaluation, PairQuality
from ..runtime.pairs import REFERENCE, bits_per_value, is_tq


def pareto(result: Evaluation, path: Path) -> Path:
    """Mean KL divergence against bytes of cache per token; the line joins the pairs that no other beats."""
    rows = sorted(_measured(result), key=lambda r: (r.cache_bytes, r.divergence.mean.value))
    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    best, front = float("inf"), []
    for row in rows:
        ours = is_tq(row.pair.k) or is_tq(row.pair.v)
        fill = {} if row.pair.centred else {"markerfacecolor": "none"}
        x, y, error = row.cache_bytes / result.n_ctx, _visible(row), row.divergence.mean.error
        axes.errorbar(x, y, error, fmt="o" if ours else "s", color="C0" if ours else "C7", capsize=2, **fill)
        axes.annotate(str(row.pair), (x, y), (5, 4), textcoords="offset points", fontsize=8)
        if y < best:
            best = y
            front.append((x, y))
    axes.plot(*zip(*front, strict=True), color="C0", alpha=0.3)
    if result.floor and result.floor.divergence.mean.value > 0:
        axes.axhline(
            result.floor.divergence.mean.value, color="C7", linestyle=":", label="floor of the model"
        )
        axes.legend(loc="upper right")
    axes.margins(x=0.12)
    axes.set(
        xlabel="bytes of cache per token",
        ylabel="mean KL divergence from f16, nats",
        yscale="log",
        title=f"{result.model}, {result.n_ctx} tokens",
    )
    axes.grid(alpha=0.3)
    return _save(figure, path)


def heatmap(result: Evaluation, path: Path) -> Path:
    """Mean KL divergence by K type and V type; pairs that were not measured are empty."""
    rows = _measured(result)
    ks = _by_size({row.pair.k_label: row.pair.k for row in rows})
    vs = _by_size({row.pair.v: row.pair.v for row in rows})
    grid = np.full((len(ks), len(vs)), np.nan)
    for row in rows:
        grid[ks.index(row.pair.k_label), vs.index(row.pair.v)] = _visible(row)
    figure, axes = pyplot.subplots(figsize=(1.6 + 0.9 * len(vs), 1.4 + 0.7 * len(ks)), layout="constrained")
    image = axes.imshow(np.log10(grid), cmap="viridis_r")
    middle = np.sqrt(np.nanmin(grid) * np.nanmax(grid))
    for (i, j), value in np.ndenumerate(grid):
        if value == value:
            color = "black" if value < middle else "white"
            axes.text(j, i, f"{value:.2g}", ha="center", va="center", fontsize=9, color=color)
    axes.set(xlabel="V", ylabel="K", title="mean KL divergence, nats")
    axes.set_xticks(range(len(vs)), vs)
    axes.set_yticks(range(len(ks)), ks)
    figure.colorbar(image, label="log10")
    return _save(figure, path)


def speed(result: Bench, path: Path) -> Path:
    """Tokens per second against depth: reading and writing."""
    figure, panels = pyplot.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    for axes, what in zip(panels, ("read", "write"), strict=True):
        for pair in dict.fromkeys(s.pair for s in result.speeds):
            points = [(s.depth, getattr(s, what)) for s in result.speeds if s.pair == pair]
            axes.plot(*zip(*points, strict=True), marker="o", label=str(pair))
        axes.set(xlabel="tokens in the cache", ylabel="tokens per second", title=what, ylim=(0, None))
        axes.grid(alpha=0.3)
    panels[0].legend(fontsize=8)
    figure.suptitle(f"{result.model}, {result.threads} threads")
    return _save(figure, path)


def gain(result: Centring, path: Path) -> Path:
    """What centring takes off the energy of the stored keys, by layer."""
    figure, axes = pyplot.subplots(figsize=(8, 4), layout="constrained")
    axes.bar(range(len(result.layers)), [layer.gain_db for layer in result.layers], color="C0")
    axes.axhline(result.gain_db, color="C7", linestyle=":", label=f"mean, {result.gain_db:.1f} dB")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="layer", ylabel="energy of the stored keys taken off, dB", title=result.model)
    axes.legend()
    axes.grid(alpha=0.3, axis="y")
    return _save(figure, path)


def _by_size(types: dict[str, str]) -> list[str]:
    """Labels by the size of their types, largest first."""
    return sorted(types, key=lambda label: (-bits_per_value(types[label]), label))


def _measured(result: Evaluation) -> list[PairQuality]:
    return [row for row in result.pairs if row.pair != REFERENCE]


def _visible(row: PairQuality) -> float:
    """The mean divergence, or the least that a logarithmic scale can show: a recurrent model has none."""
    return max(row.divergence.mean.value, 1e-7)


def _save(figure: pyplot.Figure, path: Path) -> Path:
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return path
