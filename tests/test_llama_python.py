"""llama_cpp.Llama with cache types by name."""

from __future__ import annotations

import pickle

import llama_cpp
import numpy as np
import pytest
from llama_cpp import Llama
from llama_cpp._tq import cache_type, cache_types, native_errors

import llama_models
import llama_tq
from llama_session import model_file, tokens

TYPES = llama_tq.types()
NAMES = [t.name for t in TYPES]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(model_file(tmp_path_factory.mktemp("models"), llama_models.plain, 128))


def test_constants():
    for t in TYPES:
        assert getattr(llama_cpp, f"GGML_TYPE_{t.name.upper()}") == t.id
    assert cache_types().items() >= {t.name: t.id for t in TYPES}.items()


@pytest.mark.parametrize("name", [*NAMES, "f16", "bf16", "q8_0", "iq4_nl"])
def test_a_name_and_its_value_are_the_same(name):
    value = cache_types()[name]
    assert (
        cache_type(name, "type_k") == cache_type(value, "type_k") == cache_type(str(value), "type_k") == value
    )
    assert cache_type(name.upper(), "type_k") == value


@pytest.mark.parametrize("value", ["tq4", "", "q2_k", 10, 16, 43, -1, 1043, "1e3", 2.5])
@pytest.mark.parametrize("parameter", ["type_k", "type_v"])
def test_other_types_are_refused_before_the_model_is_read(parameter, value):
    with pytest.raises(ValueError, match=f"{parameter}: .* is not a KV cache type; use one of f32, .*tq4_0"):
        Llama("no-such-model.gguf", **{parameter: value}, verbose=False)


@pytest.mark.parametrize("name", NAMES)
def test_generates_text(model, name):
    llama = Llama(model, type_k=name, type_v=name, verbose=False)
    result = llama("abc", max_tokens=8, temperature=0)
    assert result["usage"]["completion_tokens"] >= 1


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, False),
        ({"type_k": "tq4_0"}, True),
        ({"type_v": "f16"}, False),
        ({"type_v": "bf16"}, False),
        ({"type_v": "tq4_0"}, True),
        ({"type_v": "q8_0"}, True),
        ({"type_v": "tq4_0", "flash_attn": True}, True),
        ({"flash_attn": True}, True),
        ({"flash_attn": False}, False),
    ],
)
def test_flash_attention_is_on_where_it_is_needed(model, arguments, expected):
    llama = Llama(model, verbose=False, **arguments)
    assert llama.context_params.flash_attn_type == int(expected)


def test_flash_attention_that_the_user_turned_off_stays_off(model):
    with pytest.raises(
        ValueError, match="V cache type tq3_0 needs flash attention, which is off; turn it on"
    ):
        Llama(model, type_v="tq3_0", flash_attn=False, verbose=False)


def test_pickle(model):
    llama = Llama(model, type_k="tq4_0", type_v="tq3_0", logits_all=True, verbose=False)
    text = tokens(20).tolist()
    llama.eval(text)
    copy = pickle.loads(pickle.dumps(llama))
    copy.eval(text)
    assert copy.context_params.type_k == llama_cpp.GGML_TYPE_TQ4_0
    assert copy.context_params.type_v == llama_cpp.GGML_TYPE_TQ3_0
    np.testing.assert_array_equal(copy.scores[:20], llama.scores[:20])


def test_state_round_trip(model):
    llama = Llama(model, type_k="tq4_0", type_v="tq4_0", logits_all=True, verbose=False)
    llama.eval(tokens(20).tolist())
    state = llama.save_state()
    llama.eval(tokens(5, seed=1).tolist())
    expected = llama.scores[20:25].copy()
    llama.reset()
    llama.load_state(state)
    llama.eval(tokens(5, seed=1).tolist())
    np.testing.assert_array_equal(llama.scores[20:25], expected)


def test_state_of_another_type_is_refused_with_the_reason(model):
    saved = Llama(model, type_k="tq4_0", type_v="tq4_0", verbose=False)
    saved.eval(tokens(20).tolist())
    other = Llama(model, type_k="tq3_0", type_v="tq4_0", verbose=False)
    with pytest.raises(RuntimeError, match="mismatched key type"):
        other.load_state(saved.save_state())
    assert other.n_tokens == 0
    other.eval(tokens(20).tolist())


def test_a_shift_that_is_impossible_raises(tmp_path):
    llama = Llama(str(model_file(tmp_path, llama_models.latent)), type_k="q8_0", type_v="q8_0", verbose=False)
    llama.eval(tokens(20).tolist())
    with pytest.raises(RuntimeError, match="cannot be shifted"):
        llama._ctx.kv_cache_seq_shift(0, 10, 20, -5)


def test_native_errors_leave_the_users_log_as_it_was(model):
    seen = []

    @llama_cpp.llama_log_callback
    def mine(level, text, _):
        seen.append(text.decode())

    before = llama_cpp.llama_log_callback()
    data = llama_cpp.llama_cpp.ctypes.c_void_p()
    api = llama_cpp.llama_cpp
    api.llama_log_get(api.byref(before), api.byref(data))
    try:
        api.llama_log_set(mine, data)
        with pytest.raises(ValueError, match="needs flash attention"):
            Llama(model, type_v="tq4_0", flash_attn=False, verbose=False)
        assert any("needs flash attention" in line for line in seen)
        seen.clear()
        with native_errors() as errors:
            api.llama_model_load_from_file(b"no-such-model.gguf", api.llama_model_default_params())
        assert errors
        assert seen
        seen.clear()
        api.llama_model_load_from_file(b"no-such-model.gguf", api.llama_model_default_params())
        assert seen
    finally:
        api.llama_log_set(before, data)


def test_server_settings_take_names_and_values(model):
    from llama_cpp.server.settings import ModelSettings

    settings = ModelSettings(model=model, type_k="tq4_0", type_v=8)
    assert (settings.type_k, settings.type_v, settings.flash_attn) == ("tq4_0", 8, None)


def test_server_command_line_takes_names(model):
    import argparse

    from llama_cpp.server.cli import add_args_from_model, parse_model_from_args
    from llama_cpp.server.model import LlamaProxy
    from llama_cpp.server.settings import ModelSettings

    parser = argparse.ArgumentParser()
    add_args_from_model(parser, ModelSettings)
    arguments = parser.parse_args(
        ["--model", model, "--type_k", "tq4_0", "--type_v", "8", "--verbose", "false"]
    )
    llama = LlamaProxy.load_llama_from_model_settings(parse_model_from_args(ModelSettings, arguments))
    assert llama.context_params.type_k == llama_cpp.GGML_TYPE_TQ4_0
    assert llama.context_params.type_v == llama_cpp.GGML_TYPE_Q8_0
