#!/usr/bin/env python3
"""Time every kernel that this machine runs next to ggml's own, from the same installed build."""

from __future__ import annotations

import ctypes
import dataclasses
import importlib.util
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import click
import gguf
import numpy as np
import rich.progress
import rich.table

import llama_tq

RIVALS = ("q4_0", "q8_0", "iq4_nl")
OPERATIONS = {"quantize": "quantise", "dequantize": "dequantise", "vec_dot": "dot with q8_0"}


class Traits(ctypes.Structure):
    """struct ggml_type_traits of ggml.h."""

    _fields_ = (
        ("type_name", ctypes.c_char_p),
        ("blck_size", ctypes.c_int64),
        ("blck_size_interleave", ctypes.c_int64),
        ("type_size", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)),
        ("from_float_ref", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)),
    )


class CpuTraits(ctypes.Structure):
    """struct ggml_type_traits_cpu of ggml-cpu.h."""

    _fields_ = (
        ("from_float", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)),
        (
            "vec_dot",
            ctypes.CFUNCTYPE(None, ctypes.c_int, *[ctypes.c_void_p, ctypes.c_size_t] * 3, ctypes.c_int),
        ),
        ("vec_dot_type", ctypes.c_int),
        ("nrows", ctypes.c_int64),
    )


@dataclasses.dataclass
class Candidate:
    """One function to time."""

    operation: str
    type: str
    isa: str  #: "ggml" for ggml's own
    call: Callable[[int], None] = dataclasses.field(repr=False)  #: with the number of values
    full: list[float] = dataclasses.field(default_factory=list, repr=False)  #: seconds per call, one a round
    empty: list[float] = dataclasses.field(default_factory=list, repr=False)  #: the same with no values

    def measure(self, values: int, calls: int) -> None:
        """Add one round."""
        for n, seconds in ((0, self.empty), (values, self.full)):
            start = time.perf_counter()
            for _ in range(calls):
                self.call(n)
            seconds.append((time.perf_counter() - start) / calls)

    @property
    def seconds(self) -> float:
        """Median time of a call less that of a call with no values, which is Python's."""
        return statistics.median(self.full) - statistics.median(self.empty)


def library(name: str) -> ctypes.CDLL:
    folder = Path(importlib.util.find_spec("llama_cpp").origin).parent / "lib"
    (path,) = [
        path for path in folder.iterdir() if path.stem == name or path.stem == name.removeprefix("lib")
    ]
    return ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)


