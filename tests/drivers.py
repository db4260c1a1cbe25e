"""C programs of the tests: by this system's compiler, with sanitizers, or by another one; what runs them."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pybind11

from tq_build import upstream

TESTS = Path(__file__).resolve().parent
CSRC = TESTS.parent / "csrc"
OPTIONS = ["-std=c11", "-D_DEFAULT_SOURCE", "-O1", "-Wall", "-Wextra", "-Werror", f"-I{CSRC}"]
SANITIZERS = ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
AARCH64, CLANG, MUSL, WINDOWS = COMPILERS = (
    "aarch64-linux-gnu-gcc",
    "clang-19",
    "musl-gcc",
    "x86_64-w64-mingw32-gcc",
)
SYSTEMS = {  # CMake's variables, where the compiler is for another one
    AARCH64: {"CMAKE_SYSTEM_NAME": "Linux", "CMAKE_SYSTEM_PROCESSOR": "aarch64"},
    WINDOWS: {"CMAKE_SYSTEM_NAME": "Windows", "CMAKE_SYSTEM_PROCESSOR": "AMD64"},
}
TOOLS = {
    AARCH64: "apt install gcc-aarch64-linux-gnu libc6-dev-arm64-cross",
    CLANG: "apt install clang-19",
    MUSL: "apt install musl-tools",
    WINDOWS: "apt install gcc-mingw-w64-x86-64-win32",
    "qemu-aarch64": "apt install qemu-user",
    "wine": "apt install wine wine64",
    "cmake": "pip install cmake",
    "ninja": "pip install ninja",
}


def require(*tools: str) -> None:
    missing = [f"{tool} ({TOOLS[tool]})" for tool in tools if not shutil.which(tool)]
    assert not missing, f"missing: {', '.join(missing)}"


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


def build_library(directory: Path, variables: dict[str, str]) -> Path:
    """The static library of csrc/cpu."""
    options = [f"-D{name}={value}" for name, value in variables.items()]
    subprocess.run(["cmake", "-G", "Ninja", "-S", CSRC, "-B", directory, *options], check=True)
    subprocess.run(["cmake", "--build", directory], check=True)
    return directory / "libtq.a"


def build_sanitized(directory: Path) -> Path:
    """The library of `link_sanitized`."""
    return build_library(directory, {"CMAKE_BUILD_TYPE": "None", "CMAKE_C_FLAGS": " ".join(SANITIZERS)})


def link_sanitized(library: Path, *sources: str) -> list[str]:
    """The program, which ends at the first access or operation that C does not define."""
    program = library.parent / Path(sources[0]).stem
    paths = [TESTS / source for source in sources]
    subprocess.run(["cc", *OPTIONS, *SANITIZERS, *paths, library, "-lm", "-o", program], check=True)
    return [str(program)]


def headers() -> list[Path]:
    """Folders of those of llama.cpp, of this checkout's upstream, and of csrc."""
    llama_cpp = upstream.prepare(upstream.read_pin()) / "vendor" / "llama.cpp"
    return [llama_cpp / "include", llama_cpp / "ggml" / "include", CSRC, CSRC / "hooks"]


def build_damager(target: str, directory: Path) -> str:
    """The fuzz target for damaged files, over the installed llama.cpp and without sanitizers."""
    program = directory / target
    options = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", *(f"-I{folder}" for folder in headers())]
    sources = [TESTS / "fuzz" / name for name in (f"{target}.cpp", "replay.c")]
    link = [f"-L{libraries()}", f"-Wl,-rpath,{libraries()}", "-lllama", "-lggml", "-lggml-base"]
    subprocess.run(["c++", *options, *sources, *link, "-o", program], check=True)
    return str(program)


def link_bindings(library: Path, package: Path) -> None:
    """llama_tq._core with sanitizers, and llama_tq._native over the installed llama.cpp, into a package."""
    own = [CSRC, pybind11.get_include(), sysconfig.get_path("include")]
    llama_cpp = [*headers(), headers()[0].parent / "src"]
    link = [f"-L{libraries()}", f"-Wl,-rpath,{libraries()}", "-lllama", "-lggml", "-lggml-base"]
    for name, sources, folders, rest in (
        ("_core", ("core.cpp", "attention.cpp"), own, [library]),
        ("_native", ("native.cpp",), [*own, *llama_cpp], link),
    ):
        paths = [CSRC / "bindings" / source for source in sources]
        includes = [f"-I{folder}" for folder in folders]
        module = package / f"{name}{sysconfig.get_config_var('EXT_SUFFIX')}"
        options = ["-std=c++17", "-fPIC", "-shared", "-fvisibility=hidden", *SANITIZERS, "-O0", *includes]
        subprocess.run(["c++", *options, *paths, *rest, "-o", module], check=True)


def preload_sanitizers() -> dict[str, str]:
    """What the environment of a program without sanitizers needs to load a library with them."""
    names = ("libasan.so", "libubsan.so")
    found = [subprocess.check_output(["cc", f"-print-file-name={name}"], text=True).strip() for name in names]
    return {"LD_PRELOAD": " ".join(found), "ASAN_OPTIONS": "detect_leaks=0"}


def build_static(compiler: str, source: str, directory: Path) -> Path:
    """The program over csrc by one of COMPILERS."""
    require(compiler, "cmake", "ninja")
    variables = {
        "CMAKE_BUILD_TYPE": "Release",
        "CMAKE_COMPILE_WARNING_AS_ERROR": "ON",
        "CMAKE_C_COMPILER": compiler,
    }
    library = build_library(directory, variables | SYSTEMS.get(compiler, {}))
    program = directory / f"{Path(source).stem}.exe"  # only Windows wants a suffix
    link = ["-static", library, "-lm"]
    subprocess.run([compiler, *OPTIONS, TESTS / source, *link, "-o", program], check=True)
    return program


def emulate(program: Path, cpu: str) -> list[str]:
    """The command that runs an AArch64 program on a CPU, "max" or a name that qemu-aarch64 knows."""
    require("qemu-aarch64")
    return ["qemu-aarch64", "-cpu", cpu, str(program)]
