"""C programs of the tests: compiled for this machine or for AArch64, and the commands that run them."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from pathlib import Path

TESTS = Path(__file__).resolve().parent
CSRC = TESTS.parent / "csrc"
OPTIONS = ["-std=c11", "-D_DEFAULT_SOURCE", "-O1", "-Wall", "-Wextra", "-Werror", f"-I{CSRC}"]
TOOLS = {
    "aarch64-linux-gnu-gcc": "apt install gcc-aarch64-linux-gnu libc6-dev-arm64-cross",
    "qemu-aarch64": "apt install qemu-user",
    "cmake": "pip install cmake",
    "ninja": "pip install ninja",
}


def libraries() -> Path:
    """Where the installed llama.cpp is."""
    return Path(importlib.util.find_spec("llama_cpp").origin).parent / "lib"


def build(source: str, directory: Path) -> list[str]:
    """The program over the installed library."""
    compiler = shutil.which("cc")
    assert compiler, "no C compiler; apt install gcc"
    program = directory / Path(source).stem
    library = [f"-L{libraries()}", f"-Wl,-rpath,{libraries()}", "-lggml-base"]
    subprocess.run([compiler, *OPTIONS, TESTS / source, *library, "-o", program], check=True)
    return [str(program)]


def build_aarch64(source: str, directory: Path) -> Path:
    """The program over csrc, for `emulate`."""
    missing = [f"{tool} ({install})" for tool, install in TOOLS.items() if not shutil.which(tool)]
    assert not missing, f"missing: {', '.join(missing)}"
    toolchain = {
        "CMAKE_BUILD_TYPE": "Release",
        "CMAKE_SYSTEM_NAME": "Linux",
        "CMAKE_SYSTEM_PROCESSOR": "aarch64",
        "CMAKE_C_COMPILER": "aarch64-linux-gnu-gcc",
    }
    options = [f"-D{name}={value}" for name, value in toolchain.items()]
    subprocess.run(["cmake", "-G", "Ninja", "-S", CSRC, "-B", directory, *options], check=True)
    subprocess.run(["cmake", "--build", directory], check=True)
    program = directory / Path(source).stem
    library = ["-static", directory / "libtq.a", "-lm"]
    subprocess.run(["aarch64-linux-gnu-gcc", *OPTIONS, TESTS / source, *library, "-o", program], check=True)
    return program


def emulate(program: Path, cpu: str) -> list[str]:
    """The command that runs an AArch64 program on a CPU, "max" or a name that qemu-aarch64 knows."""
    return ["qemu-aarch64", "-cpu", cpu, str(program)]
