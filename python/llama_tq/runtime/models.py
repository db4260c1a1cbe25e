"""Models and contexts of the installed llama.cpp, opened for measuring.

Thin over the C API of `llama_cpp`: one sequence, numpy arrays in and out, native log lines kept away from the
terminal and turned into the reason of an `InputError` when something fails.
"""

from __future__ import annotations

import codecs
import contextlib
import ctypes
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass

import llama_cpp
import numpy as np

from .. import _native
from .._api import threads
from ..errors import InputError
from . import ggml, sources
from .centring import centring
from .pairs import FLOOR, Pair, type_id

CPU = "CPU"  # ggml's name for main memory
BATCH = 512  # tokens that one decode call takes
STEP = 256  # llama.cpp rounds contexts up to it
_log = logging.getLogger("llama_tq.native")


@contextlib.contextmanager
def native_log() -> Iterator[list[str]]:
    """Inside, llama.cpp's log is kept back; afterwards the list that this yields holds its errors.

    All of it goes to the logger `llama_tq.native` at debug level.
    """
    errors: list[str] = []
    _native.begin_log()
    try:
        yield errors
    finally:
        for level, text in _native.end_log():
            line = text.decode(errors="replace").rstrip()
            _log.debug("%s", line)
            if level == _native.LOG_ERROR and line:
                errors.append(line.partition(": ")[2] or line)


@dataclass(frozen=True)
class DeviceMemory:
    """Bytes that llama.cpp takes of one device."""

    device: str
    """As llama.cpp names it, such as CUDA0; CPU is main memory."""
    weights: int
    cache: int
    compute: int

    @property
    def total(self) -> int:
        return self.weights + self.cache + self.compute


@dataclass(frozen=True)
class Memory:
    """Bytes that llama.cpp takes: those of every device in use."""

    devices: tuple[DeviceMemory, ...]

    @property
    def weights(self) -> int:
        return sum(device.weights for device in self.devices)

    @property
    def cache(self) -> int:
        return sum(device.cache for device in self.devices)

    @property
    def total(self) -> int:
        return sum(device.total for device in self.devices)

    @property
    def main(self) -> int:
        """Of main memory."""
        return sum(device.total for device in self.devices if device.device == CPU)


