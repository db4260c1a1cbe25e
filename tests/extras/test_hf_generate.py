"""`generate()` with the packed cache gives what it gives with keys and values coded one by one."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache

import llama_tq.hf
from hf_models import KINDS, make, oracle, prompt
from llama_tq.hf import ATTENTION, TurboQuantCache

MODES = {
    "greedy": {},
    "beams": {"num_beams": 3},
    "lookup": {"prompt_lookup_num_tokens": 3},  # rolls tokens back
    "samples": {"do_sample": True, "num_return_sequences": 2},
}


def generate(model, cache, mode, **options):
    torch.manual_seed(11)
    return model.generate(
        **prompt(1 if mode == "lookup" else 3),
        past_key_values=cache,
        return_dict_in_generate=True,
        output_logits=True,
        **{"max_new_tokens": 24, "do_sample": False, **MODES[mode], **options},
    )


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", KINDS)
def test_decoded_cache_is_the_oracle(kind, mode):
    """Token for token, and to the rounding of float32: past sliding windows, with padding, in all modes."""
    model = make(kind)
    expected = generate(model, oracle(model.config, "tq4_0", "tq3_0"), mode)
    cache = llama_tq.hf.patch(model, bits_k=4, bits_v=3, attn_implementation="eager")
    got = generate(model, cache, mode)
    assert torch.equal(got.sequences, expected.sequences)
    torch.testing.assert_close(got.logits, expected.logits, atol=1e-3, rtol=1e-3)


@torch.no_grad()
def forced(model, cache, inputs, steps=(30, 1, 1, 5, 3)):
    """Logits of tokens that are given, in so many at a time."""
    logits, first = [], 0
    for count in steps:
        part = slice(first, first + count)
        mask = inputs["attention_mask"][:, : part.stop]
        position = (mask.cumsum(1) - 1).clamp(min=0)[:, part]  # as generate() counts
        out = model(
            inputs["input_ids"][:, part], attention_mask=mask, position_ids=position, past_key_values=cache
        )
        logits.append(out.logits)
        first += count
    return torch.cat(logits, 1)[inputs["attention_mask"][:, :first].bool()]


def distance(a, b):
    return ((a - b).norm() / b.norm()).item()


@pytest.mark.parametrize("kind", KINDS)
def test_packed_attention(kind):
    """It rounds queries and weights to 8 bits (csrc/cpu/attention/attention.h): that moves logits by less
    than the code of the cache does, and both by less than a coarser code.
    """
    model, inputs = make(kind), prompt(3)
    coded = forced(model, oracle(model.config, "tq4_0", "tq4_0"), inputs)
    coarse = forced(model, oracle(model.config, "tq2_1", "tq2_1"), inputs)
    exact = forced(model, DynamicCache(config=model.config), inputs)
    cache = llama_tq.hf.patch(model)
    packed = forced(model, cache, inputs)
    assert model.config._attn_implementation == ATTENTION
    assert distance(packed, coded) < distance(coded, exact)
    assert distance(packed, exact) < distance(coarse, exact)


@pytest.mark.parametrize("attention", [ATTENTION, "eager"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_window_of_all_tokens_changes_nothing(kind, attention):
    model, inputs = make(kind), prompt(3)
    exact = forced(model, DynamicCache(config=model.config), inputs)
    cache = llama_tq.hf.patch(model, window=64, attn_implementation=attention)
    torch.testing.assert_close(forced(model, cache, inputs), exact, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("kind", ["llama", "gemma3_text"])
def test_a_window_keeps_the_newest_tokens(kind):
    """Both attentions see the same mixture of packed and full precision."""
    model, inputs = make(kind), prompt(3)
    exact = forced(model, DynamicCache(config=model.config), inputs)
    decoded = forced(model, llama_tq.hf.patch(model, window=9, attn_implementation="eager"), inputs)
    packed = forced(model, llama_tq.hf.patch(model, window=9), inputs)
    assert distance(packed, decoded) < distance(decoded, exact)


@pytest.mark.parametrize("mode", ["beams", "lookup", "samples"])
@pytest.mark.parametrize("kind", KINDS)
def test_generate_on_the_packed_cache(kind, mode):
    model = make(kind)
    cache = llama_tq.hf.patch(model)
    out = generate(model, cache, mode)
    assert out.sequences.shape[1] == 64
    assert cache.get_seq_length() == 63
    assert all(step.isfinite().all() for step in out.logits)


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_on_the_packed_cache(kind):
    """The same as its tokens one by one, where nothing is rolled back or reordered."""
    model = make(kind)
    out = generate(model, llama_tq.hf.patch(model), "greedy")
    mask = torch.cat([prompt(3)["attention_mask"], torch.ones(3, 24, dtype=torch.long)], 1)
    inputs = {"input_ids": out.sequences, "attention_mask": mask}
    logits = forced(model, llama_tq.hf.patch(model), inputs, (40, *[1] * 23))
    last = logits.split(mask[:, :-1].sum(1).tolist())
    torch.testing.assert_close(
        torch.stack(out.logits, 1), torch.stack([row[-24:] for row in last]), atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("attention", [ATTENTION, "sdpa"])
def test_half_precision(dtype, attention):
    model, inputs = make("llama", dtype), prompt(2)
    exact = forced(model, DynamicCache(config=model.config), inputs)
    fine, coarse = (
        forced(model, llama_tq.hf.patch(model, bits, bits, attn_implementation=attention), inputs)
        for bits in (4, 2)
    )
    assert fine.dtype == dtype
    assert distance(fine.float(), exact.float()) < distance(coarse.float(), exact.float()) / 2


def test_assistant():
    """A packed cache for the model, while an assistant has one of its own."""
    model, assistant = make("llama"), make("llama", num_hidden_layers=1)
    expected = model.generate(
        **prompt(), past_key_values=oracle(model.config, "tq4_0", "tq4_0"), max_new_tokens=24, do_sample=False
    )
    cache = llama_tq.hf.patch(model, attn_implementation="eager")
    got = model.generate(
        **prompt(), past_key_values=cache, assistant_model=assistant, max_new_tokens=24, do_sample=False
    )
    assert torch.equal(got, expected)


def test_without_the_cache_a_patched_model_is_as_before():
    model = make("llama")
    model.set_attn_implementation("sdpa")
    expected = model.generate(**prompt(3), max_new_tokens=8, do_sample=False)
    llama_tq.hf.patch(model)
    assert torch.equal(model.generate(**prompt(3), max_new_tokens=8, do_sample=False), expected)


def test_compiled_model():
    model, inputs = make("llama"), prompt(2)
    expected = forced(model, llama_tq.hf.patch(model), inputs)
    compiled = torch.compile(model, backend="aot_eager", dynamic=True)
    got = forced(compiled, TurboQuantCache(model.config), inputs)
    torch.testing.assert_close(got, expected, atol=1e-3, rtol=1e-3)


@pytest.mark.cuda
@pytest.mark.parametrize("kind", KINDS)
def test_packed_attention_on_the_gpu(kind):
    """Triton's, within the same limit as the CPU's; and generate() to the end."""
    model, inputs = make(kind), prompt(3)
    coded = forced(model, oracle(model.config, "tq4_0", "tq4_0"), inputs)
    exact = forced(model, DynamicCache(config=model.config), inputs)
    model, inputs = model.cuda(), {name: value.cuda() for name, value in inputs.items()}
    packed = forced(model, llama_tq.hf.patch(model), inputs)
    assert distance(packed.cpu(), coded) < distance(coded, exact)
    out = model.generate(
        **inputs, past_key_values=llama_tq.hf.patch(model, bits_k=4, bits_v=2), max_new_tokens=40, num_beams=2
    )
    assert out.shape == (3, 80)
