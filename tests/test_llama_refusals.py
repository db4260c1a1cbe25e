"""What a TQ cache cannot do is refused when a context is made, by name and with what to do instead."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Callable
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


class Device:
    """The CPU as a GPU without some operations: a copy of its ggml_backend_device that answers otherwise."""

    # places in ggml_backend_device_i: 15 function pointers; two pointers follow it
    NAME, TYPE, SUPPORTS_OP, SIZE = 0, 3, 9, 17

    def __init__(self, refuses: Callable[[int], bool]) -> None:
        api._lib.ggml_backend_dev_by_type.restype = ctypes.c_void_p
        table = ctypes.c_void_p * self.SIZE
        self._table = table.from_buffer_copy(table.from_address(api._lib.ggml_backend_dev_by_type(0)))
        supports = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p, ctypes.c_void_p)
        name = ctypes.create_string_buffer(b"Toy")
        cpu_supports = supports(self._table[self.SUPPORTS_OP])
        self._functions = {
            self.NAME: ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)(lambda _: ctypes.addressof(name)),
            self.TYPE: ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)(lambda _: 1),  # a GPU
            self.SUPPORTS_OP: supports(lambda dev, op: not refuses(op) and cpu_supports(dev, op)),
        }
        for place, function in self._functions.items():
            self._table[place] = ctypes.cast(function, ctypes.c_void_p).value
        self.address = ctypes.addressof(self._table)


def writes(name: str) -> Callable[[int], bool]:
    """Whether an operation of ggml writes that type; the struct of a tensor starts with it."""
    value = next(t.id for t in llama_tq.types() if t.name == name)
    return lambda op: ctypes.c_int.from_address(op).value == value


def is_flash_attention(op: int) -> bool:
    api._lib.ggml_op_desc.restype = ctypes.c_char_p
    return api._lib.ggml_op_desc(ctypes.c_void_p(op)) == b"FLASH_ATTN_EXT"


@pytest.mark.parametrize("name", TYPES)
def test_device_that_cannot_store_the_type(directory, name):
    path = model_file(directory, llama_models.plain, 128)
    device = Device(refuses=writes(name))
    advice = "keep the cache in main memory (--no-kv-offload, offload_kqv=False) or use f16"
    reason = refusal(path, name, "f16", device=device.address)
    assert reason == f"Toy cannot hold a K cache of type {name}; {advice}"
    reason = refusal(path, "f16", name, device=device.address)
    assert reason == f"Toy cannot hold a V cache of type {name}; {advice}"
    with Session(path, "q8_0", "q8_0", device=device.address) as session:
        session.decode(tokens(5))
    with Session(path, name, name, device=device.address, offload_cache=False) as session:  # the advice
        session.decode(tokens(5))


def multiplies(name: str) -> Callable[[int], bool]:
    """Whether an operation of ggml is a product with a matrix of that type."""
    first_source = 152  # its place in a tensor

    def answer(op: int) -> bool:
        api._lib.ggml_op_desc.restype = ctypes.c_char_p
        is_product = api._lib.ggml_op_desc(ctypes.c_void_p(op)) == b"MUL_MAT"
        return is_product and writes(name)(ctypes.c_void_p.from_address(op + first_source).value)

    return answer


@pytest.mark.parametrize("name", TYPES)
def test_device_without_products(directory, name):
    """Without flash attention llama.cpp would copy the whole K cache to the CPU for every token."""
    path = model_file(directory, llama_models.plain, 128)
    device = Device(refuses=multiplies(name))
    off = api.LLAMA_FLASH_ATTN_TYPE_DISABLED
    reason = refusal(path, name, "f16", device=device.address, flash_attention=off)
    assert reason == (
        f"Toy needs flash attention for a K cache of type {name}, and it is off; "
        "turn it on (--flash-attn on, flash_attn=True) or use f16 for K"
    )
    with Session(path, name, "f16", device=device.address) as session:
        session.decode(tokens(5))


@pytest.mark.parametrize("name", TYPES)
def test_devices_that_share_layers(directory, name):
    path = model_file(directory, llama_models.plain, 128)
    device = Device(refuses=lambda op: False)
    tensor = {"device": device.address, "split": api.LLAMA_SPLIT_MODE_TENSOR}
    for pair in ((name, "f16"), ("f16", name)):
        reason = refusal(path, *pair, **tensor)
        assert reason == (
            f"cache type {name} does not support devices that share a layer (--split-mode tensor); "
            "use --split-mode layer, or q8_0"
        )


@pytest.mark.parametrize("name", TYPES)
def test_device_without_flash_attention(directory, name):
    path = model_file(directory, llama_models.plain, 128)
    device = Device(refuses=is_flash_attention)
    reason = refusal(path, name, "f16", device=device.address)
    assert f"Toy has no flash attention for a K cache of type {name} with a V cache of type f16" in reason
    off = api.LLAMA_FLASH_ATTN_TYPE_DISABLED
    with Session(path, name, "f16", device=device.address, flash_attention=off) as session:
        session.decode(tokens(5))


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
