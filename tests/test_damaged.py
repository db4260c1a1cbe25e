"""Damaged states, model files and side files: refused, or taken for what they are, but no process ends."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

import damaged
import drivers

COUNTS = {"state": 2000, "gguf": 300}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return damaged.environment(tmp_path_factory.mktemp("damaged"))


@pytest.mark.parametrize("target", COUNTS)
def test_fuzz_target(target: str, files: dict[str, str], tmp_path: Path):
    """The corpus, and random edits; scripts/fuzz.py looks for others."""
    program = drivers.build_damager(target, tmp_path)
    corpus = sorted((drivers.TESTS / "fuzz" / "corpus" / target).iterdir())
    assert corpus
    command = [program, str(COUNTS[target]), *corpus]
    done = subprocess.run(command, env=os.environ | files, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
