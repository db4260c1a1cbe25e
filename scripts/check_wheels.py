#!/usr/bin/env python3
"""Install wheels where there is no compiler, and run them on processors of every kind, most of them
emulated.

Each wheel of scripts/build_wheels.py is installed into a folder of its own: a virtual environment, or,
for another machine than this one, that machine's Python and C library of Debian. On every processor there
(QEMU's, and this machine's) run tests of this checkout, a program of llama.cpp, and
scripts/probe_wheel.py: the CPU backend of ggml and the tier of csrc have to be those written here, and
predictions with every cache type as near to f16 as on the first processor. That one runs all the backends
that it can, one at a time.

`pip install '.[wheels]'` and `apt install qemu-user mmdebstrap` bring what this needs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import click
import rich
import rich.box
import rich.table
from packaging.utils import parse_wheel_filename

ROOT = Path(__file__).resolve().parents[1]
PROBE = Path(__file__).with_name("probe_wheel.py")
HERE = platform.machine()
TESTS = ("tests/test_llama_ops.py", "tests/test_api.py")
DESELECTED = "environment or import or extras"  # they start Python, which an emulated one cannot
MOST_MEGABYTES = 40
FACTOR, SLACK = 1.5, 0.001  # by which divergences from the first processor's f16 may exceed its own; nats


@dataclasses.dataclass(frozen=True)
class Processor:
    """One to run on, and what has to be chosen there; empty where nobody can know."""

    name: str
    backend: str = ""
    tier: str = ""


THIS = Processor("this machine")
PROCESSORS = {
    "x86_64": (
        THIS,
        Processor("Nehalem", "sse42", "scalar"),
        Processor("Haswell", "haswell", "avx2"),
        Processor("Skylake-Server", "haswell", "avx2"),  # QEMU has no AVX-512, and its CPUID says so
    ),
    "aarch64": (
        Processor("max", "armv8.6_2", "neon_dotprod"),
        Processor("cortex-a53", "armv8.0_1", "neon"),
        Processor("neoverse-n1", "armv8.2_2", "neon_dotprod"),
    ),
}
DEBIAN = {"x86_64": "amd64", "aarch64": "arm64"}  # its names for machines
OLDEST_GLIBC, GLIBC = 17, 36  # minor versions that wheels for Debian 12 may ask for
# NumPy's OpenBLAS runs AVX on processors of QEMU that have none; everyone may run its code for the oldest.
OLD_BLAS = {"OPENBLAS_CORETYPE": "Nehalem"}


class Installation:
    """A wheel in a folder of its own, and pytest."""

    def __init__(self, wheel: Path, folder: Path) -> None:
        (tag,) = parse_wheel_filename(wheel.name)[3]
        self.machine = next(machine for machine in PROCESSORS if tag.platform.endswith(machine))
        self.root = folder
        if self.machine == HERE:
            subprocess.run([sys.executable, "-m", "venv", folder], check=True)
            self.python = folder / "bin" / "python3"
            pip("--python", self.python, "install", wheel, "pytest")
            (self.packages,) = folder.glob("lib/python3*/site-packages")
        else:
            options = ["--variant=extract", "--include=python3,libstdc++6", "--quiet"]
            architecture = f"--architectures={DEBIAN[self.machine]}"
            subprocess.run(["mmdebstrap", *options, architecture, "bookworm", folder], check=True)
            self.python, self.packages = folder / "usr/bin/python3", folder / "usr/lib/python3/dist-packages"
            options = [f"--python-version={tag.interpreter[2:]}", "--only-binary=:all:"]
            options += [f"--platform=manylinux_2_{i}_{self.machine}" for i in range(OLDEST_GLIBC, GLIBC + 1)]
            pip("install", *options, "--target", self.packages, wheel, "pytest")

    @property
    def libraries(self) -> Path:
        return self.packages / "llama_cpp" / "lib"

    def command(self, processor: Processor, program: Path | None = None) -> list[str]:
        """What runs a program, by default Python, on a processor."""
        words = [str(program or self.python)]
        if self.machine != HERE:
            words = ["-L", str(self.root), *words]
        if processor.name != THIS.name:
            words = [f"/usr/bin/qemu-{self.machine}", "-cpu", processor.name, *words]
        return words

    def backends(self, processor: Processor) -> list[str]:
        """Those that a processor runs, the best first."""
        code = "import ctypes, sys\nfor f in sys.argv[1:]: print(ctypes.CDLL(f).ggml_backend_score(), f)"
        printed = run(self.command(processor), "-c", code, *self.libraries.glob("libggml-cpu-*"))
        scores = {backend_in(path): int(score) for score, path in map(str.split, printed.splitlines())}
        return sorted(filter(scores.get, scores), key=scores.get, reverse=True)

    @contextlib.contextmanager
    def only(self, backend: str, folder: Path) -> Iterator[None]:
        """Inside, ggml finds no other; those are in the folder."""
        others = [path for path in self.libraries.glob("libggml-cpu-*") if backend_in(path.name) != backend]
        folder.mkdir()
        for path in others:
            path.rename(folder / path.name)
        try:
            yield
        finally:
            for path in others:
                (folder / path.name).rename(path)


def backend_in(path: str) -> str:
    """What ggml calls the processors that a library is for; empty where it is for all."""
    name = re.search(r"libggml-cpu-(.+)\.so$", path)
    return name[1] if name else ""


def run(command: Sequence[str], *arguments: str | Path, **environment: str) -> str:
    """What a command prints that finds neither compilers nor anything else on the PATH."""
    words = [*command, *map(str, arguments)]
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise click.ClickException(f"{' '.join(words)}:\n{(done.stdout + done.stderr)[-4000:]}")
    return done.stdout


def pip(*arguments: str | Path) -> None:
    subprocess.run([sys.executable, "-m", "pip", "--quiet", *map(str, arguments)], check=True)


def problems(processor: Processor, found: dict, first: dict) -> list[str]:
    """What is not as it has to be, of what the probe has found there and on the first processor."""
    wrong = [
        f"{processor.name}: {what} {found[what]}, not {wanted}"
        for what, wanted in (("backend", processor.backend), ("tier", processor.tier))
        if wanted and found[what] != wanted
    ]
    most = {name: FACTOR * nats + SLACK for name, nats in first["divergences"].items()}
    return wrong + [
        f"{processor.name}, {found['backend']}: with {name} {nats:.4f} nats from f16, not {most[name]:.4f}"
        for name, nats in found["divergences"].items()
        if not nats <= most[name]
    ]


def check(installation: Installation, scratch: Path) -> list[str]:
    """Run everything on every processor, print a table, and return what was wrong."""
    table = rich.table.Table("processor", "backend", "tier", "tests", box=rich.box.SIMPLE_HEAD)
    predictions, environment = scratch / "f16.npy", OLD_BLAS | {"LLAMA_CACHE": str(scratch / "cache")}
    wrong, results = [], []

    def probe(processor: Processor, label: str, tests: str) -> None:
        found = json.loads(run(installation.command(processor), PROBE, predictions, **environment))
        found["backend"] = backend_in(found["backend"])
        results.append(found)
        if len(results) == 1:
            for name in found["divergences"]:
                table.add_column(name, justify="right")
        nats = (f"{value:.5f}" for value in found["divergences"].values())
        table.add_row(label, found["backend"], found["tier"], tests, *nats)
        click.echo(f"{processor.name}: {found}", err=True)
        wrong.extend(problems(processor, found, results[0]))

    processors = PROCESSORS[installation.machine]
    for processor in processors:
        python = installation.command(processor)
        options = ["-q", "-p", "no:cacheprovider", "-k", f"not ({DESELECTED})"]
        printed = run(python, "-m", "pytest", *options, *TESTS, **environment)
        bench = installation.packages / "llama_cpp" / "bin" / "llama-bench"
        model = installation.packages / "llama_tq" / "data" / "demo.gguf"
        small = ["-p", "16", "-n", "4", "-r", "1", "-fa", "1", "-ctk", "tq4_0", "-ctv", "tq4_0"]
        run(installation.command(processor, bench), "-m", model, *small)
        probe(processor, processor.name, re.search(r"\d+ passed", printed)[0])
    for backend in installation.backends(processors[0])[1:]:
        with installation.only(backend, scratch / backend):
            probe(dataclasses.replace(processors[0], backend=backend), "", "")
    rich.print(table)
    return wrong


@click.command()
@click.argument(
    "wheels", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path)
)
def main(wheels: tuple[Path, ...]) -> None:
    """Check wheels; the exit status is 1 where something is not as it has to be."""
    wrong = []
    for wheel in wheels:
        megabytes = wheel.stat().st_size / 1e6
        click.echo(f"{wheel.name}: {megabytes:.1f} MB")
        if megabytes > MOST_MEGABYTES:
            wrong.append(f"{wheel.name} is larger than {MOST_MEGABYTES} MB")
        with tempfile.TemporaryDirectory() as name:
            scratch, start = Path(name), time.monotonic()
            installation = Installation(wheel, scratch / "root")
            click.echo(f"installed in {time.monotonic() - start:.0f} s")
            if installation.machine == HERE:
                start = time.monotonic()
                run([str(installation.root / "bin" / "llama-tq")], "demo", LLAMA_CACHE=str(scratch / "demo"))
                click.echo(f"llama-tq demo: {time.monotonic() - start:.0f} s")
            wrong += check(installation, scratch)
    if wrong:
        raise click.ClickException("\n".join(wrong))


if __name__ == "__main__":
    main()