class Model:
    """A GGUF model. With `weights=False` only its metadata is read: enough to plan, not to decode.

    All of it is on the CPU, and no other device is used, unless `n_gpu_layers` says how many layers go to the
    GPUs, with their cache: -1 for all, as in llama_cpp.Llama.

    Raises InputError when the file is missing, damaged or not understood, and for GPU layers where there is
    no GPU.
    """

    def __init__(self, model: str | os.PathLike[str], *, weights: bool = True, n_gpu_layers: int = 0) -> None:
        self.path = sources.resolve(model)
        self.name = sources.name_of(model, self.path)
        ggml.start()
        params = llama_cpp.llama_model_default_params()
        params.n_gpu_layers = n_gpu_layers
        if n_gpu_layers:
            ggml.require_gpu()
        else:  # a list of devices, with none in it: otherwise GPUs would multiply large batches all the same
            self._devices = (ctypes.c_void_p * 1)()
            params.devices = ctypes.cast(self._devices, ctypes.c_void_p)
        params.no_alloc = not weights
        if not weights:
            params.load_mode = llama_cpp.LLAMA_LOAD_MODE_NONE
        with native_log() as errors:
            self._model = llama_cpp.llama_model_load_from_file(os.fsencode(self.path), params)
        if not self._model:
            reason = errors[0].removeprefix("error loading model: ") if errors else "llama.cpp gave no reason"
            raise InputError(
                f"Cannot load {self.path}: {reason}. Is it a complete GGUF file? Download it again."
            )
        self._vocab = llama_cpp.llama_model_get_vocab(self._model)
        self.n_vocab: int = llama_cpp.llama_vocab_n_tokens(self._vocab)
        self.description = self._describe()
        """Architecture, size and weight type, as llama.cpp puts it."""
        self.n_ctx_train: int = llama_cpp.llama_model_n_ctx_train(self._model)
        self.bos: int | None = (
            llama_cpp.llama_vocab_bos(self._vocab) if llama_cpp.llama_vocab_get_add_bos(self._vocab) else None
        )

    @property
    def address(self) -> int:
        """Of the `llama_model`, for `_native`."""
        return ctypes.cast(self._model, ctypes.c_void_p).value or 0

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *_: object) -> None:
        with native_log():
            llama_cpp.llama_model_free(self._model)
        self._model = self._vocab = None  # which llama_cpp refuses, where it is used all the same

    @property
    def pointer(self) -> llama_cpp.llama_model_p:
        """For `llama_cpp`."""
        return self._model

    @property
    def bos_text(self) -> str:
        """How the start token is written; empty where there is none."""
        return self._written(llama_cpp.llama_vocab_bos(self._vocab))

    @property
    def eos_text(self) -> str:
        """How the end token is written; empty where there is none."""
        return self._written(llama_cpp.llama_vocab_eos(self._vocab))

    def _written(self, token: int) -> str:
        return self.text_of(token) if token != llama_cpp.LLAMA_TOKEN_NULL else ""

    def tokenize(self, text: str, *, special: bool = True, markup: bool = False) -> np.ndarray:
        """int32 tokens of `text`; with `special`, with the start token where the model wants one; with
        `markup`, special tokens that are written in the text count as such.
        """
        if llama_cpp.llama_vocab_type(self._vocab) == llama_cpp.LLAMA_VOCAB_TYPE_NONE:
            raise InputError(f"{self.name} has no tokenizer. Take a model that has one.")
        data = text.encode()
        tokens = np.empty(len(data) + 2, np.int32)
        pointer = tokens.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
        count = llama_cpp.llama_tokenize(self._vocab, data, len(data), pointer, len(tokens), special, markup)
        if count < 0:
            raise InputError(f"The tokenizer of {self.name} refuses the text.")
        return tokens[:count].copy()

    def pieces(self) -> Pieces:
        """A decoder from tokens to text."""
        return Pieces(self._vocab)

    def text_of(self, token: int) -> str:
        """The text of one token; empty in a model without a vocabulary."""
        if llama_cpp.llama_vocab_type(self._vocab) == llama_cpp.LLAMA_VOCAB_TYPE_NONE:
            return ""
        return self.pieces()(token)

    def is_end(self, token: int) -> bool:
        """Whether the model ends its text with `token`."""
        return bool(llama_cpp.llama_vocab_is_eog(self._vocab, token))

    def _describe(self) -> str:
        buffer = ctypes.create_string_buffer(256)
        llama_cpp.llama_model_desc(self._model, buffer, len(buffer))
        return buffer.value.decode()

    def check_context(self, n_ctx: int) -> int:
        """`n_ctx`, if the model was trained for so many tokens; InputError otherwise."""
        if not 0 < n_ctx <= self.n_ctx_train:
            raise InputError(
                f"A context of {n_ctx} tokens is not possible: {self.name} takes 1 to {self.n_ctx_train}. "
                f"Lower it to at most {self.n_ctx_train}."
            )
        return n_ctx

    def context(self, pair: Pair, n_ctx: int, *, swa_full: bool = False) -> Context:
        """A context of at most `n_ctx_train` tokens; see `Context`."""
        return Context(self, pair, self.check_context(n_ctx), swa_full=swa_full)


class Pieces:
    """Turns tokens into text one at a time; bytes of a character that is not complete yet wait."""

    def __init__(self, vocab: llama_cpp.llama_vocab_p) -> None:
        self._vocab = vocab
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def __call__(self, token: int) -> str:
        buffer = ctypes.create_string_buffer(512)
        size = llama_cpp.llama_token_to_piece(self._vocab, int(token), buffer, len(buffer), 0, True)
        return self._decoder.decode(buffer.raw[: max(size, 0)])


