"""The patch series of this checkout."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter

import pytest

from tq_build import series, upstream

SERIES = series.load(upstream.PATCHES)


def test_series_applies_and_exports_to_itself():
    result = subprocess.run(
        [sys.executable, upstream.ROOT / "scripts" / "patches.py", "check"], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr


def test_touched_files_and_lines_are_within_the_budget():
    changed: Counter[str] = Counter()
    for patch in SERIES:
        changed.update(patch.changed_lines())
    budget = upstream.read_pin().budget
    assert changed.keys() == budget.keys()
    assert {path: lines for path, lines in changed.items() if lines > budget[path]} == {}


@pytest.mark.parametrize("patch", SERIES, ids=lambda patch: patch.name)
def test_patch_says_why_it_exists_and_when_it_can_go(patch):
    subject, empty, *body = patch.message.splitlines()
    assert subject and not empty
    assert any(line.startswith("Remove when ") for line in body)
    assert not body[0].startswith("Remove when ")


def test_changed_lines_counts_every_hunk_and_no_header():
    diff = (
        "diff --git a/x b/x\n--- a/x\n+++ b/x\n@@ -1,2 +1,2 @@\n-a\n+b\n c\n@@ -9 +9,2 @@\n d\n+e\n"
        "diff --git a/y b/y\nnew file mode 100644\n--- /dev/null\n+++ b/y\n@@ -0,0 +1 @@\n+f\n"
    )
    assert series.Patch("subject", diff).changed_lines() == {"x": 3, "y": 1}


def test_file_name_and_text_come_from_the_message():
    patch = series.Patch("ggml: Name the TQ types\n\nWhy.", "diff --git a/x b/x\n")
    assert patch.name == "ggml-name-the-tq-types.patch"
    assert series.Patch.parse(patch.text) == patch
