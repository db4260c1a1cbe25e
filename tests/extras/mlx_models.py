"""Models for mlx-lm: small random ones, and the one inside the package."""

from __future__ import annotations

import gguf
import gguf.quants
import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models import gemma3_text, llama, mamba, qwen3

from llama_tq.runtime import embedded

HEADS, KV_HEADS, HEAD, LAYERS, VOCABULARY = 4, 2, 64, 2, 100

_NAMES = {  # of llama.cpp's tensors
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
_COMMON = {
    "hidden_size": 128,
    "num_hidden_layers": LAYERS,
    "intermediate_size": 256,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "head_dim": HEAD,
    "rms_norm_eps": 1e-6,
    "vocab_size": VOCABULARY,
}


def random_llama(head: int = HEAD, seed: int = 0) -> nn.Module:
    """Grouped queries, full attention."""
    mx.random.seed(seed)
    options = {
        "head_dim": head,
        "tie_word_embeddings": False,
    }  # tied, it would repeat the last token for ever
    return llama.Model(llama.ModelArgs(model_type="llama", **{**_COMMON, **options}))


def random_gemma() -> nn.Module:
    """One layer with a sliding window of 8 and one without."""
    mx.random.seed(0)
    options = {"sliding_window": 8, "sliding_window_pattern": 2, "query_pre_attn_scalar": HEAD}
    return gemma3_text.Model(gemma3_text.ModelArgs(model_type="gemma3_text", **{**_COMMON, **options}))


def random_mamba() -> nn.Module:
    """No attention at all."""
    return mamba.Model(
        mamba.ModelArgs(
            model_type="mamba",
            vocab_size=VOCABULARY,
            hidden_size=64,
            intermediate_size=128,
            state_size=8,
            num_hidden_layers=1,
            conv_kernel=4,
            use_bias=False,
            use_conv_bias=True,
            time_step_rank=4,
        )
    )


def demo() -> nn.Module:
    """A trained model: the one inside the package, with its weights as float32."""
    reader = gguf.GGUFReader(embedded.MODEL)

    def value(key: str):
        return reader.get_field(f"qwen3.{key}").contents()

    model = qwen3.Model(
        qwen3.ModelArgs(
            model_type="qwen3",
            hidden_size=value("embedding_length"),
            num_hidden_layers=value("block_count"),
            intermediate_size=value("feed_forward_length"),
            num_attention_heads=value("attention.head_count"),
            rms_norm_eps=value("attention.layer_norm_rms_epsilon"),
            vocab_size=value("vocab_size"),
            num_key_value_heads=value("attention.head_count_kv"),
            max_position_embeddings=value("context_length"),
            rope_theta=value("rope.freq_base"),
            head_dim=value("attention.key_length"),
            tie_word_embeddings=True,
        )
    )
    weights = [
        (_name(t.name), mx.array(gguf.quants.dequantize(t.data, t.tensor_type))) for t in reader.tensors
    ]
    model.load_weights(weights)
    return model


def _name(tensor: str) -> str:
    if tensor.startswith("blk."):
        _, layer, part, kind = tensor.split(".")
        return f"model.layers.{layer}.{_NAMES[part]}.{kind}"
    return {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}[
        tensor
    ]