class Context:
    """A cache of the types in `pair` for `n_ctx` tokens. Decodes one sequence, with flash attention (but for
    f32/f32: there it would round everything to f16).

    Layers with a sliding window keep only the window, as in llama-cli and llama-server, or everything with
    `swa_full`, as in llama_cpp.Llama: then `truncate` is exact. `sequences` share the cache, as in
    llama-server. A pair that is not to be centred is not, whatever the switch says. Raises InputError, with
    llama.cpp's reason, when it refuses the pair or the size.
    """

    def __init__(
        self, model: Model, pair: Pair, n_ctx: int, *, swa_full: bool = False, sequences: int = 1
    ) -> None:
        self.model, self.pair, self.batch = model, pair, min(BATCH, n_ctx)
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = n_ctx, self.batch, self.batch
        params.n_seq_max, params.kv_unified, params.swa_full = sequences, True, swa_full
        params.n_threads = params.n_threads_batch = threads()
        params.type_k, params.type_v = type_id(pair.k), type_id(pair.v)
        params.flash_attn_type = (
            llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
            if pair == FLOOR
            else llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED
        )
        switch = contextlib.nullcontext() if pair.centred else centring(False)
        with native_log() as errors, switch:
            self._context = llama_cpp.llama_init_from_model(model._model, params)
        if not self._context:
            reason = errors[0] if errors else "llama.cpp gave no reason"
            raise InputError(f"llama.cpp refuses the cache {pair} for {model.name}: {reason}")
        self._memory = llama_cpp.llama_get_memory(self._context)
        self._batch = llama_cpp.llama_batch_init(self.batch, 0, 1)
        shape = (self.batch,)
        self._tokens = np.ctypeslib.as_array(self._batch.token, shape)
        self._positions = np.ctypeslib.as_array(self._batch.pos, shape)
        self._outputs = np.ctypeslib.as_array(self._batch.logits, shape)
        np.ctypeslib.as_array(self._batch.n_seq_id, shape)[:] = 1
        for i in range(self.batch):
            self._batch.seq_id[i][0] = 0

    def __enter__(self) -> Context:
        return self

    def __exit__(self, *_: object) -> None:
        llama_cpp.llama_batch_free(self._batch)
        with native_log():
            llama_cpp.llama_free(self._context)
        self._context = self._memory = None
        self._tokens = self._positions = self._outputs = np.empty(0, np.int32)  # they were the batch's

    @property
    def n_ctx(self) -> int:
        """Tokens that fit, after llama.cpp's padding."""
        return llama_cpp.llama_n_ctx(self._context)

    @property
    def memory(self) -> Memory:
        """What llama.cpp has allocated, or would have, without weights."""
        return Memory(tuple(DeviceMemory(*device) for device in _native.memory_of(self._address)))

    @property
    def _address(self) -> int:
        return ctypes.cast(self._context, ctypes.c_void_p).value or 0

    def decode(self, tokens: np.ndarray, position: int, *, outputs: int = 1) -> np.ndarray:
        """Append at most `batch` tokens at `position`.

        Returns the float32 logits (outputs, n_vocab) of the last `outputs` of them: a view that the next call
        overwrites.
        """
        n = len(tokens)
        self._tokens[:n] = tokens
        self._positions[:n] = np.arange(position, position + n)
        self._outputs[:n] = 0
        self._outputs[n - outputs : n] = 1
        self._batch.n_tokens = n
        with native_log() as errors:
            status = llama_cpp.llama_decode(self._context, self._batch)
        if status:
            reason = "; ".join(errors) or f"status {status}"
            raise InputError(
                f"llama.cpp cannot decode {n} tokens at {position} with the cache {self.pair}: {reason}"
            )
        shape = (outputs, self.model.n_vocab)
        if not outputs:
            return np.empty(shape, np.float32)
        logits = llama_cpp.llama_get_logits(self._context)
        if not logits:
            raise InputError(f"{self.model.name} does not predict tokens. Take a model that generates text.")
        return np.ctypeslib.as_array(logits, shape)

    def prefill(self, tokens: np.ndarray, position: int = 0) -> np.ndarray:
        """Append any number of tokens; returns the logits (n_vocab,) after the last."""
        starts = range(0, len(tokens), self.batch)
        for start in starts[:-1]:
            self.decode(tokens[start : start + self.batch], position + start, outputs=0)
        return self.decode(tokens[starts[-1] :], position + starts[-1])[0]

    def resume(self, tokens: np.ndarray, read: np.ndarray) -> tuple[np.ndarray, int]:
        """Have `tokens` in the cache, which holds at least `read` now, and forget what differs.

        Returns the logits (n_vocab,) after the last token, and how many did not have to be decoded again. A
        sliding window needs `swa_full` for this.
        """
        most = min(len(read), len(tokens) - 1)
        kept = next((i for i in range(most) if read[i] != tokens[i]), most)
        if not self.truncate(kept):
            self.clear()
            kept = 0
        return self.prefill(tokens[kept:], kept), kept

    def truncate(self, length: int) -> bool:
        """Forget everything from position `length` on; False where the model cannot (recurrent states)."""
        return bool(llama_cpp.llama_memory_seq_rm(self._memory, 0, length, -1))

    def clear(self) -> None:
        """Forget everything."""
        llama_cpp.llama_memory_clear(self._memory, True)


def memory_of(model: Model, pair: Pair, n_ctx: int, **how: int) -> Memory:
    """What llama.cpp allocates for a `Context`: asked of one, so cheap only if the model has no weights
    loaded.
    """
    with Context(model, pair, n_ctx, **how) as context:
        return context.memory
