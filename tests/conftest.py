"""A skipped test is a failure on CI: there a tool or a tier that should have been tested was not.

The one exception is hardware that cannot be installed; such a skip starts with `HARDWARE`. Tests marked
`cuda` are not collected where there is no NVIDIA GPU, and the summary says so.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# tq_build does not ship. At the end of the path, because llama_tq must be the installed one.
sys.path.append(str(Path(__file__).resolve().parents[1] / "python"))

HARDWARE = "this machine has no "
HAS_GPU = Path("/dev/nvidiactl").exists()
_left_out: list[pytest.Item] = []


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not HAS_GPU:
        _left_out.extend(item for item in items if item.get_closest_marker("cuda"))
        items[:] = [item for item in items if not item.get_closest_marker("cuda")]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _left_out:
        terminalreporter.write_line(f"{len(_left_out)} tests not collected: {HARDWARE}NVIDIA GPU")


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


@pytest.fixture(params=["CPU", pytest.param("CUDA0", marks=pytest.mark.cuda)])
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
