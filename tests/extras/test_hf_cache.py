"""The cache itself: what it holds, in how much memory, what is taken away from it, and what it refuses."""

from __future__ import annotations

import gc

import pytest
import torch
from transformers import AutoConfig, DynamicCache

import llama_tq.hf
from hf_models import KINDS, make, prompt
from llama_tq import reference
from llama_tq import torch as tq
from llama_tq.heads import KEY, VALUE, rotation_size
from llama_tq.hf import TurboQuantCache
from llama_tq.torch.rotation import rotate

TYPES = reference.TYPES


def config(**changes):
    return AutoConfig.for_model(
        "llama", hidden_size=256, num_attention_heads=4, num_hidden_layers=2, **changes
    )


def states(tokens: int, batch: int = 2, heads: int = 3, head: int = 64, seed: int = 0) -> torch.Tensor:
    return torch.randn(batch, heads, tokens, head, generator=torch.manual_seed(seed))


def coded(x: torch.Tensor, type: str, side: str) -> torch.Tensor:
    size = rotation_size(side, x.shape[-1])
    return rotate(tq.dequantize(tq.quantize(rotate(x, size), type), type), size)


@pytest.mark.parametrize("window", [0, 7])
def test_holds_what_came_in(window):
    """In steps of all sizes, so that its buffer grows; the newest tokens in full precision."""
    cache = TurboQuantCache(config(), "tq4_0", "tq3_0", window)
    x = states(500)
    for part in x.split([1, 70, 1, 200, 3, 225], 2):
        k, v = cache.update(part, -part, 0)
    assert cache.get_seq_length(0) == 500 and cache.get_seq_length(1) == 0
    packed = 500 - window
    assert torch.equal(k[:, :, :packed], coded(x[:, :, :packed], "tq4_0", KEY))
    assert torch.equal(v[:, :, :packed], coded(-x[:, :, :packed], "tq3_0", VALUE))
    assert torch.equal(k[:, :, packed:], x[:, :, packed:])


@pytest.mark.parametrize("window", [0, 7])
def test_sliding_window(window):
    """What the mask expects, step by step, and no more in memory than the window and its spare rows."""
    ours = TurboQuantCache(config(sliding_window=50), "tq4_0", "tq4_0", window)
    theirs = DynamicCache(config=config(sliding_window=50))
    x = states(900)
    for part in x.split([30, 1, 30, 60, *[1] * 300, 479], 2):
        sizes = ours.get_mask_sizes(part.shape[2], 0)
        assert sizes == theirs.get_mask_sizes(part.shape[2], 0)
        k, _ = ours.update(part, part, 0)
        expected, _ = theirs.update(part, part, 0)
        assert k.shape == expected.shape and k.shape[2] == sizes[0]
        assert (k - expected).norm() / expected.norm() < 0.08  # 23.9 dB
    row = 2 * 3 * TYPES["tq4_0"].block_bytes * 2
    assert ours.nbytes <= 2 * (row * (479 + 49 + 64) + window * 2 * 3 * 64 * 4)


def test_crop():
    """Into the packed rows and no further than the tokens that there are."""
    cache = TurboQuantCache(config(), window=7)
    x = states(40)
    cache.update(x, x, 0)
    cache.crop(-3)
    cache.crop(-10)
    k, _ = cache.update(x[:, :, :2], x[:, :, :2], 0)
    assert torch.equal(k[:, :, :27], coded(x[:, :, :27], "tq4_0", KEY))
    assert torch.equal(k[:, :, 27:], x[:, :, :2])
    with pytest.raises(ValueError, match="crop by 5: allowed are -29 to 0"):
        cache.layers[0].crop(5)


def test_crop_of_a_sliding_window_needs_what_was_dropped():
    x = states(60)
    cache = TurboQuantCache(config(sliding_window=20))
    cache.update(x, x, 0)
    with pytest.raises(RuntimeError, match="activate_past_recording"):
        cache.layers[0].crop(-1)
    recording = TurboQuantCache(config(sliding_window=20))
    recording.activate_past_recording()
    recording.update(x, x, 0)
    recording.layers[0].crop(-4)
    k, _ = recording.update(x[:, :, :1], x[:, :, :1], 0)
    assert torch.equal(k, coded(torch.cat([x[:, :, 37:56], x[:, :, :1]], 2), "tq4_0", KEY))


def test_sequences_of_the_batch():
    x = states(9, batch=3)
    cache = TurboQuantCache(config(), window=4)
    cache.update(x, x, 0)
    cache.reorder_cache(torch.tensor([2, 0, 0]))
    cache.batch_repeat_interleave(2)
    cache.batch_select_indices(torch.tensor([0, 3, 5]))
    k, _ = cache.update(x[:, :, :1], x[:, :, :1], 0)
    old = x[torch.tensor([2, 0, 0])]
    assert torch.equal(k[:, :, :6], coded(old[:, :, :6], "tq4_0", KEY))
    assert torch.equal(k[:, :, 6:9], old[:, :, 6:])


