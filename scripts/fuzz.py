#!/usr/bin/env python3
"""Search for inputs that break csrc, or llama.cpp through it, with clang's libFuzzer.

The targets are in tests/fuzz, with a corpus that the tests replay. blocks, floats and attention are about
csrc/cpu, which is built here with AddressSanitizer and UndefinedBehaviorSanitizer. state and gguf are about
damaged files; they are linked to the installed llama.cpp, or to one that --libraries names, built by
clang with -fsanitize=address,undefined,fuzzer-no-link. What breaks, and what is new, lies in build/fuzz.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import click

ROOT = Path(__file__).resolve().parents[1]
sys.path += [str(ROOT / "python"), str(ROOT / "tests")]
import damaged  # noqa: E402
import drivers  # noqa: E402

FUZZ, WORK = ROOT / "tests" / "fuzz", ROOT / "build" / "fuzz"
KERNELS, FILES = ("blocks", "floats", "attention"), ("state", "gguf")
SANITIZERS = [
    "-g",
    "-O2",
    "-fno-omit-frame-pointer",
    "-fsanitize=address,undefined",
    "-fno-sanitize-recover=all",
]


def run(*command: object) -> None:
    subprocess.run([str(part) for part in command], check=True)


def kernel_target(name: str) -> Path:
    flags = " ".join([*SANITIZERS, "-fsanitize=fuzzer-no-link"])
    variables = {"CMAKE_BUILD_TYPE": "None", "CMAKE_C_COMPILER": "clang", "CMAKE_C_FLAGS": flags}
    library = drivers.build_library(WORK / "library", variables)
    options = ["-std=c11", f"-I{drivers.CSRC}", *SANITIZERS, "-fsanitize=fuzzer"]
    run("clang", *options, FUZZ / f"{name}.c", library, "-lm", "-o", WORK / name)
    return WORK / name


def file_target(name: str, libraries: Path | None) -> Path:
    where = libraries or drivers.libraries()
    sanitizers = ["-fsanitize=fuzzer", *(["-shared-libasan", *SANITIZERS] if libraries else ["-O2"])]
    options = ["-std=c++17", *(f"-I{folder}" for folder in drivers.headers()), *sanitizers]
    link = [f"-L{where}", f"-Wl,-rpath,{where}", "-lllama", "-lggml", "-lggml-base"]
    run("clang++", *options, FUZZ / f"{name}.cpp", *link, "-o", WORK / name)
    return WORK / name


@click.command()
@click.argument("targets", nargs=-1, type=click.Choice([*KERNELS, *FILES]))
@click.option("--minutes", default=10.0, show_default=True, help="For each target.")
@click.option(
    "--libraries", type=click.Path(path_type=Path, exists=True), help="A sanitized libllama's folder."
)
def main(targets: tuple[str, ...], minutes: float, libraries: Path | None) -> None:
    """Run TARGETS, or all of them, and stop at the first that finds something."""
    WORK.mkdir(parents=True, exist_ok=True)
    for name in targets or (*KERNELS, *FILES):
        program = kernel_target(name) if name in KERNELS else file_target(name, libraries)
        found = WORK / f"{name}.corpus"
        found.mkdir(exist_ok=True)
        options = [
            f"-max_total_time={minutes * 60:.0f}",
            "-max_len=600",
            "-timeout=120",
            "-print_final_stats=1",
        ]
        with tempfile.TemporaryDirectory() as folder:
            environment = os.environ | (damaged.environment(Path(folder)) if name in FILES else {})
            environment |= {"ASAN_OPTIONS": "detect_leaks=0"}  # of llama.cpp's globals
            command = [program, *options, f"-artifact_prefix={WORK}/{name}-", found, FUZZ / "corpus" / name]
            done = subprocess.run(command, env=environment)
        if done.returncode:
            raise SystemExit(f"{name}: see {WORK}")


if __name__ == "__main__":
    main()
