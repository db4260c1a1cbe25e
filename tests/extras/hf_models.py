"""Small models of transformers with random weights, and the cache that ours must agree with."""

from __future__ import annotations

import torch
from transformers import AutoConfig, AutoModelForCausalLM, Cache, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

import llama_tq
from llama_tq.heads import KEY, VALUE, rotation_size
from llama_tq.torch.rotation import rotate

VOCABULARY = 160
_COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 96,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": 0,
    "initializer_range": 0.2,  # far from uniform answers
}
_SLIDING = ["sliding_attention", "full_attention"]
KINDS = {
    "llama": {},
    "qwen2": {},
    "qwen3": {"head_dim": 128},
    "mistral": {"sliding_window": 24},
    "gemma2": {"sliding_window": 24, "layer_types": _SLIDING},  # caps its scores
    "gemma3_text": {"sliding_window": 24, "layer_types": _SLIDING},
    "gpt_oss": {  # has sinks
        "sliding_window": 24,
        "layer_types": _SLIDING,
        "num_local_experts": 2,
        "num_experts_per_tok": 1,
    },
}


def make(kind: str, dtype: torch.dtype = torch.float32, **changes: object) -> PreTrainedModel:
    """A model of one of KINDS."""
    torch.manual_seed(7)
    config = AutoConfig.for_model(kind, **(_COMMON | KINDS[kind] | changes))
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=dtype).eval()
    if kind == "gpt_oss":
        for layer in model.model.layers:
            torch.nn.init.normal_(layer.self_attn.sinks)
    return model


def _coded(states: torch.Tensor, type: str, side: str) -> torch.Tensor:
    size = rotation_size(side, states.shape[-1])
    decoded = llama_tq.dequantize(llama_tq.quantize(rotate(states, size).numpy(), type), type)
    return rotate(torch.from_numpy(decoded), size).to(states.dtype)


def oracle(config: PreTrainedConfig, k: str, v: str) -> Cache:
    """transformers' dynamic cache, of keys and values that were encoded and decoded one by one."""

    class Full(DynamicLayer):
        def update(self, key_states, value_states, *args, **kwargs):
            return super().update(_coded(key_states, k, KEY), _coded(value_states, v, VALUE))

    class Sliding(DynamicSlidingWindowLayer):
        def update(self, key_states, value_states, *args, **kwargs):
            return super().update(_coded(key_states, k, KEY), _coded(value_states, v, VALUE))

    types = getattr(config, "layer_types", None) or (
        ["sliding_attention" if getattr(config, "sliding_window", None) else "full_attention"]
        * config.num_hidden_layers
    )
    sliding = {"sliding_attention": lambda: Sliding(config.sliding_window), "full_attention": Full}
    return Cache(layers=[sliding[type]() for type in types])


def prompt(batch: int = 1, tokens: int = 40) -> dict[str, torch.Tensor]:
    """Token ids, and the attention mask of sequences that are padded on the left, the first one most."""
    ids = torch.randint(2, VOCABULARY, (batch, tokens), generator=torch.manual_seed(3))
    mask = torch.ones_like(ids)
    for row in range(batch - 1):
        mask[row, : 5 * (batch - 1 - row)] = 0
    return {"input_ids": ids * mask, "attention_mask": mask}
