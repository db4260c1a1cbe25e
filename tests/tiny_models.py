"""Writers of tiny GGUF models, one per kind of cache that llama.cpp has. Random weights, no tokenizer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np

VOCABULARY, WIDTH, FEED_FORWARD, CONTEXT = 64, 128, 64, 8192
WINDOW = 512
INNER, STATE, CONVOLUTION = 2 * WIDTH, 16, 4  # of the recurrent layers


@dataclass(frozen=True)
class Tiny:
    """A model, and by hand what its cache takes."""

    write: Callable[[Path], None]
    k_per_token: int
    """Values that every token adds to the K cache."""
    v_per_token: int
    windowed: int = 0
    """K values, and V values, per cell in the layers with a sliding window."""
    state_bytes: int = 0
    """Recurrent state of one sequence."""


def _writer(
    path: Path,
    arch: str,
    layers: int,
    heads: int,
    kv_heads: int | list[int],
    head: int,
    v_head: int | None = None,
) -> gguf.GGUFWriter:
    writer = gguf.GGUFWriter(path, arch)
    writer.add_tokenizer_model("no_vocab")
    writer.add_vocab_size(VOCABULARY)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(head)
    writer.add_value_length(v_head or head)
    writer.add_layer_norm_rms_eps(1e-6)
    _tensor(writer, "token_embd.weight", WIDTH, VOCABULARY)
    _tensor(writer, "output_norm.weight", WIDTH)
    return writer


def _tensor(writer: gguf.GGUFWriter, name: str, *shape: int) -> None:
    """`shape` in ggml's order."""
    rng = np.random.default_rng(len(writer.tensors[0]))
    value = (
        np.ones(shape, np.float32) if "norm" in name else rng.normal(0, 0.1, shape[::-1]).astype(np.float32)
    )
    writer.add_tensor(name, value)


def _attention(writer: gguf.GGUFWriter, layer: int, heads: int, kv_heads: int, head: int) -> None:
    for name, width in (("q", heads * head), ("k", kv_heads * head), ("v", kv_heads * head)):
        _tensor(writer, f"blk.{layer}.attn_{name}.weight", WIDTH, width)
    _tensor(writer, f"blk.{layer}.attn_output.weight", heads * head, WIDTH)
    _tensor(writer, f"blk.{layer}.attn_norm.weight", WIDTH)


def _feed_forward(writer: gguf.GGUFWriter, layer: int) -> None:
    _tensor(writer, f"blk.{layer}.ffn_norm.weight", WIDTH)
    _tensor(writer, f"blk.{layer}.ffn_gate.weight", WIDTH, FEED_FORWARD)
    _tensor(writer, f"blk.{layer}.ffn_up.weight", WIDTH, FEED_FORWARD)
    _tensor(writer, f"blk.{layer}.ffn_down.weight", FEED_FORWARD, WIDTH)


def _recurrent(writer: gguf.GGUFWriter, layer: int, rank: int) -> None:
    _tensor(writer, f"blk.{layer}.attn_norm.weight", WIDTH)
    _tensor(writer, f"blk.{layer}.ssm_in.weight", WIDTH, 2 * INNER)
    _tensor(writer, f"blk.{layer}.ssm_conv1d.weight", CONVOLUTION, INNER)
    _tensor(writer, f"blk.{layer}.ssm_conv1d.bias", INNER)
    _tensor(writer, f"blk.{layer}.ssm_x.weight", INNER, rank + 2 * STATE)
    _tensor(writer, f"blk.{layer}.ssm_dt.weight", rank, INNER)
    _tensor(writer, f"blk.{layer}.ssm_dt.bias", INNER)
    _tensor(writer, f"blk.{layer}.ssm_a", STATE, INNER)
    _tensor(writer, f"blk.{layer}.ssm_d", INNER)
    _tensor(writer, f"blk.{layer}.ssm_out.weight", INNER, WIDTH)


def _recurrent_keys(writer: gguf.GGUFWriter, rank: int) -> None:
    writer.add_ssm_conv_kernel(CONVOLUTION)
    writer.add_ssm_inner_size(INNER)
    writer.add_ssm_state_size(STATE)
    writer.add_ssm_time_step_rank(rank)


