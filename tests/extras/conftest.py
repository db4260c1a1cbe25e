"""Tests of what an optional extra brings: `test_mlx.py` and `test_mlx_*.py` need the extra `mlx`.

Where an extra is not installed its tests are not collected, and the summary says so; on CI they are, and
fail.
"""

from __future__ import annotations

import os
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

try:
    import tomllib
except ImportError:  # Python 3.10
    import tomli as tomllib

PROJECT = tomllib.loads((Path(__file__).resolve().parents[2] / "pyproject.toml").read_text())["project"]
if not Path("/dev/nvidiactl").exists():
    # Kernels in Triton then run in its interpreter. It must know before it is imported.
    os.environ.setdefault("TRITON_INTERPRET", "1")
_left_out: dict[str, list[str]] = {}  # extra to the requirements that are missing


def missing(extra: str) -> list[str]:
    """The requirements of an extra in pyproject.toml that this environment does not meet."""
    found = []
    for requirement in map(Requirement, PROJECT["optional-dependencies"][extra]):
        if requirement.name == PROJECT["name"]:  # other extras of ours
            found += [each for other in sorted(requirement.extras) for each in missing(other)]
        elif requirement.marker is None or requirement.marker.evaluate():
            found += [] if _is_met(requirement) else [f"{requirement.name}{requirement.specifier}"]
    return found


def _is_met(requirement: Requirement) -> bool:
    try:
        return requirement.specifier.contains(metadata.version(requirement.name), prereleases=True)
    except metadata.PackageNotFoundError:
        return False


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    if not (collection_path.name.startswith("test_") and collection_path.suffix == ".py"):
        return None
    extra = collection_path.stem.split("_")[1]
    if extra not in PROJECT["optional-dependencies"]:
        raise pytest.UsageError(f"{collection_path.name} is named after no extra of pyproject.toml")
    lacking = missing(extra)
    if not lacking or os.environ.get("CI") == "true":
        return None
    _left_out[extra] = lacking
    return True


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for extra, lacking in _left_out.items():
        terminalreporter.write_line(
            f"tests/extras/test_{extra}*.py not collected, without {', '.join(lacking)}: "
            f"pip install '.[{extra}]'"
        )
