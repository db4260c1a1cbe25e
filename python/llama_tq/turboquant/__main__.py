"""Prints how TurboQuant does, against its paper and beside the types: ``python -m llama_tq.turboquant``."""

from __future__ import annotations

from rich.console import Console, Group, RenderableType
from rich.table import Table

from ..views.look import table
from .selftest import DIMENSION, PRODUCTS, QUERIES, SEEDS, SPREAD, TOKENS, VECTORS, Measurement, selftest

_NOTE = (
    "QJL helps where an inner product is the result: at 3 bits it is right on average, {prod.bias:+.1%} "
    "±{prod.bias_error:.1%}, and without QJL {mse.bias:+.1%} ±{mse.bias_error:.1%}. It hurts where inner "
    "products go through a softmax, which exponentiates their noise and hardly minds what all lack alike: "
    "there the weights diverge by {prod.attention_kld:.3f} with QJL and {mse.attention_kld:.3f} without, and "
    "by {tq.attention_kld:.3f} with tq3_0, which takes as much room as prod 3. So the cache types do without."
)


def _vectors(rows: tuple[Measurement, ...]) -> Table:
    vectors = SEEDS * VECTORS
    made = table(
        f"{vectors} normal vectors of {DIMENSION}, of different norms, and {PRODUCTS} products of each.\n"
        "mse b, prod b: TurboQuant_mse and TurboQuant_prod of b bits. bits: held per\n"
        "value, norms included. ratio: to 16 bits. bound: the paper's, for mse\n"
        "sqrt(3) pi / 2 / 4^b, for prod 2 pi times that. bias: of the products, mean\n"
        f"of {SEEDS} seeds",
        *("code", "bits", "ratio", "4^-b", "MSE", "bound", "cosine", "corr.", "bias"),
    )
    for row in rows:
        made.add_row(
            row.code.name,
            f"{row.code.bits_per_value:.2f}",
            f"{16 / row.code.bits_per_value:.2f}",
            "" if row.code.lower is None else f"{row.code.lower:.4f}",
            f"{row.mse:.4f}",
            "" if row.code.upper is None else f"{row.code.upper:.4f}",
            f"{row.cosine:.4f}",
            f"{row.correlation:.4f}",
            f"{row.bias:+.1%} ±{row.bias_error:.1%}",
        )
    return made


def _attention(rows: tuple[Measurement, ...]) -> Table:
    made = table(
        f"Attention of {QUERIES} queries over {TOKENS} compressed keys;\n"
        f"scores with a standard deviation of {SPREAD:g}, exact values",
        *("code", "bits", "KLD of the weights", "error of the result"),
    )
    for row in rows:
        made.add_row(
            row.code.name,
            f"{row.code.bits_per_value:.2f}",
            f"{row.attention_kld:.4f}",
            f"{row.attention_error:.1%}",
        )
    return made


def report(rows: tuple[Measurement, ...]) -> RenderableType:
    """Both tables, and what they say."""
    named = {row.code.name: row for row in rows}
    note = _NOTE.format(mse=named["mse 3"], prod=named["prod 3"], tq=named["tq3_0"])
    return Group(_vectors(rows), _attention(rows), note)


if __name__ == "__main__":
    Console().print(report(selftest()), highlight=False)
