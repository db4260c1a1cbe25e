"""Wheels for every processor: what of building and checking them needs neither an hour nor an emulator."""

from __future__ import annotations

import ctypes
import platform
import runpy
import subprocess
import sysconfig
from pathlib import Path
from types import SimpleNamespace

import pytest

import drivers

SCRIPTS = Path(__file__).parents[1] / "scripts"
MODULES = "-DGGML_BACKEND_DL"


@pytest.fixture(scope="module")
def builds() -> SimpleNamespace:
    return SimpleNamespace(**runpy.run_path(str(SCRIPTS / "build_wheels.py")))


@pytest.fixture(scope="module")
def checks() -> SimpleNamespace:
    return SimpleNamespace(**runpy.run_path(str(SCRIPTS / "check_wheels.py")))


@pytest.mark.parametrize(
    ("options", "beside"), [([MODULES], True), ([MODULES, '-DGGML_BACKEND_DIR="/x"'], False), ([], False)]
)
def test_backends_that_are_modules_are_looked_for_beside_the_library(options, beside, tmp_path, monkeypatch):
    library = tmp_path / f"{tmp_path.name}.so"  # the loader takes a name that it knows for the same library
    source = drivers.CSRC / "hooks" / "backends.cpp"
    subprocess.run(["c++", "-std=c++17", "-shared", "-fPIC", *options, source, "-o", library], check=True)
    monkeypatch.chdir(tmp_path)
    folder = ctypes.CDLL(f"./{library.name}")["_Z22ggml_tq_backend_folderv"]
    folder.restype = ctypes.c_char_p
    assert folder() == (bytes(tmp_path) if beside else None)


def test_only_other_machines_are_cross_compiled(builds):
    (other,) = set(builds.MACHINES) - {platform.machine()}
    here, there = builds.settings(platform.machine()), builds.settings(other)
    assert here.items() <= there.items()
    assert not [name for name in here if "COMPILER" in name]
    assert there["cmake.define.CMAKE_C_COMPILER"] == f"{other}-linux-gnu-gcc"
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    assert there["cmake.define.PYTHON_MODULE_EXTENSION"] == suffix.replace(platform.machine(), other)


def test_backends_by_the_names_of_their_files(checks):
    assert checks.backend_in("/x/lib/libggml-cpu-armv8.2_1.so") == "armv8.2_1"
    assert checks.backend_in("libggml-base.so") == ""


def test_what_a_processor_has_to_be_is_what_is_reported(checks):
    processor = checks.Processor("Haswell", "haswell", "avx2")
    good = {"backend": "haswell", "tier": "avx2", "divergences": {"f16": 0.0, "tq4_0": 0.003}}
    assert checks.problems(processor, good, good) == []
    other = good | {"backend": "x64"}
    assert checks.problems(checks.THIS, other, good) == []
    assert checks.problems(processor, other, good) == ["Haswell: backend x64, not haswell"]
    other = good | {"tier": "scalar"}
    assert checks.problems(processor, other, good) == ["Haswell: tier scalar, not avx2"]
    for name, nats in (("f16", 0.002), ("tq4_0", 0.006), ("tq4_0", float("nan"))):
        other = good | {"divergences": good["divergences"] | {name: nats}}
        (problem,) = checks.problems(processor, other, good)
        assert f"with {name} " in problem
