"""Tiny GGUF models with random weights: head sizes, sliding windows, partial RoPE, learned positions, MLA."""

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
BIAS = 40.0  # of keys, in the channels that RoPE turns slowest, where queries are so much smaller

_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
TOKENS = ["<unk>", "<s>", "</s>", *_BYTES, "▁", *"abcdefghijklmnopqrstuvwxyz"]


class _Model:
    def __init__(
        self,
        path: Path,
        architecture: str,
        layers: int,
        head: int,
        kv_heads: int = KV_HEADS,
        heads: int = HEADS,
    ) -> None:
        self.writer = gguf.GGUFWriter(path, architecture)
        self.rng = np.random.default_rng(1)
        writer = self.writer
        writer.add_context_length(CONTEXT)
        writer.add_embedding_length(EMBEDDING)
        writer.add_block_count(layers)
        writer.add_feed_forward_length(FEED_FORWARD)
        writer.add_head_count(heads)
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

    def attention(
        self, layer: int, head: int, large: np.ndarray | None = None, query: np.ndarray | float = 1.0
    ) -> None:
        """`large`, (head,), multiplies channels of K and V; the result is the same. `query` those of Q."""
        large = np.ones(head) if large is None else large
        factors = ("q", HEADS, query / large), ("k", KV_HEADS, large), ("v", KV_HEADS, large)
        for name, heads, factor in factors:
            rows = np.tile(factor, heads)[:, None]
            self.tensor(f"blk.{layer}.attn_{name}.weight", EMBEDDING, heads * head, rows=rows)
        columns = np.tile(1 / large, HEADS)
        self.tensor(f"blk.{layer}.attn_output.weight", HEADS * head, EMBEDDING, rows=columns)
        self.tensor(f"blk.{layer}.attn_norm.weight", EMBEDDING)

    def means(
        self, layers: int, head: int, first_is_plain: bool = True, plain_tokens: tuple[int, ...] = (0,)
    ) -> None:
        """Means for centring, as large as the keys. Whatever they are, the result must be the same."""
        self.means_of(
            [self.rng.normal(size=KV_HEADS * head) for _ in range(layers)], first_is_plain, plain_tokens
        )

    def means_of(self, means: list[np.ndarray], first_is_plain: bool, plain_tokens: tuple[int, ...]) -> None:
        def array(key: str, values: list, kind: gguf.GGUFValueType) -> None:
            self.writer.add_key_value(f"tq.centre.{key}", values, gguf.GGUFValueType.ARRAY, sub_type=kind)

        integer, real = gguf.GGUFValueType.INT32, gguf.GGUFValueType.FLOAT32
        self.writer.add_uint32("tq.centre.version", 1)
        self.writer.add_bool("tq.centre.first_is_plain", first_is_plain)
        if plain_tokens:
            array("plain_tokens", list(plain_tokens), integer)
        array("heads", [KV_HEADS] * len(means), integer)
        array("turned", [1] * len(means), integer)
        array("energy_before", [2.0] * len(means), real)
        array("energy_after", [1.0] * len(means), real)
        for layer, mean in enumerate(means):
            array(f"mean.{layer}", [float(x) for x in mean], real)

    def feed_forward(self, layer: int, norm: str = "ffn") -> None:
        self.tensor(f"blk.{layer}.{norm}_norm.weight", EMBEDDING)
        self.tensor(f"blk.{layer}.ffn_gate.weight", EMBEDDING, FEED_FORWARD)
        self.tensor(f"blk.{layer}.ffn_up.weight", EMBEDDING, FEED_FORWARD)
        self.tensor(f"blk.{layer}.ffn_down.weight", FEED_FORWARD, EMBEDDING)

    def finish(self) -> None:
        self.writer.write_header_to_file()
        self.writer.write_kv_data_to_file()
        self.writer.write_tensors_to_file()
        self.writer.close()


def plain(path: Path, head: int, centred: bool = False, layers: int = 2) -> None:
    """llama: layers of 4 heads that share 2 KV heads. `centred` brings means, and token 0 as plain."""
    model = _Model(path, "llama", layers, head)
    model.writer.add_rope_dimension_count(head)
    if centred:
        model.means(layers, head)
    for layer in range(layers):
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


