"""The demo model, by transformers' own reader of GGUF files: trained heads, and text that is new to it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

import llama_tq.hf

DATA = Path(llama_tq.hf.__file__).parents[1] / "data"
GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "demo_tokens.json").read_text())


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(DATA, gguf_file="demo.gguf", dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(DATA, gguf_file="demo.gguf")


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: repr(case["text"][:20]))
def test_tokens_are_those_of_llama_cpp(tokenizer, case):
    assert tokenizer(case["text"], add_special_tokens=False).input_ids == case["ids"]


@pytest.fixture(scope="module")
def exact(model, tokenizer):
    """Token ids, and log probabilities with a cache in full precision."""
    ids = tokenizer((DATA / "heldout.txt").read_text(), return_tensors="pt").input_ids[:, :1024]
    return ids, log_probabilities(model, ids, DynamicCache(config=model.config))


@torch.no_grad()
def log_probabilities(model, ids, cache):
    """Of the second half, of which 128 tokens go in at a time."""
    half = ids.shape[1] // 2
    model(ids[:, :half], past_key_values=cache)
    parts = [model(part, past_key_values=cache).logits[0] for part in ids[:, half:].split(128, 1)]
    return torch.cat(parts).log_softmax(-1)


@pytest.mark.parametrize(
    "k, v, window, divergence",
    [
        # llama.cpp without centred keys: 0.0049 and 0.0216 (README.md), on more of the text
        ("tq4_0", "tq4_0", 0, 0.0075),
        ("tq3_0", "tq3_0", 0, 0.032),
        ("tq4_0", "tq2_1", 0, 0.045),
        ("tq4_0", "tq4_0", 128, 0.005),
    ],
)
def test_divergence(model, exact, k, v, window, divergence):
    """About half above what was measured, and never so good that the cache cannot have been used."""
    ids, base = exact
    logs = log_probabilities(model, ids, llama_tq.hf.patch(model, k=k, v=v, window=window))
    kld = (base.exp() * (base - logs)).sum(-1).mean().item()
    assert divergence / 5 < kld < divergence
    next_token = ids[0, ids.shape[1] // 2 + 1 :, None]
    perplexity, expected = ((-x[:-1].gather(1, next_token)).mean().exp().item() for x in (logs, base))
    assert perplexity == pytest.approx(expected, rel=0.05)
    assert (logs.argmax(-1) == base.argmax(-1)).float().mean() > 0.9  # what greedy decoding would write
