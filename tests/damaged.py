"""The files that the fuzz targets for damaged files damage."""

from __future__ import annotations

from pathlib import Path

import pytest

import llama_models
import llama_tq

HEAD = 64


def environment(folder: Path) -> dict[str, str]:
    """Variables that name them, in a folder."""
    model, measured = folder / "model.gguf", folder / "measured.gguf"
    llama_models.plain(model, HEAD, True)
    llama_models.biased(measured, HEAD)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLAMA_CACHE", str(folder))
        side = llama_tq.centre(measured).side_file
    names = {"MODEL": model, "MEASURED": measured, "SIDE": side, "FOLDER": folder}
    return {"LLAMA_CACHE": str(folder)} | {f"LLAMA_TQ_FUZZ_{name}": str(path) for name, path in names.items()}
