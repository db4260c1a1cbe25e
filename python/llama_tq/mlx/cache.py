"""A cache of one layer for mlx-lm, in the bytes of the TQ types."""

from __future__ import annotations

import mlx.core as mx
from mlx_lm.models import cache as mlx_lm_cache

from ..heads import KEY, VALUE, check_head, rotation_size
from ..reference import check_type
from .codec import dequantize, quantize
from .rotation import rotate


class TurboQuantCache(mlx_lm_cache._BaseCache):
    """Stands for an ``mlx_lm.models.cache.KVCache``: keys and values are rotated, encoded and kept so.

    What attention needs is decoded for each call, of this layer alone. Positions can be trimmed, and
    prompt caches saved and loaded; batches of prompts of different length are refused by mlx-lm.

    :param k: type of the keys, ``tq4_0``, ``tq3_0`` or ``tq2_1``
    :param v: type of the values
    :raises ValueError: unknown type
    """

    step = 256  # tokens that room is made for at once, as in mlx-lm's own

    def __init__(self, k: str = "tq4_0", v: str = "tq4_0") -> None:
        self.k, self.v = check_type(k).name, check_type(v).name
        self.keys: mx.array | None = None
        """uint8 ``(batch, KV heads, room, bytes)``."""
        self.values: mx.array | None = None
        self.offset = 0
        self.dtype = mx.float16

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Append tokens, and return all that there are.

        :param keys: floats, ``(batch, KV heads, tokens, head size)``; head size a multiple of 32
        :param values: likewise
        :returns: decoded keys and values, in the dtype of `keys`
        :raises ValueError: heads of another size
        """
        check_head(keys.shape[-1], "keys have heads")
        check_head(values.shape[-1], "values have heads")
        new = [_encode(keys, self.k, KEY), _encode(values, self.v, VALUE)]
        end = self.offset + keys.shape[2]
        if self.keys is None:
            self.keys, self.values = (rows[..., :0, :] for rows in new)
        if end > self.keys.shape[2]:
            self.keys, self.values = (self._grown(rows, end) for rows in (self.keys, self.values))
        self.keys[..., self.offset : end, :], self.values[..., self.offset : end, :] = new
        self.offset, self.dtype = end, keys.dtype
        return self.keys_and_values()

    def keys_and_values(self) -> tuple[mx.array, mx.array]:
        """All tokens, decoded."""
        rows = (self.keys[..., : self.offset, :], self.values[..., : self.offset, :])
        return _decode(rows[0], self.k, KEY, self.dtype), _decode(rows[1], self.v, VALUE, self.dtype)

    def _grown(self, rows: mx.array, end: int) -> mx.array:
        room = -(-end // self.step) * self.step
        shape = (*rows.shape[:2], room - self.offset, rows.shape[3])
        return mx.concatenate([rows[..., : self.offset, :], mx.zeros(shape, mx.uint8)], axis=2)

    @property
    def state(self) -> tuple:
        """What has to be saved."""
        return self.keys, self.values, self.offset, self.k, self.v, _NAMES[self.dtype]

    @state.setter
    def state(self, state: tuple) -> None:
        self.keys, self.values, self.offset, self.k, self.v, name = state
        self.dtype = getattr(mx, name)

    def is_trimmable(self) -> bool:
        return True

    def trim(self, n: int) -> int:
        """Forget the newest `n` tokens, or all; returns how many."""
        n = min(self.offset, n)
        self.offset -= n
        return n

    def make_mask(self, *args, **kwargs) -> mx.array | str | None:
        return mlx_lm_cache.create_attention_mask(*args, offset=self.offset, **kwargs)

    def size(self) -> int:
        """Tokens."""
        return self.offset

    def empty(self) -> bool:
        return self.keys is None

    @property
    def nbytes(self) -> int:
        """Bytes held, the room for tokens to come included."""
        return 0 if self.keys is None else self.keys.nbytes + self.values.nbytes


_NAMES = {dtype: str(dtype).rpartition(".")[2] for dtype in (mx.float32, mx.float16, mx.bfloat16)}
mlx_lm_cache.TurboQuantCache = TurboQuantCache  # load_prompt_cache looks classes up by name there


def _encode(x: mx.array, type: str, side: str) -> mx.array:
    return quantize(rotate(x, rotation_size(side, x.shape[-1])), type)


def _decode(rows: mx.array, type: str, side: str, dtype: mx.Dtype) -> mx.array:
    x = dequantize(rows, type)
    return rotate(x, rotation_size(side, x.shape[-1])).astype(dtype)
