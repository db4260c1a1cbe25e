"""The shipped model: what it must be for the demo to mean something."""

import json
from pathlib import Path

import gguf
import pytest
from llama_cpp import Llama

from llama_tq.demo import HELD_OUT, MODEL

GOLDEN = json.loads((Path(__file__).parent / "golden" / "demo_tokens.json").read_text())


@pytest.fixture(scope="module")
def metadata() -> gguf.GGUFReader:
    return gguf.GGUFReader(MODEL)


@pytest.fixture(scope="module")
def vocabulary() -> Llama:
    return Llama(str(MODEL), vocab_only=True, verbose=False)


def test_model_is_small():
    assert MODEL.stat().st_size <= 8_000_000


def test_model_has_head_size_128_and_grouped_kv_heads(metadata):
    field = {
        name: metadata.get_field(f"qwen3.attention.{name}").contents()
        for name in ("key_length", "value_length", "head_count", "head_count_kv")
    }
    assert field["key_length"] == field["value_length"] == 128
    assert field["head_count"] == 2 * field["head_count_kv"]


@pytest.mark.parametrize("sample", GOLDEN, ids=range(len(GOLDEN)))
def test_tokenizer_is_the_one_trained(vocabulary, sample):
    assert vocabulary.tokenize(sample["text"].encode(), add_bos=False) == sample["ids"]


def test_tokenizer_loses_nothing(vocabulary):
    text = HELD_OUT.read_bytes()[:20_000]
    ids = vocabulary.tokenize(text, add_bos=False)
    assert b"".join(vocabulary.detokenize([i]) for i in ids) == text
