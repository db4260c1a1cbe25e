"""The AArch64 kernels, cross-compiled and emulated."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from kernel_checks import CSRC, DRIVER, DRIVER_OPTIONS, OPERATIONS, Machine
from llama_tq import reference

TOOLS = {
    "aarch64-linux-gnu-gcc": "apt install gcc-aarch64-linux-gnu libc6-dev-arm64-cross",
    "qemu-aarch64": "apt install qemu-user",
    "cmake": "pip install cmake",
    "ninja": "pip install ninja",
}
KERNELS = [*(("neon", op) for op in OPERATIONS), ("neon_dotprod", "vec_dot"), ("scalar", "quantize")]


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    missing = [f"{tool} ({install})" for tool, install in TOOLS.items() if not shutil.which(tool)]
    assert not missing, f"missing: {', '.join(missing)}"
    build = tmp_path_factory.mktemp("aarch64")
    toolchain = {
        "CMAKE_BUILD_TYPE": "Release",
        "CMAKE_SYSTEM_NAME": "Linux",
        "CMAKE_SYSTEM_PROCESSOR": "aarch64",
        "CMAKE_C_COMPILER": "aarch64-linux-gnu-gcc",
    }
    options = [f"-D{name}={value}" for name, value in toolchain.items()]
    subprocess.run(["cmake", "-G", "Ninja", "-S", CSRC, "-B", build, *options], check=True)
    subprocess.run(["cmake", "--build", build], check=True)
    library = ["-static", build / "libtq.a", "-lm"]
    command = ["aarch64-linux-gnu-gcc", *DRIVER_OPTIONS, DRIVER, *library, "-o", build / "driver"]
    subprocess.run(command, check=True)
    return build / "driver"


def emulate(driver: Path, cpu: str) -> Machine:
    return Machine(["qemu-aarch64", "-cpu", cpu, str(driver)])


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