def test_reset():
    x = states(9)
    cache = TurboQuantCache(config())
    cache.update(x, x, 0)
    cache.reset()
    assert cache.get_seq_length() == 0 and cache.nbytes == 0
    k, _ = cache.update(x[:1, :, :3], x[:1, :, :3], 0)
    assert k.shape == (1, 3, 3, 64)


def live_bytes() -> int:
    """Of all tensors that there are."""
    gc.collect()
    storages = {}
    for thing in gc.get_objects():
        if isinstance(thing, torch.Tensor):
            storage = thing.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


@pytest.mark.parametrize("k, v", [("tq4_0", "tq4_0"), ("tq3_0", "tq3_0"), ("tq4_0", "tq2_1")])
def test_memory_goes_down_by_the_ratio_that_is_claimed(k, v):
    """Of all that PyTorch holds; a sixteenth of spare rows is allowed."""
    x = states(4000, batch=1).half()
    sizes = []
    for cache in (DynamicCache(config=config()), TurboQuantCache(config(), k, v)):
        before = live_bytes()
        for part in x.split(100, 2):
            for layer in range(2):
                cache.update(part, part, layer)
        del part
        sizes.append(live_bytes() - before)
    bits = (TYPES[k].bits_per_value + TYPES[v].bits_per_value) / 2
    assert sizes[0] == 2 * 2 * x.nbytes
    assert 16 / bits / (1 + 1 / 15) < sizes[0] / sizes[1] <= 16 / bits
    assert sizes[1] == cache.nbytes


@pytest.mark.parametrize(
    "kind, options, message",
    [
        ("llama", {"bits_k": 5}, "5 bits; allowed are 4"),
        ("llama", {"k": "q4_0"}, "q4_0.*allowed are tq4_0"),
        ("llama", {"window": -1}, "window is -1"),
        ("llama", {"attn_implementation": "nothing"}, "nothing"),
    ],
)
def test_patch_refuses(kind, options, message):
    with pytest.raises(ValueError, match=message):
        llama_tq.hf.patch(make(kind), **options)


@pytest.mark.parametrize(
    "head, message", [(48, "heads of 48 values; allowed are multiples of 32"), (32, "64 to")]
)
def test_patch_refuses_heads(head, message):
    model = make("llama", head_dim=head)
    with pytest.raises(ValueError, match=message):
        llama_tq.hf.patch(model)
    assert model.config._attn_implementation == "eager"  # nothing was done


@pytest.mark.parametrize(
    "kind, changes, message",
    [
        ("t5", {}, "t5 is an encoder with a decoder"),
        ("llama4_text", {"layer_types": ["chunked_attention"] * 2}, "layer 0 is of type chunked_attention"),
        ("qwen3_next", {"layer_types": ["linear_attention"] * 2}, "layer 0 is of type linear_attention"),
    ],
)
def test_models_that_are_not_covered(kind, changes, message):
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 32}
    with pytest.raises(ValueError, match=message):
        TurboQuantCache(AutoConfig.for_model(kind, **({} if kind == "t5" else sizes), **changes))


def test_a_model_with_attention_of_its_own():
    """It does not know the name, and keeps what it has."""
    model = make("llama")
    type(model)._can_set_attn_implementation, known = (
        lambda self: False,
        type(model)._can_set_attn_implementation,
    )
    try:
        with pytest.raises(ValueError, match="LlamaForCausalLM has attention of its own"):
            llama_tq.hf.patch(model)
    finally:
        type(model)._can_set_attn_implementation = known


def test_gradients_are_refused():
    model = make("llama")
    with pytest.raises(ValueError, match=r"torch.no_grad"):
        model(**prompt(), past_key_values=llama_tq.hf.patch(model))


@torch.no_grad()
def test_dropout_is_refused():
    model = make("llama", attention_dropout=0.5).train()
    with pytest.raises(ValueError, match="has no dropout"):
        model(**prompt(), past_key_values=llama_tq.hf.patch(model))


def test_offloading_is_refused():
    with pytest.raises(NotImplementedError, match="offloaded"):
        TurboQuantCache(config()).layers[0].offload()


def test_all_kinds_of_layers_are_those_of_the_model():
    sliding = {kind: TurboQuantCache(make(kind).config).is_sliding for kind in KINDS}
    assert sliding == {kind: DynamicCache(config=make(kind).config).is_sliding for kind in KINDS}
    assert sliding["gemma3_text"] == [True, False]
