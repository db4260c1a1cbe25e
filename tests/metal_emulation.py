"""The kernels of csrc/metal, hooks/metal.cpp and the patched ggml-metal, on the host: see host_metal."""

from __future__ import annotations

import concurrent.futures
import ctypes
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import drivers
from tq_build import upstream

HOST = drivers.TESTS / "host_metal"
EMBED = drivers.CSRC / "metal" / "embed.py"
LIBRARY = "TQ_METAL_EMULATION"  # the variable that names the library of a test session that runs on it
WARNINGS = ["-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter", "-Wno-unknown-pragmas"]
WARNINGS += ["-Wno-duplicate-decl-specifier"]  # constant is const here
METAL = [*WARNINGS, "-D__METAL_VERSION__=320", f"-I{HOST}", f"-I{drivers.CSRC}"]


def compiler() -> str:
    """A clang++ that knows _Float16: 15 and later."""
    for name in ("clang++", *(f"clang++-{version}" for version in range(30, 14, -1))):
        if found := shutil.which(name):
            text = subprocess.run([found, "-dM", "-E", "-xc++", os.devnull], capture_output=True, text=True)
            if "__FLT16_MANT_DIG__" in text.stdout:
                return found
    raise AssertionError("no clang++ with _Float16; apt install clang-19")


def tree() -> Path:
    """ggml/src of the patched llama.cpp."""
    return upstream.prepare(upstream.read_pin()) / "vendor/llama.cpp/ggml/src"


def source(folder: Path) -> Path:
    """What the library hands to Metal's compiler, as a C++ string."""
    target = folder / "tq_metal_source.cpp"
    subprocess.run([sys.executable, EMBED, drivers.CSRC / "metal" / "tq.metal", target], check=True)
    return target


def function(text: str, head: str) -> str:
    """A function of a C file, from its head to the brace that closes it."""
    start = text.index(head)
    return text[start : text.index("\n}\n", start) + 3]


def build(folder: Path) -> Path:
    """A shared library with the whole backend; ggml_backend_metal_reg is its entry."""
    ggml = tree()
    device = (ggml / "ggml-metal/ggml-metal-device.m").read_text()
    heads = ("static bool ggml_metal_supports_mul_mat_op(", "bool ggml_metal_device_supports_op(")
    (folder / "supports.inc").write_text("".join(function(device, head) for head in heads))
    traps = "alignment,bounds,integer-divide-by-zero,shift,signed-integer-overflow"
    kernel_options = [
        "-O1",
        "-march=native",
        "-ffp-contract=off",
        f"-fsanitize={traps}",
        "-fsanitize-trap=all",
    ]
    host_options = ["-include", "memory", "-w"]  # upstream's warnings are not ours
    host_options += [f"-I{path}" for path in (ggml, ggml / "../include", ggml / "ggml-metal", folder, HOST)]
    host_options += [f"-I{drivers.CSRC}", f"-I{drivers.CSRC / 'hooks'}"]
    sources = [
        (HOST / "kernels.cpp", [*METAL, *kernel_options]),
        *((path, host_options) for path in sorted((ggml / "ggml-metal").glob("*.cpp"))),
        (
            drivers.CSRC / "hooks/metal.cpp",
            [*host_options, "-Wall", "-Wextra", "-Wno-unused-function", "-Werror"],
        ),
        (HOST / "device.cpp", [*host_options, "-O1"]),
        (source(folder), ["-O1"]),
    ]
    command = compiler()

    def compile(job: tuple[Path, list[str]]) -> Path:
        path, options = job
        target = folder / f"{path.stem}.o"
        subprocess.run([command, "-std=c++17", "-fPIC", *options, "-c", path, "-o", target], check=True)
        return target

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compile, sources))
    library = folder / "libhost_metal.so"
    links = [
        f"-L{drivers.libraries()}",
        f"-Wl,-rpath,{drivers.libraries()}",
        "-lggml",
        "-lggml-base",
        "-Wl,-z,defs",
    ]
    subprocess.run([command, "-shared", *objects, *links, "-o", library], check=True)
    return library


def register(library: str) -> None:
    """Gives ggml the device MTL0, in this process."""
    import llama_cpp.llama_cpp as api

    entry = ctypes.CDLL(library).ggml_backend_metal_reg
    entry.restype = ctypes.c_void_p
    add = api._lib["ggml_backend_register"]
    add.restype, add.argtypes = None, [ctypes.c_void_p]
    add(entry())


def preprocessed(folder: Path) -> str:
    """The source as Metal's compiler has it after its preprocessor."""
    text = re.search(r'R"TQ\((.*)\)TQ"', source(folder).read_text(), re.DOTALL)[1]
    (folder / "metal_stdlib").touch()
    options = [
        "-E",
        "-P",
        "-xc++",
        "-nostdinc",
        "-Wno-unknown-pragmas",
        "-D__METAL_VERSION__=320",
        f"-I{folder}",
    ]
    command = [compiler(), *options, "-"]
    return subprocess.run(command, input=text, stdout=subprocess.PIPE, text=True, check=True).stdout


def without_attributes(text: str) -> str:
    """Metal as C++ over host_metal/metal_stdlib; function constants get a value."""
    text = re.sub(r"\[\[function_constant\((\w+)\)\]\]", r"= \1", text)
    return "#include <metal_stdlib>\n" + re.sub(r"\[\[.*?\]\]", "", text)
