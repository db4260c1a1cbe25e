"""The cache: transformers' own classes, with packed layers."""

from __future__ import annotations

import torch
from transformers import Cache, PreTrainedConfig
from transformers.cache_utils import CacheLayerMixin, get_layer_types_and_kwargs

from ..heads import KEY, VALUE, check_head
from ..reference import TypeSpec, check_type
from .attention import NAME
from .side import Packed, Side

LAYER_TYPES = ("full_attention", "sliding_attention")


class TurboQuantLayer(CacheLayerMixin):
    """Keys and values of one layer.

    With a sliding window only what the next token sees is kept, as by transformers' own sliding layer.

    :param config: of the decoder; says which attention the model has at the time
    :param k: type of the keys
    :param v: type of the values
    :param window: newest tokens in full precision
    :param sliding_window: of the layer; None for full attention
    """

    is_compileable = False
    is_croppable = True

    def __init__(
        self, config: PreTrainedConfig, k: TypeSpec, v: TypeSpec, window: int, sliding_window: int | None
    ) -> None:
        super().__init__()
        self.config, self.types, self.window, self.sliding_window = config, (k, v), window, sliding_window
        self.is_sliding = sliding_window is not None
        self.record_past = False
        self.cumulative_length = 0  # tokens seen

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Set dtype, device and shapes."""
        k, v = self.types
        self.keys = Side(key_states, k, KEY, self.window)
        self.values = Side(value_states, v, VALUE, self.window)
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs
    ) -> tuple[torch.Tensor | Packed, torch.Tensor | Packed]:
        """Take tokens in, and return what they attend to: packed for our attention, decoded for any other.

        :param key_states: ``(batch, heads, tokens, head)``, after RoPE
        :param value_states: likewise
        :raises ValueError: head sizes that are no multiples of 32, or states that need a gradient
        """
        if key_states.requires_grad or value_states.requires_grad:
            raise ValueError(
                "keys or values need a gradient, and a packed cache has none: use torch.no_grad()"
            )
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        count = key_states.shape[2]
        visible = self._visible(count)
        sides = (self.keys, self.values)
        for side, states in zip(sides, (key_states, value_states), strict=True):
            side.append(states)
        self.cumulative_length += count
        seen = tuple(side.newest(visible) for side in sides)
        if self.is_sliding and not self.record_past:
            self._forget()
        return seen if self.config._attn_implementation == NAME else tuple(side.dense() for side in seen)

    def _visible(self, count: int) -> int:
        """Tokens that the next `count` attend to, with these."""
        if not self.is_sliding:
            return self.cumulative_length + count
        return min(self.cumulative_length, self.sliding_window - 1) + count

    def _forget(self) -> None:
        """Drop what no later token of a sliding window sees."""
        for side in (self.keys, self.values):
            side.drop_oldest(max(len(side) - (self.sliding_window - 1), 0))

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Tokens that the next `query_length` attend to, with these, and the position of the first."""
        length = self._visible(query_length)
        return length, self.cumulative_length + query_length - length

    def get_seq_length(self) -> int:
        """Tokens seen."""
        return self.cumulative_length

    def get_max_length(self) -> int:
        """Tokens that it can hold: -1, any number, or the sliding window."""
        return self.sliding_window if self.is_sliding else -1

    @property
    def nbytes(self) -> int:
        """Bytes held, spare rows included."""
        return self.keys.nbytes + self.values.nbytes if self.is_initialized else 0

    def activate_past_recording(self) -> None:
        """Keep more than the sliding window, until :meth:`crop`."""
        self.record_past = True

    def crop(self, tokens_to_remove: int) -> None:
        """Take the newest tokens away; what was packed stays so.

        :param tokens_to_remove: 0 or a negative number, as transformers counts them
        :raises ValueError: a positive number, or more tokens than there are
        :raises RuntimeError: a sliding window has dropped tokens already that would be needed again
        """
        count = -tokens_to_remove
        if count >= 0 and not self.is_initialized:
            return  # a layer that reads the cache of another
        if not 0 <= count <= self.cumulative_length:
            allowed = f"{-self.cumulative_length} to 0"
            raise ValueError(f"crop by {tokens_to_remove}: allowed are {allowed}, the tokens to take away")
        if self.is_sliding and self.cumulative_length >= self.sliding_window and not self.record_past:
            raise RuntimeError("crop of a full sliding window: call activate_past_recording() before")
        for side in (self.keys, self.values):
            side.drop_newest(count)
        self.cumulative_length -= count
        if self.is_sliding:
            self._forget()

    def reset(self) -> None:
        """Forget everything."""
        self.keys = self.values = None
        self.is_initialized, self.cumulative_length = False, 0

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Take these sequences for the batch, for beam search."""
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep these sequences of the batch."""
        if self.is_initialized:
            self.keys.select(indices)
            self.values.select(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each sequence of the batch."""
        if self.is_initialized:
            self.batch_select_indices(torch.arange(self.keys.shape[0]).repeat_interleave(repeats))

    def offload(self) -> None:
        """Not supported."""
        raise NotImplementedError("a packed cache cannot be offloaded; it is small enough to stay")

    prefetch = offload


class TurboQuantCache(Cache):
    """A cache of a decoder's keys and values in TQ types, for ``past_key_values=``.

    :param config: of the model
    :param k: type of the keys, ``tq4_0``, ``tq3_0`` or ``tq2_1``
    :param v: type of the values
    :param window: so many of the newest tokens stay in full precision
    :raises ValueError: unknown type, a negative window, or a model that is not covered: an encoder with a
        decoder, layers other than full and sliding attention, heads of a size that is no multiple of 32
    """

    def __init__(self, config: PreTrainedConfig, k: str = "tq4_0", v: str = "tq4_0", window: int = 0) -> None:
        k_spec, v_spec = check_type(k), check_type(v)
        if window < 0:
            raise ValueError(f"window is {window}; allowed are 0 and more tokens")
        if config.is_encoder_decoder:
            raise ValueError(
                f"{config.model_type} is an encoder with a decoder; allowed are models with a decoder only"
            )
        decoder = config.get_text_config(decoder=True)
        head = getattr(decoder, "head_dim", None) or decoder.hidden_size // decoder.num_attention_heads
        check_head(head, f"{decoder.model_type} has heads")
        layers = []
        for number, (type, options) in enumerate(zip(*_layer_types(decoder), strict=True)):
            if type not in LAYER_TYPES:
                raise ValueError(f"layer {number} is of type {type}; allowed are {', '.join(LAYER_TYPES)}")
            sliding = options["sliding_window"] if type == "sliding_attention" else None
            layers.append(TurboQuantLayer(decoder, k_spec, v_spec, window, sliding))
        super().__init__(layers=layers)

    @property
    def nbytes(self) -> int:
        """Bytes held by all layers, spare rows included."""
        return sum(layer.nbytes for layer in self.layers)


def _layer_types(config: PreTrainedConfig) -> tuple[list[str], list[dict]]:
    """Type and options of each layer; older transformers have one set of options for all."""
    types, options = get_layer_types_and_kwargs(config)
    return types, options if isinstance(options, list) else [options] * len(types)
