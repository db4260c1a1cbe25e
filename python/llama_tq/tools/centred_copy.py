"""A copy of a GGUF file with the mean keys among its metadata, where llama.cpp looks for them.

What is there is copied as bytes, so nothing of it can change: gguf's own writer leaves out empty arrays, and
with them the list of plain tokens of most models. gguf's reader says where things are.
"""

from __future__ import annotations

import os
import shutil
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

import gguf
import numpy as np
from gguf import GGUFValueType as Type

from .errors import InputError
from .means import Means

PREFIX = "tq.centre."
VERSION = 1  # of the keys, and of how means are measured; store.cpp reads them
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
    draft = target.with_name(f"{target.name}.{os.getpid()}.part")
    try:
        with open(source, "rb") as original, open(draft, "wb") as copy:
            _write(_open(source), original, copy, list(_values(means)))
        os.replace(draft, target)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def _open(path: Path) -> gguf.GGUFReader:
    try:
        return gguf.GGUFReader(path)
    except (ValueError, KeyError) as error:
        raise InputError(f"The package gguf cannot read {path}: {error}. Update gguf.") from None


def _write(reader: gguf.GGUFReader, original, copy, added: Sequence[bytes]) -> None:
    data = reader.data
    fields = [field for field in reader.fields.values() if field.offset >= _FIRST_KV]
    first_tensor = reader.tensors[0].field.offset if reader.tensors else reader.data_offset
    ends = [*(field.offset for field in fields[1:]), first_tensor]
    kept = [
        (field.offset, end)
        for field, end in zip(fields, ends, strict=True)
        if not field.name.startswith(PREFIX)
    ]
    copy.write(data[:_KV_COUNT])
    copy.write(struct.pack("=Q", len(kept) + len(added)))
    for begin, end in kept:
        copy.write(data[begin:end])
    for value in added:
        copy.write(value)
    copy.write(data[first_tensor : _end_of_infos(reader)])
    copy.write(bytes(-copy.tell() % int(reader.alignment)))
    original.seek(int(reader.data_offset))
    shutil.copyfileobj(original, copy, _PIECE)


def _end_of_infos(reader: gguf.GGUFReader) -> int:
    """Tensors lie relative to the data's start, so what describes them need not change."""
    if not reader.tensors:
        return reader.data_offset
    last = reader.tensors[-1].field
    return last.offset + sum(int(part.nbytes) for part in last.parts)


def _values(means: Means) -> Iterator[bytes]:
    yield _scalar("version", Type.UINT32, "=I", VERSION)
    yield _scalar("first_is_plain", Type.BOOL, "=?", means.first_is_plain)
    yield _array("plain_tokens", Type.INT32, np.array(means.plain_tokens, np.int32))
    yield _array("heads", Type.INT32, np.array([layer.centred for layer in means.layers], np.int32))
    for when in ("before", "after"):
        energies = [getattr(layer, f"energy_{when}") for layer in means.layers]
        yield _array(f"energy_{when}", Type.FLOAT32, np.array(energies, np.float32))
    for number, layer in enumerate(means.layers):
        if layer.mean.size:
            yield _array(f"mean.{number}", Type.FLOAT32, layer.mean)


def _scalar(name: str, type: Type, form: str, value: int) -> bytes:
    return _key(name) + struct.pack("=I", type) + struct.pack(form, value)


def _array(name: str, type: Type, values: np.ndarray) -> bytes:
    return _key(name) + struct.pack("=IIQ", Type.ARRAY, type, len(values)) + values.tobytes()


def _key(name: str) -> bytes:
    key = (PREFIX + name).encode()
    return struct.pack("=Q", len(key)) + key