def _slowest(head: int, neox: bool) -> np.ndarray:
    """The channels of the last quarter of RoPE's pairs: whether each is one, (head,)."""
    pair = np.arange(head) % (head // 2) if neox else np.arange(head) // 2
    return pair >= head // 2 * 3 // 4


def key_bias(head: int, neox: bool, seed: int = 1) -> np.ndarray:
    """As Qwen2's: large, and in slow channels. (head,)"""
    return np.where(_slowest(head, neox), BIAS, 0.0) * np.random.default_rng(seed).normal(size=head)


def biased(
    path: Path,
    head: int,
    architecture: str = "seed_oss",
    seed: int = 1,
    scaling: str = "",
    means: list[np.ndarray] | None = None,
) -> None:
    """Keys with a large bias, the same everywhere. RoPE turns pairs (i, i + head / 2) in seed_oss,
    (2i, 2i + 1) in llama, and in three of four layers of smollm3. `scaling` is yarn, or "factors"
    of frequencies. `means` come with the model.
    """
    neox = architecture == "seed_oss"
    layers = 4 if architecture == "smollm3" else 2
    model = _Model(path, architecture, layers, head)
    model.writer.add_rope_dimension_count(head)
    if means:
        model.means_of(means, first_is_plain=False, plain_tokens=())
    if scaling == "factors":
        model.writer.add_tensor("rope_freqs.weight", np.linspace(1, 8, head // 2, dtype=np.float32))
    elif scaling:
        model.writer.add_rope_scaling_type(gguf.RopeScalingType(scaling))
        model.writer.add_rope_scaling_factor(4.0)
        model.writer.add_rope_scaling_orig_ctx_len(128)
    query = np.where(_slowest(head, neox), 1 / BIAS, 1.0)
    for layer in range(layers):
        model.attention(layer, head, query=query)
        model.feed_forward(layer, norm="post_attention" if neox else "ffn")
        for name, heads in (("q", HEADS), ("k", KV_HEADS), ("v", KV_HEADS)):
            values = np.tile(key_bias(head, neox, seed) * (name == "k"), heads)
            model.writer.add_tensor(f"blk.{layer}.attn_{name}.bias", values.astype(np.float32))
    model.finish()


def sliding_window(path: Path, head: int, centred: bool = False, layers: int = 6) -> None:
    """gemma3: every sixth layer sees everything, the others the last WINDOW tokens."""
    model = _Model(path, "gemma3", layers, head)
    if centred:
        model.means(layers, head)
    model.writer.add_sliding_window(WINDOW)
    for layer in range(layers):
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


def partial_rope(path: Path, head: int, centred: bool = False) -> None:
    """glm4: RoPE turns the first half of each head."""
    model = _Model(path, "glm4", 2, head)
    if centred:
        model.means(2, head)
    model.writer.add_rope_dimension_count(head // 2)
    for layer in range(2):
        model.attention(layer, head)
        for name in ("post_attention", "ffn", "post_ffw"):
            model.tensor(f"blk.{layer}.{name}_norm.weight", EMBEDDING)
        model.tensor(f"blk.{layer}.ffn_up.weight", EMBEDDING, 2 * FEED_FORWARD)
        model.tensor(f"blk.{layer}.ffn_down.weight", FEED_FORWARD, EMBEDDING)
    model.finish()


def learned_positions(path: Path, heads: int = HEADS) -> None:
    """gpt2: CONTEXT positions have an embedding, others none."""
    model = _Model(path, "gpt2", 1, EMBEDDING // heads, kv_heads=heads, heads=heads)
    model.tensor("position_embd.weight", EMBEDDING, CONTEXT)
    model.tensor("output_norm.bias", EMBEDDING)
    for name in ("attn_norm", "ffn_norm"):
        model.tensor(f"blk.0.{name}.weight", EMBEDDING)
        model.tensor(f"blk.0.{name}.bias", EMBEDDING)
    for name, width, height in (
        ("attn_qkv", EMBEDDING, 3 * EMBEDDING),
        ("attn_output", EMBEDDING, EMBEDDING),
        ("ffn_up", EMBEDDING, FEED_FORWARD),
        ("ffn_down", FEED_FORWARD, EMBEDDING),
    ):
        model.tensor(f"blk.0.{name}.weight", width, height)
        model.tensor(f"blk.0.{name}.bias", height)
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
