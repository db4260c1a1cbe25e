"""The keys, or the values, of a layer: packed rows, and the newest ones in full precision."""

from __future__ import annotations

import dataclasses

import torch

from ..heads import check_head, rotation_size
from ..reference import TypeSpec
from ..torch import dequantize, store
from ..torch.rotation import rotate

SPARE = 16  # when rows run out, a sixteenth more is made, and 64 at least: a row is copied about that often
SPARE_MIN = 64


@dataclasses.dataclass(frozen=True)
class Packed:
    """What attention gets to see: oldest tokens first."""

    rows: torch.Tensor  #: uint8 ``(batch, heads, packed tokens, bytes)``, a view of the cache
    tail: torch.Tensor  #: the tokens after these, ``(batch, heads, tokens, head)``, as the model made them
    type: str
    side: str  #: heads.KEY or heads.VALUE

    @property
    def shape(self) -> torch.Size:
        """``(batch, heads, tokens, head)``, as of the tensor that this stands for."""
        batch, heads, tokens, head = self.tail.shape
        return torch.Size((batch, heads, self.rows.shape[2] + tokens, head))

    def dense(self) -> torch.Tensor:
        """The tokens decoded and turned back, of the model's dtype."""
        size = rotation_size(self.side, self.tail.shape[-1])
        decoded = rotate(dequantize(self.rows, self.type), size).to(self.tail.dtype)
        return torch.cat([decoded, self.tail], dim=2) if self.tail.shape[2] else decoded


class Side:
    """Grows at the end, and shrinks at both.

    :param states: decides dtype, device, batch, heads and head size; its values are not stored
    :param spec: type of the packed rows
    :param side: heads.KEY or heads.VALUE
    :param window: so many of the newest tokens stay in full precision
    :raises ValueError: the head size is no multiple of 32
    """

    def __init__(self, states: torch.Tensor, spec: TypeSpec, side: str, window: int) -> None:
        batch, heads, _, head = states.shape
        check_head(head, f"{side} heads")
        self.spec, self.side, self.window = spec, side, window
        self._buffer = states.new_empty((batch, heads, 0, spec.row_bytes(head)), dtype=torch.uint8)
        self._first = self._last = 0  # rows of the buffer that hold tokens
        self._tail = states.new_empty((batch, heads, 0, head))

    def __len__(self) -> int:
        return self._last - self._first + self._tail.shape[2]

    @property
    def shape(self) -> torch.Size:
        """``(batch, heads, tokens, head)``"""
        batch, heads, _, head = self._tail.shape
        return torch.Size((batch, heads, len(self), head))

    @property
    def nbytes(self) -> int:
        """Bytes held, spare rows included."""
        return self._buffer.nbytes + self._tail.nbytes

    def append(self, states: torch.Tensor) -> None:
        """Take tokens in, ``(batch, heads, tokens, head)``."""
        if self.window:
            states = torch.cat([self._tail, states], dim=2)
            packed = max(states.shape[2] - self.window, 0)
            self._tail = states[:, :, packed:].clone()
            states = states[:, :, :packed]
        count = states.shape[2]
        if count:
            self._make_room(count)
            size = rotation_size(self.side, states.shape[-1])
            store(states, self._buffer, self._last, self.spec.name, size)
            self._last += count

    def newest(self, count: int) -> Packed:
        """The last `count` tokens, at most all of them."""
        tail = self._tail[:, :, max(self._tail.shape[2] - count, 0) :]
        first = max(self._last - (count - tail.shape[2]), self._first)
        return Packed(self._buffer[:, :, first : self._last], tail, self.spec.name, self.side)

    def drop_oldest(self, count: int) -> None:
        """Forget the first `count` tokens."""
        packed = min(count, self._last - self._first)
        self._first += packed
        self._tail = self._tail[:, :, count - packed :]

    def drop_newest(self, count: int) -> None:
        """Forget the last `count` tokens. Tokens that are packed stay so."""
        kept = max(self._tail.shape[2] - count, 0)
        self._last -= count - (self._tail.shape[2] - kept)
        self._tail = self._tail[:, :, :kept]

    def select(self, indices: torch.Tensor) -> None:
        """Take these sequences for the batch, in this order; some can be taken twice."""
        indices = indices.to(self._buffer.device)
        self._buffer, self._tail = self._buffer[indices], self._tail[indices]

    def _make_room(self, count: int) -> None:
        """Rows for `count` more tokens: all move to the front, of a larger buffer if need be."""
        held = self._last - self._first
        if self._last + count <= self._buffer.shape[2]:
            return
        old = self._buffer[:, :, self._first : self._last]
        needed = held + count
        if needed + min(needed // SPARE, SPARE_MIN) <= self._buffer.shape[2]:
            old = old.clone()  # the two places may overlap
        else:
            batch, heads, _, width = self._buffer.shape
            capacity = needed + max(needed // SPARE, SPARE_MIN)
            self._buffer = self._buffer.new_empty((batch, heads, capacity, width))
        self._buffer[:, :, :held] = old
        self._first, self._last = 0, held
