"""What the attention of csrc/cuda says it takes: asked of its own function, which needs no GPU."""

from __future__ import annotations

import subprocess

import pytest

import drivers
from llama_tq import reference
from test_cuda import nvcc


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, ...], bool]:
    """By compute capability, number of the types of K and V, and their sizes."""
    folder = tmp_path_factory.mktemp("supports")
    program, library = folder / "supports", folder / "libattention.so"
    options = ["-std=c++17", f"-I{drivers.CSRC}", "-Xcompiler=-fPIC", "-Xlinker=-z,lazy"]
    subprocess.run(
        [nvcc(), *options, "-shared", drivers.CSRC / "cuda/attention.cu", "-o", library], check=True
    )
    options += ["-Xlinker=--allow-shlib-undefined", f"-Xlinker=-rpath={folder}"]  # the kernels are not called
    subprocess.run(
        [nvcc(), *options, drivers.TESTS / "supports_driver.cu", library, "-o", program], check=True
    )
    lines = subprocess.run([program], capture_output=True, text=True, check=True).stdout.splitlines()
    rows = [tuple(map(int, line.split())) for line in lines]
    return {row[:-1]: bool(row[-1]) for row in rows}


def test_old_gpus_are_refused(answers):
    of: dict[int, list[bool]] = {}  # in the same order of types and sizes
    for (capability, *_), yes in answers.items():
        of.setdefault(capability, []).append(yes)
    assert {capability for capability, found in of.items() if not any(found)} == {0, 50, 61, 70, 72}
    assert {capability for capability, found in of.items() if found == of[90]} == {75, 80, 86, 90, 120}


def test_pairs_with_a_tq_type_and_sizes_of_the_readme(answers):
    ours, sizes = range(len(reference.TYPES)), {64, 96, 128, 192, 256}
    for (capability, k, v, *dims), yes in answers.items():
        if capability == 90:
            pair = min(k, v) >= 0 and (k in ours or v in ours)
            assert yes == (pair and sizes.issuperset(dims)), (k, v, dims)
