"""A copy of a GGUF file with the mean keys among its metadata, where llama.cpp looks for them.

Both are copied as bytes, so nothing can change: gguf's own writer refuses empty arrays and text that is not
UTF-8. gguf's reader says where things are.
"""

from __future__ import annotations

import os
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import gguf
import numpy as np

from ..errors import InputError
from .means import MODEL_FILE, Means

PREFIX = "tq.centre."
_KV_COUNT = 16  # offset in the file; uint64
_FIRST_KV = 24
_PIECE = 1 << 24  # bytes copied at a time


def check(source: Path, target: Path, force: bool) -> None:
    """InputError if `target` cannot be made from `source`, before anything is measured."""
    if target.is_dir():
        raise InputError(f"{target} is a directory. Name a file to write.")
    if not target.parent.is_dir():
        raise InputError(f"There is no directory {target.parent}. Make it first, or name another.")
    if target.exists():
        if target.samefile(source):
            raise InputError(f"{target} is the model itself. Name another file.")
        if not force:
            raise InputError(f"{target} exists. Name another file, or replace it with --force.")
    count = _open(source).get_field(gguf.Keys.Split.LLM_KV_SPLIT_COUNT)
    if count is not None and count.contents() > 1:
        raise InputError(
            f"{source} is one of {count.contents()} parts. Make one file of them first: "
            f"llama-gguf-split --merge {source} MERGED.gguf"
        )


def write(source: Path, target: Path, means: Means) -> None:
    """Write `source` with `means` to `target`. A failure leaves what was there before."""
    added = [] if means.source == MODEL_FILE else _kept(means)
    draft = target.with_name(f"{target.name}.{os.getpid()}.part")
    try:
        with open(source, "rb") as original, open(draft, "wb") as copy:
            _write(_open(source), original, copy, added)
        os.replace(draft, target)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def _open(path: Path) -> gguf.GGUFReader:
    try:
        return gguf.GGUFReader(path)
    except (ValueError, KeyError) as error:
        raise InputError(f"The package gguf cannot read {path}: {error}. Update gguf.") from None


def _kept(means: Means) -> list[np.ndarray]:
    """The means as the side file has them: what they look like in a file is llama.cpp's business alone."""
    if not means.side_file or not Path(means.side_file).is_file():
        raise InputError(
            "The means could not be kept on their way to the copy. Name a folder in LLAMA_CACHE."
        )
    reader = _open(Path(means.side_file))
    for number, layer in enumerate(means.layers):
        if layer.centred:
            field = reader.get_field(f"{PREFIX}mean.{number}")
            if (
                field is None
                or b"".join(field.parts[i].tobytes() for i in field.data) != layer.mean.tobytes()
            ):
                raise InputError(f"{means.side_file} holds other means than the model's. Remove it.")
    return [data for name, data in _metadata(reader) if name.startswith(PREFIX)]


def _metadata(reader: gguf.GGUFReader) -> Iterator[tuple[str, np.ndarray]]:
    """Every key with its value: name and bytes."""
    fields = [field for field in reader.fields.values() if field.offset >= _FIRST_KV]
    for field in fields:
        size = sum(int(part.nbytes) for part in field.parts)
        yield field.name, reader.data[field.offset : field.offset + size]


def _write(reader: gguf.GGUFReader, original: BinaryIO, copy: BinaryIO, added: list[np.ndarray]) -> None:
    kept = [data for name, data in _metadata(reader) if not (added and name.startswith(PREFIX))]
    copy.write(reader.data[:_KV_COUNT])
    copy.write(struct.pack("=Q", len(kept) + len(added)))
    for data in (*kept, *added):
        copy.write(data)
    for tensor in reader.tensors:  # where it lies is relative to the first, and stays so
        for part in tensor.field.parts:
            copy.write(part.tobytes())
    copy.write(bytes(-copy.tell() % int(reader.alignment)))
    original.seek(int(reader.data_offset))
    shutil.copyfileobj(original, copy, _PIECE)
