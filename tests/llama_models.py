"""Tiny GGUF models with random weights: every head size, sliding windows, partial RoPE, latent attention."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

EMBEDDING = 96
FEED_FORWARD = 64
HEADS, KV_HEADS = 4, 2
CONTEXT = 4096
WINDOW = 16
OUTLIER = 16
RANK = 64  # of the latent attention

_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
TOKENS = ["<unk>", "<s>", "</s>", *_BYTES, "▁", *"abcdefghijklmnopqrstuvwxyz"]


class _Model:
    def __init__(
        self, path: Path, architecture: str, layers: int, head: int, kv_heads: int = KV_HEADS
    ) -> None:
        self.writer = gguf.GGUFWriter(path, architecture)
        self.rng = np.random.default_rng(1)
        writer = self.writer
        writer.add_context_length(CONTEXT)
        writer.add_embedding_length(EMBEDDING)
        writer.add_block_count(layers)
        writer.add_feed_forward_length(FEED_FORWARD)
        writer.add_head_count(HEADS)
        writer.add_head_count_kv(kv_heads)
        writer.add_key_length(head)
        writer.add_value_length(head)
        writer.add_layer_norm_eps(1e-6)
        writer.add_layer_norm_rms_eps(1e-6)
        writer.add_tokenizer_model("llama")
        writer.add_token_list(TOKENS)
        writer.add_token_scores([0.0] * len(TOKENS))
        byte, control = gguf.TokenType.BYTE, gguf.TokenType.CONTROL
        normal = [gguf.TokenType.NORMAL] * (len(TOKENS) - 3 - len(_BYTES))
        writer.add_token_types([control, control, control, *[byte] * len(_BYTES), *normal])
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
        self.tensor("token_embd.weight", EMBEDDING, len(TOKENS))
        self.tensor("output_norm.weight", EMBEDDING)
        self.tensor("output.weight", EMBEDDING, len(TOKENS))

    def tensor(self, name: str, *shape: int, rows: np.ndarray | float = 1.0) -> None:
        """A tensor whose output keeps the variance of its input, times `rows`; `shape` in ggml's order."""
        if "norm" in name:
            value = np.full(shape, 0.0 if name.endswith("bias") else 1.0)
        else:
            value = self.rng.normal(0.0, 1.0 / np.sqrt(shape[0]), shape[::-1])
        self.writer.add_tensor(name, (value * rows).astype(np.float32))

    def attention(self, layer: int, head: int, large: np.ndarray | None = None) -> None:
        """`large`, (head,), multiplies the channels of K and V; the result is the same."""
        large = np.ones(head) if large is None else large
        for name, heads, factor in (("q", HEADS, 1 / large), ("k", KV_HEADS, large), ("v", KV_HEADS, large)):
            rows = np.tile(factor, heads)[:, None]
            self.tensor(f"blk.{layer}.attn_{name}.weight", EMBEDDING, heads * head, rows=rows)
        columns = np.tile(1 / large, HEADS)
        self.tensor(f"blk.{layer}.attn_output.weight", HEADS * head, EMBEDDING, rows=columns)
        self.tensor(f"blk.{layer}.attn_norm.weight", EMBEDDING)

    def feed_forward(self, layer: int) -> None:
        self.tensor(f"blk.{layer}.ffn_norm.weight", EMBEDDING)
        self.tensor(f"blk.{layer}.ffn_gate.weight", EMBEDDING, FEED_FORWARD)
        self.tensor(f"blk.{layer}.ffn_up.weight", EMBEDDING, FEED_FORWARD)
        self.tensor(f"blk.{layer}.ffn_down.weight", FEED_FORWARD, EMBEDDING)

    def finish(self) -> None:
        self.writer.write_header_to_file()
        self.writer.write_kv_data_to_file()
        self.writer.write_tensors_to_file()
        self.writer.close()


def plain(path: Path, head: int) -> None:
    """llama: 2 layers of 4 heads that share 2 KV heads."""
    model = _Model(path, "llama", 2, head)
    model.writer.add_rope_dimension_count(head)
    for layer in range(2):
        model.attention(layer, head)
        model.feed_forward(layer)
    model.finish()


def outliers(path: Path, head: int) -> None:
    """`plain` with two large channels of K and V among 16, which Q and the output projection make up for."""
    model = _Model(path, "llama", 2, head)
    model.writer.add_rope_dimension_count(head)
    large = np.where(np.arange(head) % 16 < 2, OUTLIER, 1.0)  # RoPE turns such pairs
    for layer in range(2):
        model.attention(layer, head, large)
        model.feed_forward(layer)
    model.finish()


def sliding_window(path: Path, head: int) -> None:
    """gemma3: of 6 layers, the last sees everything and the others the last WINDOW tokens."""
    model = _Model(path, "gemma3", 6, head)
    model.writer.add_sliding_window(WINDOW)
    for layer in range(6):
        model.attention(layer, head)
        model.feed_forward(layer)
        for name, width in (
            ("post_attention", EMBEDDING),
            ("attn_k", head),
            ("attn_q", head),
            ("post_ffw", EMBEDDING),
        ):
            model.tensor(f"blk.{layer}.{name}_norm.weight", width)
    model.finish()


def partial_rope(path: Path, head: int) -> None:
    """glm4: RoPE turns the first half of each head."""
    model = _Model(path, "glm4", 2, head)
    model.writer.add_rope_dimension_count(head // 2)
    for layer in range(2):
        model.attention(layer, head)
        for name in ("post_attention", "ffn", "post_ffw"):
            model.tensor(f"blk.{layer}.{name}_norm.weight", EMBEDDING)
        model.tensor(f"blk.{layer}.ffn_up.weight", EMBEDDING, 2 * FEED_FORWARD)
        model.tensor(f"blk.{layer}.ffn_down.weight", FEED_FORWARD, EMBEDDING)
    model.finish()


def latent(path: Path) -> None:
    """deepseek2: K and V are one latent row of RANK + 32 values."""
    rope, nope = 32, 32
    model = _Model(path, "deepseek2", 2, RANK + rope, kv_heads=1)
    writer = model.writer
    writer.add_key_length_mla(nope + rope)
    writer.add_value_length_mla(nope)
    writer.add_kv_lora_rank(RANK)
    writer.add_q_lora_rank(32)
    writer.add_rope_dimension_count(rope)
    writer.add_leading_dense_block_count(2)
    writer.add_expert_feed_forward_length(FEED_FORWARD)
    writer.add_expert_shared_count(1)
    for layer in range(2):
        model.tensor(f"blk.{layer}.attn_norm.weight", EMBEDDING)
        model.tensor(f"blk.{layer}.attn_q_a_norm.weight", 32)
        model.tensor(f"blk.{layer}.attn_kv_a_norm.weight", RANK)
        model.tensor(f"blk.{layer}.attn_q_a.weight", EMBEDDING, 32)
        model.tensor(f"blk.{layer}.attn_q_b.weight", 32, HEADS * (nope + rope))
        model.tensor(f"blk.{layer}.attn_kv_a_mqa.weight", EMBEDDING, RANK + rope)
        model.tensor(f"blk.{layer}.attn_k_b.weight", nope, RANK, HEADS)
        model.tensor(f"blk.{layer}.attn_v_b.weight", RANK, nope, HEADS)
        model.tensor(f"blk.{layer}.attn_output.weight", HEADS * nope, EMBEDDING)
        model.feed_forward(layer)
    model.finish()
