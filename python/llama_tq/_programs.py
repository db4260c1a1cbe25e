"""Entry point of the llama.cpp programs: replaces itself with the program of the same name in the package."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import NoReturn


def main() -> NoReturn:
    """Run the llama.cpp program that this script is named after, with the same arguments."""
    package = Path(importlib.util.find_spec("llama_cpp").origin).parent  # does not import llama_cpp
    name = Path(sys.argv[0]).name.removesuffix(".exe")
    if os.name == "nt":  # no exec, and no rpath
        os.environ["PATH"] = f"{package / 'lib'}{os.pathsep}{os.environ['PATH']}"
        raise SystemExit(subprocess.call([package / "bin" / f"{name}.exe", *sys.argv[1:]]))
    os.execv(package / "bin" / name, [name, *sys.argv[1:]])
