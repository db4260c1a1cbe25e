"""The kernels by other compilers and C libraries, and for Windows: run on this machine, or only compiled."""

from __future__ import annotations

import platform
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import attention_checks
import drivers
from attention_checks import CASES, Case
from kernel_checks import Machine
from test_attention import TIERS
from test_kernels import KERNELS


@pytest.fixture(scope="module")
def wine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """The command that runs a Windows program of ours."""
    if platform.machine() != "x86_64":
        pytest.skip("this machine has no x86-64 processor")
    drivers.require("wine")
    prefix = tmp_path_factory.mktemp("wine")
    environment = ["env", f"WINEPREFIX={prefix}"]
    quiet = [*environment, "WINEDEBUG=-all"]
    # Without one that stays, every program starts a server, and Windows' services, of its own.
    subprocess.run([*quiet, "wineserver", "--persistent"], check=True)
    subprocess.run([*quiet, "wineboot", "--init"], check=True)
    yield [*environment, "sh", str(drivers.TESTS / "wine.sh")]
    subprocess.run([*quiet, "wineserver", "--kill"], check=True)
    shutil.rmtree(prefix)  # 700 MB


@pytest.fixture(scope="module", params=(drivers.CLANG, drivers.MUSL, drivers.WINDOWS))
def programs(request, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """The commands that run the drivers."""
    run = request.getfixturevalue("wine") if request.param == drivers.WINDOWS else []
    directory = tmp_path_factory.mktemp(request.param)
    sources = {"kernels": "kernel_driver.c", "attention": "attention_driver.c"}
    return {
        name: [*run, str(drivers.build_static(request.param, source, directory))]
        for name, source in sources.items()
    }


def test_tiers_are_those_of_the_installed_library(programs: dict[str, list[str]]):
    assert Machine(programs["kernels"]).tiers() == TIERS


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: f"{k.isa}-{k.operation}-{k.type}")
def test_kernel(programs: dict[str, list[str]], kernel):
    Machine(programs["kernels"]).check(kernel.isa, kernel.operation, kernel.type)


@pytest.mark.parametrize("case", CASES[::2], ids=str)  # as much again, otherwise
def test_attention_is_within_the_bound(programs: dict[str, list[str]], case: Case):
    problem = attention_checks.make(case)
    for isa in TIERS:
        attention_checks.check(problem, attention_checks.run(programs["attention"], problem, isa, 3), isa)


def configure(directory: Path, **variables: str) -> subprocess.CompletedProcess:
    drivers.require("cmake", "ninja")
    options = [f"-D{name}={value}" for name, value in variables.items()]
    command = ["cmake", "-G", "Ninja", "-S", drivers.CSRC, "-B", directory, *options]
    return subprocess.run(command, capture_output=True, text=True)


# What clang-cl leaves to the libraries that it links: C's, and Microsoft's part of the compiler.
LINKED = {
    "exp2f",
    "expf",
    "getenv",
    "ldexpf",
    "logf",
    "memcpy",
    "memset",
    "powf",
    "rintf",
    "roundf",
    "snprintf",
}
LINKED |= {
    "strcmp",
    "tanhf",
    "__chkstk",
    "__security_check_cookie",
    "__security_cookie",
    "_fltused",
    "_tls_index",
}


def test_clang_cl_compiles_the_kernels(tmp_path: Path):
    """With declarations of our own, since Microsoft's headers are not free: compiled, not linked."""
    drivers.require(drivers.CLANG, drivers.WINDOWS)
    clang_cl = tmp_path / "clang-cl"
    clang_cl.symlink_to(shutil.which(drivers.CLANG))
    unused = {f"CMAKE_{tool}": shutil.which("true") for tool in ("AR", "LINKER", "MT", "RC_COMPILER")}
    result = configure(
        tmp_path / "build",
        CMAKE_BUILD_TYPE="Release",
        CMAKE_COMPILE_WARNING_AS_ERROR="ON",
        CMAKE_SYSTEM_NAME="Windows",
        CMAKE_SYSTEM_PROCESSOR="AMD64",
        CMAKE_C_COMPILER=str(clang_cl),
        CMAKE_C_COMPILER_TARGET="x86_64-pc-windows-msvc",
        CMAKE_C_FLAGS=f"-imsvc {drivers.TESTS / 'msvc_headers'}",
        CMAKE_TRY_COMPILE_TARGET_TYPE="STATIC_LIBRARY",
        **unused,
    )
    assert result.returncode == 0, result.stderr
    subprocess.run(["cmake", "--build", tmp_path / "build"], check=True)
    objects = list((tmp_path / "build").rglob("*.obj"))
    symbols = subprocess.check_output(["x86_64-w64-mingw32-nm", *objects], text=True).splitlines()
    missing = {line.split()[1] for line in symbols if line.lstrip().startswith("U ")}
    defined = {line.split()[2] for line in symbols if len(line.split()) == 3}
    assert "tq_kernels_avx512" in defined
    assert missing - defined <= LINKED


def test_microsofts_compiler_is_refused_by_name(tmp_path: Path):
    compiler = {"CMAKE_C_COMPILER_ID": "MSVC", "CMAKE_C_COMPILER_ID_RUN": "1", "CMAKE_C_COMPILER_FORCED": "1"}
    result = configure(tmp_path, **compiler)
    assert result.returncode != 0
    assert "clang-cl" in result.stderr and "MinGW-w64" in result.stderr


def test_several_architectures_at_once_are_refused_by_name(tmp_path: Path):
    result = configure(tmp_path, CMAKE_OSX_ARCHITECTURES="arm64;x86_64")
    assert result.returncode != 0
    assert '"arm64;x86_64"' in result.stderr and "one architecture" in result.stderr.replace("\n ", "")
