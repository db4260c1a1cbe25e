"""What of csrc/metal can be proven without a Mac: tests that `pytest -m metal` runs on one pass in emulation,
behind the patched ggml-metal; and what a Mac compiles is checked as far as clang knows it.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import drivers
import metal_emulation

# What runs at the same time, for about as long. Of whole models, what takes long is for a Mac.
RUNS = [
    [
        *("test_metal_device.py", "test_gpu_cache.py", "-k"),
        "bound or (gpu_cache and not state and (not one_token or tq4_0))",
    ],
    ["test_llama_ops.py", "test_metal_device.py", "-k", "not bound"],
]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return metal_emulation.build(tmp_path_factory.mktemp("metal"))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    return metal_emulation.preprocessed(tmp_path_factory.mktemp("source"))


def test_the_tests_for_a_mac_pass_in_emulation(library: Path):
    environment = {**os.environ, metal_emulation.LIBRARY: str(library)}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-m", "metal", "-p", "no:cacheprovider"]
    runs = [
        subprocess.Popen(
            [*command, *arguments],
            cwd=drivers.TESTS,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for arguments in RUNS
    ]
    outputs = [run.communicate()[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], "\n".join(outputs)


# --- what a Mac compiles ----------------------------------------------------------------------------------


def check(source: str, folder: Path) -> str:
    """What clang says of it as C++14, of which Metal is a dialect, with address spaces as parts of types."""
    path = folder / "tq_metal.cpp"
    path.write_text(metal_emulation.without_attributes(source))
    options = ["-std=c++14", "-fsyntax-only", "-DHOST_METAL_SPACES", *metal_emulation.METAL]
    command = [metal_emulation.compiler(), *options, path]
    return subprocess.run(command, capture_output=True, text=True).stderr


def test_every_instance_is_right_in_types_and_address_spaces(source: str, tmp_path: Path):
    """Without a warning: ggml-metal throws a library away for one."""
    assert check(source, tmp_path) == ""


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("device const uchar * p = ids", "threadgroup const uchar * p = ids"),
        (
            "threadgroup float * k_books = (threadgroup float *) shared",
            "float * k_books = (threadgroup float *) shared",
        ),
        ("simdgroup_float8x8 s[", "simdgroup_half8x8 s["),
        ("uint opened = 0;", "uint half = 0;"),
        ("if (tq_ids == 0)", "if constexpr (true)"),
    ],
)
def test_mistakes_would_be_seen(source: str, tmp_path: Path, before: str, after: str):
    assert before in source
    assert "error" in check(source.replace(before, after), tmp_path)


def test_every_pointer_has_an_address_space(source: str):
    """Which Metal asks for, and clang takes for that of local variables."""
    types = (
        "char|uchar|ushort|uint|int|u?int(?:8|16|32|64)_t|half|float|tq_dev_distances|tq_metal_\\w+|tq_[a-z]+"
    )
    pointers = re.findall(rf"[^;{{}}(),]*\b(?:{types})\s*[*&](?!&)", source)
    assert len(pointers) > 100
    spaces = re.compile(r"\b(device|constant|thread|threadgroup)\b")
    assert [p for p in pointers if not spaces.search(p)] == []


def test_nothing_that_metal_lacks_is_used(source: str):
    words = set(re.findall(r"[A-Za-z_]\w*", source))
    lacks = "double new delete throw try catch virtual goto dynamic_cast typeid std auto thread_local asm"
    assert words.isdisjoint(lacks.split())
    assert not re.search(r"\[[&=]?\]\s*\(", source), "lambdas are of Metal 3.2 and later"


# --- refusals ---------------------------------------------------------------------------------------------

ASK = """
import sys
import metal_emulation
metal_emulation.register(sys.argv[1])
from ggml_graph import F32, I64, Graph
with Graph("MTL0") as graph:
    store = graph.op("set_rows", graph.new(1040, 64, 4), graph.new(F32, 64, 1), graph.new(I64, 1))
    halves = graph.new(1040, 256, 64, 1), graph.new(1041, 256, 64, 1)
    queries = graph.new(F32, 256, 1), graph.new(F32, 256, 64)
    attend = [graph.op("flash_attn_ext", q, *halves, None, 1.0, 0.0, 0.0) for q in queries]
    print(*(int(graph.supports(op)) for op in (store, *attend)))
"""


@pytest.mark.parametrize(
    ("variables", "answers"),
    [
        ({}, "1 1 1"),
        ({"HOST_METAL_NO_COMPILER": "1"}, "0 0 0"),  # the source is refused
        ({"HOST_METAL_THREADS": "96"}, "0 0 1"),  # kernels need more registers than that many threads have
        ({"HOST_METAL_NO_MATRICES": "1"}, "0 0 0"),  # before Apple7
    ],
    ids=["able", "no compiler", "few threads", "no matrices"],
)
def test_a_device_that_cannot_says_so_before_work(library: Path, variables: dict[str, str], answers: str):
    command = [sys.executable, "-c", ASK, library]
    environment = {**os.environ, **variables}
    environment["PYTHONPATH"] = os.pathsep.join(
        [str(drivers.TESTS), str(drivers.TESTS.parent / "python"), *sys.path]
    )
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert result.stdout.split("\n")[-2] == answers
