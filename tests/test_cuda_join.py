"""What of a graph the GPU's kernels do on the way, without a GPU: csrc/hooks/gpu-join.cu over the kernels on
the host, on the graph of a layer's attention, against ggml's CPU backend.
"""

from __future__ import annotations

import itertools
import subprocess
from pathlib import Path

import pytest

import drivers
from test_cuda import host  # noqa: F401  a fixture


@pytest.fixture(scope="module")
def driver(host: Path) -> Path:  # noqa: F811
    program = host / "join_driver"
    upstream, *own = drivers.headers()
    folders = [drivers.TESTS / "host_join", host, upstream, *own, upstream.parent / "ggml/src"]
    options = ["-std=c++20", "-O2", "-fno-strict-aliasing", *(f"-I{folder}" for folder in folders)]
    hooks = [drivers.CSRC / "hooks" / name for name in ("gpu.cu", "gpu-join.cu")]
    kernels = sorted((drivers.CSRC / "cuda").glob("*.cu"))
    objects = [host / f"{kernel.name}.o" for kernel in kernels]
    library = [f"-L{drivers.libraries()}", f"-Wl,-rpath,{drivers.libraries()}"]
    library += ["-lggml-cpu", "-lggml", "-lggml-base"]
    sources = ["-x", "c++", drivers.TESTS / "join_driver.cpp", *hooks, "-x", "none"]
    subprocess.run(["c++", *options, *sources, *objects, *library, "-o", program], check=True)
    return program


def run(driver: Path, streams: int, centred: bool, neox: bool, factors: bool, twist: str) -> tuple[list, int]:
    """Operation and number of the first node, number of the last, and distances of result, K and V, for every
    run of joined nodes; and how many nodes there are.
    """
    command = [driver, str(streams), *(str(int(flag)) for flag in (centred, neox, factors)), twist]
    *lines, nodes = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    return [line.split() for line in lines], int(nodes)


@pytest.mark.parametrize(
    ("streams", "centred", "neox", "factors"),
    list(itertools.product((1, 3), (False, True), (False, True), (False, True))),
)
def test_all_from_rope_to_the_last_rotation_is_joined(driver, streams, centred, neox, factors):
    ((operation, first, last, *distances),), nodes = run(driver, streams, centred, neox, factors, "none")
    assert (operation, int(last)) == ("ROPE", nodes - 2)  # the last is a view
    assert int(first) <= 4  # views and what the centres are
    result, keys, values = map(float, distances)
    assert result < 0.03  # the CPU may round queries to bytes
    assert keys < 0.01  # all cells: one in 96 is new
    assert values == 0


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("twist", ["used", "positions", "scaled"])
def test_what_the_kernels_do_not_do_is_left_to_others(driver, centred, twist):
    """The rotations are joined all the same."""
    ((operation, _, last, result, keys, values),), nodes = run(driver, 1, centred, False, False, twist)
    assert (operation, int(last)) == ("MUL_MAT", nodes - 2)
    assert float(result) < 0.03
    assert float(keys) < 0.01
    assert float(values) == 0
