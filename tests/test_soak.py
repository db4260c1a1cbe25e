"""scripts/soak.py, for less than a minute."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "soak.py"


def test_mixed_requests_change_no_answer():
    command = [sys.executable, SCRIPT, "--minutes", "2", "--minute", "5", "--rate", "20"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("minute")]
    assert len(lines) == 2 and all(line.endswith("replayed answers the same") for line in lines)
