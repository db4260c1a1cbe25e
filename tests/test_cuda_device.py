"""The GPU kernels on a GPU: `pytest -m cuda`."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

import cuda_checks
import drivers
import kernel_checks
from llama_tq import reference

pytestmark = pytest.mark.cuda


def build(folder: Path, variable: str, *options: str) -> list[str]:
    """The kernels without ggml. The variable names a program built before, and what to run it with."""
    if variable in os.environ:
        return os.environ[variable].split()
    nvcc = shutil.which("nvcc")
    assert nvcc, "nvcc is not on the PATH"
    program = folder / "cuda_driver"
    sources = [drivers.TESTS / "cuda_driver.cu", *sorted((drivers.CSRC / "cuda").glob("*.cu"))]
    options = ("-std=c++17", "-O3", "-use_fast_math", f"-I{drivers.CSRC}", *options)
    gpu = subprocess.run(
        ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"], stdout=subprocess.PIPE
    )
    is_hopper = gpu.stdout.split()[:1] == [b"9.0"]
    for_it = ["-gencode=arch=compute_90a,code=sm_90a", "-DTQ_CUDA_HOPPER"] if is_hopper else ["-arch=native"]
    subprocess.run([nvcc, *options, *for_it, *sources, "-o", program], check=True)
    return [str(program)]


@pytest.fixture(scope="session")
def driver(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return build(tmp_path_factory.mktemp("cuda"), "TQ_CUDA_DRIVER")


def convert(driver: list[str], operation: str, type: str, data: np.ndarray) -> bytes:
    command = [*driver, operation, type]
    return subprocess.run(command, input=data.tobytes(), stdout=subprocess.PIPE, check=True).stdout


@pytest.mark.parametrize("type", reference.TYPES)
def test_the_encoder_writes_the_bytes_of_the_reference(driver: list[str], type: str):
    x = kernel_checks.values(reference.TYPES[type])
    assert convert(driver, "encode", type, x) == reference.quantize(x, type).tobytes()


@pytest.mark.parametrize("type", reference.TYPES)
def test_the_decoder_returns_the_floats_of_the_reference(driver: list[str], type: str):
    blocks = kernel_checks.blocks(reference.TYPES[type])
    assert convert(driver, "decode", type, blocks) == reference.dequantize(blocks, type).tobytes()


@pytest.mark.parametrize("case", cuda_checks.CASES, ids=str)
def test_attention_is_within_the_bound(driver: list[str], case: cuda_checks.Case):
    problem = cuda_checks.attention_checks.make(case)
    answer, bound = cuda_checks.solve(problem)
    for heads_first in (True, False):
        result = cuda_checks.run(driver, problem, heads_first=heads_first)
        cuda_checks.attention_checks.assert_within(result, answer, bound)


@pytest.mark.parametrize("gpu", [(), cuda_checks.OLDER], ids=["this", "older"])
@pytest.mark.parametrize("case", cuda_checks.WIDE, ids=str)
def test_attention_of_many_columns(driver: list[str], case: cuda_checks.Case, gpu: tuple[str, ...]):
    problem = cuda_checks.attention_checks.make(case)
    result = cuda_checks.run([*gpu, *driver], problem)
    cuda_checks.attention_checks.assert_within(result, *cuda_checks.solve(problem))


@pytest.mark.parametrize(("case", "rotation"), cuda_checks.ROTATED, ids=str)
def test_attention_that_rotates(driver: list[str], case: cuda_checks.Case, rotation: tuple[int, int]):
    problem = cuda_checks.attention_checks.make(case)
    answer, bound = cuda_checks.solve(problem, rotation=rotation)
    result = cuda_checks.run(driver, problem, rotation=rotation)
    cuda_checks.attention_checks.assert_within(result, answer, bound)


@pytest.mark.parametrize("problem", [*cuda_checks.ADDED, *cuda_checks.TURNED], ids=lambda p: str(p[0]))
def test_attention_that_stores(driver: list[str], problem: tuple):
    cuda_checks.check_added(driver, *problem)
