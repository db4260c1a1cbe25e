"""llama.cpp through its C interface: what llama_cpp.Llama hides, for tests of the cache."""

from __future__ import annotations

import contextlib
import ctypes
import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import llama_cpp.llama_cpp as api
import numpy as np
from llama_cpp._logger import set_verbose
from llama_cpp._tq import cache_type, native_errors

import devices
import llama_models

set_verbose(False)
_device = devices.CPU


@functools.cache
def model_file(directory: Path, write: Callable[..., None], *arguments: int) -> Path:
    path = directory / f"{write.__name__}{'-'.join(map(str, arguments))}.gguf"
    write(path, *arguments)
    return path


@contextlib.contextmanager
def on(name: str) -> Iterator[None]:
    """Inside, sessions are on that device."""
    global _device
    before, _device = _device, name
    try:
        yield
    finally:
        _device = before


class Session:
    """A model and a context. Raises ValueError with the native reason where the context is refused.

    All of it is on one device, a ggml_backend_dev_t, or the one that `on` names.
    """

    def __init__(
        self,
        path: Path,
        type_k: str,
        type_v: str,
        *,
        cells: int = 512,
        sequences: int = 1,
        unified: bool = True,
        flash_attention: int = api.LLAMA_FLASH_ATTN_TYPE_ENABLED,
        swa_full: bool = False,
        device: int | None = None,
        split: int = api.LLAMA_SPLIT_MODE_LAYER,
        offload_cache: bool = True,
    ) -> None:
        self._stack = contextlib.ExitStack()
        model_params = api.llama_model_default_params()
        if device is None and _device != devices.CPU:
            device = devices.handle(_device)
        self._devices = (ctypes.c_void_p * 2)(device, None)
        model_params.devices = ctypes.cast(self._devices, ctypes.c_void_p)
        model_params.n_gpu_layers = -1 if device else 0
        model_params.split_mode = split
        model = api.llama_model_load_from_file(str(path).encode(), model_params)
        assert model is not None
        self.vocabulary = api.llama_vocab_n_tokens(api.llama_model_get_vocab(model))
        self._stack.callback(api.llama_model_free, model)
        params = api.llama_context_default_params()
        params.type_k = cache_type(type_k, "type_k")
        params.type_v = cache_type(type_v, "type_v")
        params.n_ctx = cells
        params.n_batch = params.n_ubatch = 256
        params.n_seq_max = sequences
        params.kv_unified = unified
        params.n_threads = params.n_threads_batch = 2
        params.flash_attn_type = flash_attention
        params.swa_full = swa_full
        params.offload_kqv = offload_cache
        with native_errors() as errors:
            self.context = api.llama_init_from_model(model, params)
        if self.context is None:
            self._stack.close()
            raise ValueError("; ".join(errors))
        self._stack.callback(api.llama_free, self.context)
        self.memory = api.llama_get_memory(self.context)

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def decode(self, tokens: np.ndarray, start: int = 0, sequence: int = 0) -> np.ndarray:
        """Logits (len(tokens), vocabulary) of the tokens at the positions from `start` on."""
        return self.decode_batch([(token, start + i, sequence) for i, token in enumerate(tokens)])

    def decode_batch(self, entries: list[tuple[int, int, int]]) -> np.ndarray:
        """Logits of (token, position, sequence) entries, in their order."""
        batch = api.llama_batch_init(len(entries), 0, 1)
        batch.n_tokens = len(entries)
        for i, (token, position, sequence) in enumerate(entries):
            batch.token[i] = int(token)
            batch.pos[i] = position
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = sequence
            batch.logits[i] = 1
        status = api.llama_decode(self.context, batch)
        api.llama_batch_free(batch)
        assert status == 0
        rows = [
            np.ctypeslib.as_array(api.llama_get_logits_ith(self.context, i), (self.vocabulary,))
            for i in range(len(entries))
        ]
        return np.array(rows)

    def state(self) -> bytes:
        size = api.llama_state_get_size(self.context)
        buffer = (ctypes.c_uint8 * size)()
        return bytes(buffer[: api.llama_state_get_data(self.context, buffer, size)])

    def restore(self, state: bytes) -> None:
        """Raises ValueError with the native reason where the state is refused."""
        buffer = (ctypes.c_uint8 * len(state)).from_buffer_copy(state)
        with native_errors() as errors:
            read = api.llama_state_set_data(self.context, buffer, len(state))
        if read != len(state):
            raise ValueError("; ".join(errors))


@contextlib.contextmanager
def sessions(path: Path, *pairs: tuple[str, str], **options: object) -> Iterator[list[Session]]:
    """One session for each pair of cache types."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(Session(path, k, v, **options)) for k, v in pairs]


def tokens(count: int, seed: int = 0) -> np.ndarray:
    """Random tokens, none of them special."""
    return np.random.default_rng(seed).integers(3, len(llama_models.TOKENS), count)


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """Relative to `b`."""
    assert np.isfinite(a).all()
    assert np.isfinite(b).all()
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))
