"""The package is in layers: a module imports from below, or from its own folder, and there in no circle."""

from __future__ import annotations

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "python" / "llama_tq"
LAYERS = (  # from the bottom to the top, each with the modules and folders that stand side by side in it
    ("_core", "_native", "errors"),
    ("reference",),
    ("_api", "heads", "widths"),
    ("_gguf",),
    ("torch",),
    ("hf", "mlx", "runtime", "turboquant"),
    ("evaluation",),
    ("commands",),
    ("views",),
    ("_programs", "cli", "turboquant.__main__"),
    ("__init__",),
)
HEIGHT = {name: height for height, names in enumerate(LAYERS) for name in names}  # programs by full name
MODULES = {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in PACKAGE.rglob("*.py")}


def top(module: str) -> str:
    return module.partition(".")[0]


def imported(module: str, source: str) -> Iterator[str]:
    """What a module takes from this package, wherever in its text: names like `runtime.models`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = module.split(".")[: -node.level] if node.level else []
            base = ["llama_tq", *above] if node.level else []
            start = ".".join([*base, *filter(None, [node.module])])
            names = [f"{start}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            first, _, rest = name.partition(".")
            if first == "llama_tq":
                yield rest or "__init__"


def climbing(module: str, source: str) -> list[str]:
    own = top(module)
    height = HEIGHT.get(module, HEIGHT[own])
    return [
        name
        for name in imported(module, source)
        if top(name) != own and HEIGHT.get(top(name), len(LAYERS)) >= height
    ]


@pytest.mark.parametrize("module", MODULES)
def test_imports_come_from_below(module):
    assert top(module) in HEIGHT, f"{module} is in no layer: name it in LAYERS"
    assert climbing(module, MODULES[module].read_text()) == []


def test_no_circle():
    """Neither within a folder nor anywhere else; imports inside of functions count."""
    graph = {}
    for module, path in MODULES.items():
        parents = (name.rpartition(".")[0] for name in imported(module, path.read_text()))
        names = {*imported(module, path.read_text()), *parents}
        graph[module] = {m for n in names for m in (n, f"{n}.__init__") if m in MODULES and m != module}
    graphlib.TopologicalSorter(graph).prepare()  # CycleError names the circle


@pytest.mark.parametrize(
    "source",
    [
        "import llama_tq",
        "from llama_tq import quantize",
        "from .. import quantize",
        "from ..commands import plan",
        "def f():\n    from ..commands.plan import plan",
        "from llama_tq.views.render import to_json",
        "from ..turboquant import TurboQuant",
    ],
)
def test_climbing_is_noticed(source):
    assert len(climbing("runtime.pairs", source)) == 1


@pytest.mark.parametrize(
    "source", ["import numpy", "from ..reference import TYPES", "from . import ggml", "from .ggml import x"]
)
def test_what_lies_below_is_fine(source):
    assert climbing("runtime.pairs", source) == []
