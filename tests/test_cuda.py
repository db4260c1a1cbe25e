"""What of the GPU code can be proven without a GPU: the header that it shares with the host, byte for byte."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

import drivers
import kernel_checks
from llama_tq import reference


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc")
    assert compiler, "no C compiler; apt install gcc"
    program = tmp_path_factory.mktemp("device") / "device_driver"
    options = [*drivers.OPTIONS, "-ffp-contract=off", "-Wno-unused-function"]
    subprocess.run([compiler, *options, drivers.TESTS / "device_driver.c", "-lm", "-o", program], check=True)
    return program


def run(driver: Path, operation: str, type: str, data: np.ndarray) -> bytes:
    return subprocess.run(
        [driver, operation, type], input=data.tobytes(), stdout=subprocess.PIPE, check=True
    ).stdout


@pytest.mark.parametrize("type", reference.TYPES)
def test_the_shared_header_encodes_as_the_reference(driver: Path, type: str):
    x = kernel_checks.values(reference.TYPES[type])
    assert run(driver, "quantize", type, x) == reference.quantize(x, type).tobytes()


@pytest.mark.parametrize("type", reference.TYPES)
def test_the_shared_header_decodes_as_the_reference(driver: Path, type: str):
    blocks = kernel_checks.blocks(reference.TYPES[type])
    assert run(driver, "dequantize", type, blocks) == reference.dequantize(blocks, type).tobytes()


@pytest.mark.parametrize("type", reference.TYPES)
def test_the_look_ups_of_the_attention_kernels_find_the_levels(driver: Path, type: str):
    spec = reference.TYPES[type]
    blocks = kernel_checks.blocks(spec)
    blocks[:, :2] = np.array([0, 23 << 2]) | blocks[:, :2] & np.array([0, 128])  # both scales are 1
    levels = np.frombuffer(run(driver, "levels", type, blocks), np.int8).reshape(-1, 32)
    assert np.array_equal(levels, reference.dequantize(blocks, type))
