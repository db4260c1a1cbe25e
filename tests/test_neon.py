"""The AArch64 kernels, cross-compiled and emulated."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

import drivers
from kernel_checks import OPERATIONS, Machine
from llama_tq import reference

KERNELS = [*(("neon", op) for op in OPERATIONS), ("neon_dotprod", "vec_dot"), ("scalar", "quantize")]


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return drivers.build_static(drivers.AARCH64, "kernel_driver.c", tmp_path_factory.mktemp("aarch64"))


def emulate(driver: Path, cpu: str) -> Machine:
    return Machine(drivers.emulate(driver, cpu))


@pytest.mark.parametrize("type", reference.TYPES)
@pytest.mark.parametrize(("isa", "operation"), KERNELS)
def test_kernel(driver: Path, isa: str, operation: str, type: str):
    emulate(driver, "max").check(isa, operation, type)


def test_tiers_follow_the_cpu(driver: Path):
    assert emulate(driver, "max").tiers() == ["scalar", "neon", "neon_dotprod"]
    assert emulate(driver, "cortex-a53").tiers() == ["scalar", "neon"]


@pytest.mark.parametrize("type", reference.TYPES)
def test_kernels_without_dotprod_run_on_an_old_cpu(driver: Path, type: str):
    old = emulate(driver, "cortex-a53")
    for operation in OPERATIONS:
        old.check("neon", operation, type)
    result = subprocess.run([*old.command, "neon_dotprod", "vec_dot", type], capture_output=True, text=True)
    assert result.returncode == 1
    assert "not supported" in result.stderr
