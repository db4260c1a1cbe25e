"""Every kernel of this machine's tiers in the installed library, against the reference."""

from __future__ import annotations

import platform
import sys
from pathlib import Path

import pytest

import drivers
import llama_tq
from kernel_checks import OPERATIONS, Machine

KERNELS = [kernel for kernel in llama_tq.kernels() if kernel.supported and kernel.code == kernel.isa]

# The flags of /proc/cpuinfo that make a tier; Linux shows those whose state it saves.
CPU_FLAGS = {
    "x86_64": {
        "avx2": {"avx2", "fma", "f16c"},
        "avx512": {
            "avx2",
            "fma",
            "f16c",
            "avx512f",
            "avx512bw",
            "avx512vl",
            "avx512dq",
            "avx512vbmi",
            "avx512_vnni",
        },
    },
    "aarch64": {"neon": {"asimd"}, "neon_dotprod": {"asimddp"}},
}


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    return Machine(drivers.build("kernel_driver.c", tmp_path_factory.mktemp("driver")))


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: f"{k.isa}-{k.operation}-{k.type}")
def test_kernel(kernel: llama_tq.Kernel, machine: Machine):
    machine.check(kernel.isa, kernel.operation, kernel.type)


@pytest.mark.skipif(sys.platform != "linux", reason="this machine has no /proc/cpuinfo")
def test_every_tier_of_this_cpu_is_tested():
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    flags = next(set(line.split()[2:]) for line in lines if line.startswith(("flags", "Features")))
    tiers = {isa for isa, needs in CPU_FLAGS.get(platform.machine(), {}).items() if needs <= flags}
    assert {kernel.isa for kernel in KERNELS} == tiers | {"scalar"}


def test_scalar_has_every_kernel():
    scalar = [(kernel.type, kernel.operation) for kernel in KERNELS if kernel.isa == "scalar"]
    assert sorted(scalar) == sorted((spec.name, op) for spec in llama_tq.types() for op in OPERATIONS)


def test_best_tier_is_active():
    supported = [kernel.isa for kernel in llama_tq.kernels() if kernel.supported]
    assert llama_tq.active_isa() == supported[-1]