def _finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def grouped_query(path: Path) -> None:
    """llama: 3 layers, 4 heads that share 2 KV heads of 64."""
    writer = _writer(path, "llama", 3, 4, 2, 64)
    writer.add_rope_dimension_count(64)
    for layer in range(3):
        _attention(writer, layer, 4, 2, 64)
        _feed_forward(writer, layer)
    _finish(writer)


def sliding_window(path: Path) -> None:
    """gemma3: 7 layers of which the sixth sees everything and the others 512 tokens."""
    writer = _writer(path, "gemma3", 7, 2, 1, 64)
    writer.add_sliding_window(WINDOW)
    for layer in range(7):
        _attention(writer, layer, 2, 1, 64)
        _feed_forward(writer, layer)
        for name, width in (("post_attention", WIDTH), ("attn_k", 64), ("attn_q", 64), ("post_ffw", WIDTH)):
            _tensor(writer, f"blk.{layer}.{name}_norm.weight", width)
    _finish(writer)


def recurrent(path: Path) -> None:
    """mamba: 2 layers, no attention at all."""
    writer = _writer(path, "mamba", 2, 0, 0, 0)
    _recurrent_keys(writer, rank=8)
    for layer in range(2):
        _recurrent(writer, layer, rank=8)
    _finish(writer)


def hybrid(path: Path) -> None:
    """jamba: 4 layers, the second with attention, the others recurrent."""
    writer = _writer(path, "jamba", 4, 2, [0, 1, 0, 0], 64)
    _recurrent_keys(writer, rank=8)
    for layer in range(4):
        if layer == 1:
            _attention(writer, layer, 2, 1, 64)
        else:
            _recurrent(writer, layer, rank=8)
            for name, width in (("dt", 8), ("b", STATE), ("c", STATE)):
                _tensor(writer, f"blk.{layer}.ssm_{name}_norm.weight", width)
        _feed_forward(writer, layer)
    _finish(writer)


def latent(path: Path) -> None:
    """deepseek2: 2 layers whose cache is one latent vector of 64 + 32 values per token, and no V."""
    rank, rope, nope, heads = 64, 32, 32, 2
    writer = _writer(path, "deepseek2", 2, heads, 1, rank + rope, rank)
    writer.add_key_length_mla(nope + rope)
    writer.add_value_length_mla(nope)
    writer.add_kv_lora_rank(rank)
    writer.add_q_lora_rank(32)
    writer.add_rope_dimension_count(rope)
    writer.add_leading_dense_block_count(2)
    writer.add_expert_feed_forward_length(FEED_FORWARD)
    writer.add_expert_shared_count(1)
    for layer in range(2):
        _tensor(writer, f"blk.{layer}.attn_norm.weight", WIDTH)
        _tensor(writer, f"blk.{layer}.attn_q_a_norm.weight", 32)
        _tensor(writer, f"blk.{layer}.attn_kv_a_norm.weight", rank)
        _tensor(writer, f"blk.{layer}.attn_q_a.weight", WIDTH, 32)
        _tensor(writer, f"blk.{layer}.attn_q_b.weight", 32, heads * (nope + rope))
        _tensor(writer, f"blk.{layer}.attn_kv_a_mqa.weight", WIDTH, rank + rope)
        _tensor(writer, f"blk.{layer}.attn_k_b.weight", nope, rank, heads)
        _tensor(writer, f"blk.{layer}.attn_v_b.weight", rank, nope, heads)
        _tensor(writer, f"blk.{layer}.attn_output.weight", heads * nope, WIDTH)
        _feed_forward(writer, layer)
    _finish(writer)


_LAYER_STATE = 4 * ((CONVOLUTION - 1) * INNER + STATE * INNER)  # float32

MODELS = {
    "grouped_query": Tiny(grouped_query, k_per_token=3 * 2 * 64, v_per_token=3 * 2 * 64),
    "sliding_window": Tiny(sliding_window, k_per_token=64, v_per_token=64, windowed=6 * 64),
    "recurrent": Tiny(recurrent, k_per_token=0, v_per_token=0, state_bytes=2 * _LAYER_STATE),
    "hybrid": Tiny(hybrid, k_per_token=64, v_per_token=64, state_bytes=3 * _LAYER_STATE),
    "latent": Tiny(latent, k_per_token=2 * (64 + 32), v_per_token=0),
}