class Bench:
    """The libraries, and buffers that hold a row of each kind."""

    def __init__(self, values: int) -> None:
        self.values = values
        self.base, self.cpu = library("libggml-base"), library("libggml-cpu")
        self.base.ggml_get_type_traits.restype = ctypes.POINTER(Traits)
        self.cpu.ggml_get_type_traits_cpu.restype = ctypes.POINTER(CpuTraits)
        self.base.tq_vec_dot.restype = ctypes.c_float
        self.cpu.ggml_cpu_init()
        self.x = np.random.default_rng(0).standard_normal(values, dtype=np.float32)
        self.activations = gguf.quants.quantize(self.x[::-1], gguf.GGMLQuantizationType.Q8_0)
        self.floats = np.empty(values, np.float32)
        self.result = np.empty(1, np.float32)
        self.scratch = np.empty(values * 4, np.uint8)

    def tq(self, operation: str, type: str, isa: str) -> Candidate:
        number = [spec.name for spec in llama_tq.types()].index(type)
        b = llama_tq.quantize(self.x, type)
        row, x, y, out, q = (ctypes.c_void_p(a.ctypes.data) for a in self._keep(b))

        def quantize(n: int) -> None:
            self.base.tq_quantize_row(number, x, out, ctypes.c_int64(n))

        def dequantize(n: int) -> None:
            self.base.tq_dequantize_row(number, row, y, ctypes.c_int64(n))

        def vec_dot(n: int) -> None:
            self.base.tq_vec_dot(number, row, q, ctypes.c_int64(n))

        return Candidate(operation, type, isa, locals()[operation])

    def ggml(self, operation: str, type: str) -> Candidate:
        member = gguf.GGMLQuantizationType[type.upper()]
        traits = self.base.ggml_get_type_traits(int(member)).contents
        cpu = self.cpu.ggml_get_type_traits_cpu(int(member)).contents
        b = np.empty(self.values * gguf.GGML_QUANT_SIZES[member][1] // 32, np.uint8)
        cpu.from_float(self.x.ctypes.data, b.ctypes.data, self.values)
        row, x, y, out, q = (a.ctypes.data for a in self._keep(b))
        result = self.result.ctypes.data
        calls = {
            "quantize": lambda n: cpu.from_float(x, out, n),
            "dequantize": lambda n: traits.to_float(row, y, n),
            "vec_dot": lambda n: cpu.vec_dot(n, result, 0, row, 0, q, 0, 1),
        }
        return Candidate(operation, type, "ggml", calls[operation])

    def _keep(self, row: np.ndarray) -> tuple[np.ndarray, ...]:
        self.__dict__.setdefault("rows", []).append(row)  # alive as long as its address is used
        return row, self.x, self.floats, self.scratch, self.activations


def collect(bench: Bench, isas: tuple[str, ...]) -> list[Candidate]:
    kernels = [
        k for k in llama_tq.kernels() if k.supported and k.code == k.isa and (not isas or k.isa in isas)
    ]
    candidates = []
    for operation in OPERATIONS:
        candidates += [bench.ggml(operation, type) for type in RIVALS]
        candidates += [bench.tq(operation, k.type, k.isa) for k in kernels if k.operation == operation]
    return candidates


def show(rows: list[dict], values: int) -> None:
    table = rich.table.Table(
        title=f"{values} values, one core; time relative to ggml's function for the same operation"
    )
    for heading in ("operation", "type", "code"):
        table.add_column(heading)
    for heading in ("Mvalues/s", *(f"/ {rival}" for rival in RIVALS)):
        table.add_column(heading, justify="right")
    for row in rows:
        if row["type"] == RIVALS[0]:
            table.add_section()
        ratios = [f"{row['time_ratio'][rival]:.2f}" for rival in RIVALS]
        table.add_row(
            OPERATIONS[row["operation"]],
            row["type"],
            row["isa"],
            f"{row['values_per_second'] / 1e6:.0f}",
            *ratios,
        )
    rich.print(table)


@click.command(help=__doc__)
@click.option("--isa", multiple=True, help="Only this instruction set; may be given several times.")
@click.option(
    "--values", default=8192, show_default=True, help="Length of a row; this one stays in the L1 cache."
)
@click.option(
    "--rounds", default=31, show_default=True, help="Every kernel once per round; the median counts."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def main(isa: tuple[str, ...], values: int, rounds: int, as_json: bool) -> None:
    supported = list(dict.fromkeys(kernel.isa for kernel in llama_tq.kernels() if kernel.supported))
    if unknown := set(isa) - set(supported):
        raise click.BadParameter(
            f"{', '.join(unknown)}; this machine runs {', '.join(supported)}", param_hint="--isa"
        )
    if values <= 0 or values % 32:
        raise click.BadParameter(f"{values} is not a positive multiple of 32", param_hint="--values")
    bench = Bench(values)
    candidates = collect(bench, isa)
    progress = rich.progress.Progress(console=rich.console.Console(stderr=True), transient=True)
    with progress:
        for _ in progress.track(range(rounds), description="timing"):
            for candidate in candidates:
                with llama_tq.force_isa(candidate.isa if candidate.isa != "ggml" else llama_tq.active_isa()):
                    candidate.measure(values, calls=20 if candidate.operation == "quantize" else 200)

    seconds = {(c.operation, c.type, c.isa): c.seconds for c in candidates}
    rows = [
        {
            "operation": operation,
            "type": type,
            "isa": code,
            "values_per_second": values / time_per_call,
            "time_ratio": {rival: time_per_call / seconds[operation, rival, "ggml"] for rival in RIVALS},
        }
        for (operation, type, code), time_per_call in seconds.items()
    ]
    if as_json:
        json.dump(
            {"machine": platform.processor() or platform.machine(), "values": values, "kernels": rows},
            sys.stdout,
        )
    else:
        show(rows, values)


if __name__ == "__main__":
    main()
