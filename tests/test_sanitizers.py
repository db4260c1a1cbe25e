"""The kernels, attention and the bindings under AddressSanitizer and UndefinedBehaviorSanitizer."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import attention_checks
import drivers
import llama_tq
from attention_checks import CASES, Case
from kernel_checks import Machine
from test_attention import TIERS
from test_kernels import KERNELS

UNSANITIZED = "not import and not eval and not floor"  # slow, and their code is Python and llama.cpp


@pytest.fixture(autouse=True)
def leaks_of_drivers_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASAN_OPTIONS", "detect_leaks=0")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return drivers.build_sanitized(tmp_path_factory.mktemp("sanitized"))


@pytest.fixture(scope="module")
def machine(library: Path) -> Machine:
    return Machine(drivers.link_sanitized(library, "kernel_driver.c"))


@pytest.fixture(scope="module")
def attention(library: Path) -> list[str]:
    return drivers.link_sanitized(library, "attention_driver.c")


@pytest.fixture(scope="module")
def plain_attention(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return drivers.build("attention_driver.c", tmp_path_factory.mktemp("driver"))


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: f"{k.isa}-{k.operation}-{k.type}")
def test_kernel(kernel, machine: Machine):
    machine.check(kernel.isa, kernel.operation, kernel.type)


@pytest.mark.parametrize("case", CASES[::2], ids=str)  # a minute, otherwise
def test_attention(attention: list[str], plain_attention: list[str], case: Case):
    """The bytes of the installed library, which test_attention.py compares with the answer."""
    problem = attention_checks.make(case)
    for isa in TIERS:
        ours, installed = (attention_checks.run(p, problem, isa, 2) for p in (attention, plain_attention))
        assert ours.tobytes() == installed.tobytes(), isa


@pytest.mark.parametrize(("target", "count"), [("blocks", 5000), ("floats", 300), ("attention", 30)])
def test_fuzz_target(library: Path, target: str, count: int):
    """The corpus, and random inputs; scripts/fuzz.py looks for others."""
    program = drivers.link_sanitized(library, f"fuzz/{target}.c", "fuzz/replay.c")
    corpus = sorted((drivers.TESTS / "fuzz" / "corpus" / target).iterdir())
    assert corpus
    done = subprocess.run([*program, str(count), *corpus], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_bindings(library: Path, tmp_path: Path):
    """Tests in a process whose llama_tq is the installed one, but for its sanitized bindings."""
    installed, package = Path(llama_tq.__file__).parent, tmp_path / "llama_tq"
    package.mkdir()
    (tmp_path / "llama_cpp").symlink_to(drivers.libraries().parent)
    for part in installed.iterdir():
        if not part.name.startswith(("_core.", "_native.")):
            (package / part.name).symlink_to(part)
    drivers.link_bindings(library, package)
    names = ("test_bindings.py", "test_api.py", "test_plan.py", "test_centring_tools.py")
    tests = [drivers.TESTS / name for name in names]
    environment = os.environ | drivers.preload_sanitizers() | {"PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", UNSANITIZED, *tests]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
