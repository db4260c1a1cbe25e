"""What a TQ cache cannot do is refused when a context is made, by name and with what to do instead."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import llama_cpp.llama_cpp as api
import pytest

import llama_models
import llama_tq
from llama_session import Session, model_file, tokens

TYPES = [t.name for t in llama_tq.types()]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


def refusal(path: Path, type_k: str, type_v: str, **options: object) -> str:
    with pytest.raises(ValueError) as error:
        Session(path, type_k, type_v, **options)
    return str(error.value)


@pytest.mark.parametrize("head", [80, 112])
@pytest.mark.parametrize("name", TYPES)
def test_head_sizes_that_no_block_divides(directory, name, head):
    path = model_file(directory, llama_models.plain, head)
    reason = f"cache type {name} needs head sizes that are multiples of 32, and layer 0 has {head}"
    assert refusal(path, name, name) == f"K {reason}; use f16 or bf16 for K"
    assert refusal(path, "f16", name) == f"V {reason}; use f16 or bf16 for V"


@pytest.mark.parametrize("name", TYPES)
def test_v_without_flash_attention(directory, name):
    path = model_file(directory, llama_models.plain, 128)
    reason = refusal(path, "f16", name, flash_attention=api.LLAMA_FLASH_ATTN_TYPE_DISABLED)
    assert reason == (
        f"V cache type {name} needs flash attention, which is off; "
        "turn it on (--flash-attn on, flash_attn=True) or use f16 for V"
    )


@pytest.mark.parametrize("name", TYPES)
def test_flash_attention_auto_is_enough(directory, name):
    path = model_file(directory, llama_models.plain, 128)
    with Session(path, name, name, flash_attention=api.LLAMA_FLASH_ATTN_TYPE_AUTO) as session:
        session.decode(tokens(5))


@pytest.mark.parametrize("name", TYPES)
def test_latent_attention(directory, name):
    path = model_file(directory, llama_models.latent)
    assert "deepseek2" in refusal(path, name, name)
    assert "use f16 or bf16" in refusal(path, name, name)
    assert f"cache type {name}" in refusal(path, "f16", name)
    with Session(path, "f16", "f16") as session:
        session.decode(tokens(5))


def test_latent_attention_with_a_quantized_cache_is_not_shifted(directory):
    path = model_file(directory, llama_models.latent)
    with Session(path, "q8_0", "q8_0") as session:
        assert not api.llama_memory_can_shift(session.memory)
    with Session(path, "f16", "f16") as session:
        assert api.llama_memory_can_shift(session.memory)


def in_a_new_process(path: Path, type_k: int | str, type_v: int | str, **environment: str) -> str:
    """The exception of llama_cpp.Llama there. The process must end by itself: an abort is a failure."""
    code = (
        "import sys, llama_cpp\n"
        "path, k, v = sys.argv[1:]\n"
        "try:\n"
        "    llama_cpp.Llama(path, type_k=k, type_v=v, verbose=False)\n"
        "except ValueError as error:\n"
        "    print(error)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, path, str(type_k), str(type_v)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


@pytest.mark.parametrize("name", TYPES)
def test_rotation_turned_off(directory, name):
    path = model_file(directory, llama_models.plain, 128)
    for pair in ((name, "f16"), ("f16", name)):
        reason = in_a_new_process(path, *pair, LLAMA_ATTN_ROT_DISABLE="1")
        assert (
            f"cache type {name} needs the rotation that LLAMA_ATTN_ROT_DISABLE=1 turns off; unset it"
            in reason
        )
    assert in_a_new_process(path, name, name, LLAMA_ATTN_ROT_DISABLE="0") == ""
    assert in_a_new_process(path, "q8_0", "q8_0", LLAMA_ATTN_ROT_DISABLE="1") == ""


def test_instruction_set_that_is_none(directory):
    path = model_file(directory, llama_models.plain, 128)
    assert "LLAMA_TQ_ISA" in in_a_new_process(path, "tq4_0", "tq4_0", LLAMA_TQ_ISA="mmx")


@pytest.mark.parametrize("value", [-1, 4, 43, 500, 1039, 1043, 1 << 30])
def test_ids_without_a_type(directory, value):
    """Below llama_cpp, where nothing else looks at them."""
    path = model_file(directory, llama_models.plain, 128)
    code = (
        "import sys\n"
        "import llama_cpp.llama_cpp as api\n"
        "model = api.llama_model_load_from_file(sys.argv[1].encode(), api.llama_model_default_params())\n"
        "params = api.llama_context_default_params()\n"
        "params.type_k = int(sys.argv[2])\n"
        "print(api.llama_init_from_model(model, params))\n"
    )
    result = subprocess.run([sys.executable, "-c", code, path, str(value)], capture_output=True, text=True)
    assert (result.returncode, result.stdout.strip()) == (0, "None"), result.stderr
    assert f"there is no cache type with the id {value}" in result.stderr
