"""A skipped test is a failure on CI: there a tool or a tier that should have been tested was not.

The one exception is hardware that cannot be installed; such a skip starts with `HARDWARE`. Tests marked
`cuda` are not collected where there is no NVIDIA GPU, those marked `metal` where there is no Apple GPU, and
the summary says so.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# tq_build does not ship. At the end of the path, because llama_tq must be the installed one.
sys.path.append(str(Path(__file__).resolve().parents[1] / "python"))

HARDWARE = "this machine has no "
EMULATION = os.environ.get("TQ_METAL_EMULATION")  # see metal_emulation.py
HAS_GPU = {
    "cuda": Path("/dev/nvidiactl").exists(),
    "metal": bool(EMULATION) or (sys.platform == "darwin" and platform.machine() == "arm64"),
}
GPUS = {"cuda": "NVIDIA GPU", "metal": "Apple GPU"}
_left_out = dict.fromkeys(GPUS, 0)


def pytest_configure() -> None:
    if EMULATION:
        from metal_emulation import register

        register(EMULATION)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for marker in (marker for marker, has_gpu in HAS_GPU.items() if not has_gpu):
        kept = [item for item in items if not item.get_closest_marker(marker)]
        _left_out[marker] += len(items) - len(kept)
        items[:] = kept


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for marker, count in _left_out.items():
        if count:
            terminalreporter.write_line(f"{count} tests not collected: {HARDWARE}{GPUS[marker]}")


def _fail_on_ci(report: pytest.TestReport | pytest.CollectReport) -> None:
    if not report.skipped or hasattr(report, "wasxfail") or os.environ.get("CI") != "true":
        return
    reason = report.longrepr[2].removeprefix("Skipped: ")
    if not reason.startswith(HARDWARE):
        report.outcome = "failed"
        report.longrepr = f"skipped on CI: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport():
    report = yield
    _fail_on_ci(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report():
    report = yield
    _fail_on_ci(report)
    return report


@pytest.fixture(
    params=[
        "CPU",
        pytest.param("CUDA0", marks=pytest.mark.cuda),
        pytest.param("MTL0", marks=pytest.mark.metal),
    ]
)
def device(request) -> Iterator[str]:
    """Where the sessions of a test are; `usefixtures` runs it on the CPU, and on a GPU where there is one."""
    from llama_session import on  # not everything needs llama.cpp

    with on(request.param):
        yield request.param


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory):
    """Where mean keys are kept during the tests, those of programs that they start included: not the user's
    own folder, and none that an earlier run has filled.
    """
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLAMA_CACHE", str(folder))
        patch.delenv("LLAMA_TQ_CENTRE", raising=False)
        yield folder
