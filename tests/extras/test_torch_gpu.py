"""The operators in Triton: on a GPU, or else by Triton's interpreter; and what its compiler makes of them."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from kernel_checks import blocks, values
from llama_tq import reference
from llama_tq import torch as tq
from llama_tq.torch.gpu import attention, codec
from llama_tq.torch.rotation import rotate
from torch_problems import CASES, FLOAT, check, inputs, log_sums, make

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TYPES = list(reference.TYPES)

# What a test of all hostile numbers costs the interpreter: every so many of them.
SPARSE = 1 if DEVICE == "cuda" else 32


def on_device(x: np.ndarray | torch.Tensor) -> torch.Tensor:
    return torch.as_tensor(x).to(DEVICE)


@pytest.mark.parametrize("type", TYPES)
def test_bytes_of_the_reference(type):
    x = values(reference.TYPES[type])[::SPARSE]
    got = codec.quantize(on_device(x), type).cpu().numpy()
    wrong = (got != reference.quantize(x, type)).any(1)
    assert not wrong.any(), f"{wrong.sum()} of {len(x)} blocks, the first of {x[wrong][0]}"


@pytest.mark.parametrize("type", TYPES)
def test_floats_of_the_reference(type):
    """Every scale word, and every index of both codebooks."""
    b = blocks(reference.TYPES[type])[::SPARSE]
    got = codec.dequantize(on_device(b), type).cpu().numpy()
    np.testing.assert_array_equal(got.view(np.int32), reference.dequantize(b, type).view(np.int32))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    x = torch.randn(3, 2, 96, generator=torch.manual_seed(0)).to(dtype)
    got = codec.quantize(on_device(x), "tq3_0").cpu().numpy()
    np.testing.assert_array_equal(got, reference.quantize(x.float().numpy(), "tq3_0"))


@pytest.mark.parametrize("head, size", [(64, 64), (96, 32), (128, 128), (128, 64), (256, 256)])
def test_store(head, size):
    """Strided states, into rows between others: it decodes to the rotated states, about."""
    spec = reference.TYPES["tq4_0"]
    x = on_device(torch.randn(2, 5, 3, head, generator=torch.manual_seed(0))).transpose(1, 2)
    rows = on_device(torch.full((2, 3, 9, head // 32 * spec.block_bytes), 170, dtype=torch.uint8))
    codec.store(x, rows, 2, "tq4_0", size)
    rows, turned = rows.cpu(), rotate(x.cpu(), size)
    assert (rows[:, :, :2] == 170).all() and (rows[:, :, 7:] == 170).all()
    # A sum in another order may cross a rounding, seldom.
    same = rows[:, :, 2:7] == tq.quantize(turned, "tq4_0")
    assert same.float().mean() > 0.99
    error = tq.dequantize(rows[:, :, 2:7].contiguous(), "tq4_0") - turned
    assert error.norm() / turned.norm() < 0.08


@pytest.mark.parametrize("multiprocessors", [1, 16])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_attention(case, multiprocessors):
    """Whole and in parts. Queries and weights are rounded to halves."""
    problem = make(case)
    arguments = {
        name: on_device(x.contiguous()) if isinstance(x, torch.Tensor) else x
        for name, x in inputs(problem).items()
    }
    result, lse = attention.attention(**arguments, past=None, multiprocessors=multiprocessors)
    half = 2.0**-11
    error = half * np.abs(problem.q) + 2.0**-24 * np.abs(problem.q).max(-1, keepdims=True)
    # Weights add up to 1; each is off by half of its last bit, or of the least bit of a half.
    v = reference.dequantize(problem.v, case.v)
    weights = 2 * half * np.abs(v).max((1, 2), keepdims=True)[..., :1, :1, :]
    check(problem, result.cpu(), error, None, weights)
    keys = np.linalg.norm(reference.dequantize(problem.k, case.k), axis=-1).max()
    size = np.linalg.norm(problem.q, axis=-1).max() * keys * problem.scale
    np.testing.assert_allclose(
        lse.cpu().numpy(), log_sums(problem), atol=(half + 64 * FLOAT) * size, rtol=1e-6
    )


@pytest.mark.parametrize("tokens, rows", [(5, 40), (70, 90)])
def test_past_is_the_mask_that_it_stands_for(tokens, rows):
    q = torch.randn(2, 4, tokens, 64, generator=torch.manual_seed(0)).to(torch.float16)
    k, v = (tq.quantize(torch.randn(2, 2, rows, 64, generator=torch.manual_seed(i)), "tq4_0") for i in (1, 2))
    past = rows - tokens
    seen = torch.arange(rows) <= past + torch.arange(tokens)[:, None]
    added = torch.where(seen, 0.0, torch.finfo(torch.float16).min)
    q, k, v, seen, added = map(
        on_device, (q, k, v, seen[None, None].expand(2, -1, -1, -1), added[None, None])
    )
    options = ("tq4_0", "tq4_0")
    plain = attention.attention(q, k, v, *options, None, past, 0.125, 0.0, 4)
    for mask in (seen, added):
        masked = attention.attention(q, k, v, *options, mask, None, 0.125, 0.0, 4)
        torch.testing.assert_close(plain, masked, atol=2e-3, rtol=0)
    assert plain[0].dtype == torch.float16


def test_a_cache_is_split_to_fill_the_device():
    assert attention.plan(8, 32768, 3 * 132, 64) == 704  # 47 parts: 376 programs
    assert attention.plan(8, 100, 3 * 132, 64) == 128  # one part
    assert attention.plan(4096, 32768, 4 * 132, 64) == 32768  # enough programs already


@pytest.mark.parametrize("head", [64, 128, 256])
def test_unpacked_numbers_stay_in_registers(head):
    """Only weights pass through shared memory while a cache is read, if anything does: Triton lets lanes have
    what attention.LAST and PAIRS say, in the version that is installed.
    """
    source = f"""
import re, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from llama_tq.torch.gpu import attention
from llama_tq.torch.gpu.decode import decode_kernel as kernel
from llama_tq.torch.gpu.words import books
side = dict(BITS=4, BYTES=18, BOOKS=books("tq4_0"), BLOCKS={head} // 32, WIDTH={head} // 32)
constants = {{f"{{which}}_{{name}}": value for which in "KV" for name, value in side.items()}}
constants |= dict(K_SIZE={head}, MASK=0, CAUSAL=False, CAPPED=False, COLUMNS=attention.COLUMNS)
constants |= dict(TILE=attention.TILE, WARPS=attention.WARPS, ASM=True)
constants |= dict(LAST=attention.LAST, PAIRS=attention.PAIRS)
pointers = dict(q="*fp16", k="*i16", v="*i16", mask="*fp16", out="*fp32", lse="*fp32")
pointers |= dict(scale="fp32", softcap="fp32")
names = kernel.arg_names
signature = {{n: "constexpr" if n in constants else pointers.get(n, "i32") for n in names}}
made = triton.compile(
    ASTSource(kernel, signature, constexprs={{(names.index(n),): v for n, v in constants.items()}}),
    target=GPUTarget("cuda", 90, 32),
    options=dict(num_warps=attention.WARPS, num_stages=1),
)
loop = made.asm["ttgir"].split("scf.for")[1].split("scf.yield")[0]
print(loop.count("ttg.local_alloc"), loop.count("tt.dot "), *set(re.findall(r"kWidth = (\\d)", loop)))
"""
    result = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, env=_compiling())
    assert result.returncode == 0, result.stderr
    through_memory, products, *together = map(int, result.stdout.split())
    assert products == 2
    assert through_memory <= 1
    assert together == [2 * attention.PAIRS]


@pytest.mark.parametrize("type", TYPES)
def test_the_encoder_contracts_nothing(type):
    """No fused multiply-add in what the compiler makes for an H100; with them, bytes would differ."""
    source = f"""
import re, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from llama_tq.reference import TYPES
from llama_tq.torch.gpu.codec import encode_kernel as kernel
spec = TYPES[{type!r}]
constants = dict(START=spec.search_start, COUNT=spec.search_count, BITS=spec.bits, BYTES=spec.block_bytes)
constants |= dict(SIZE=128, ROW=1, ROTATE=True, N=4)
pointers = dict(x="*fp32", out="*u8", errors="*i32", midpoints="*i32")
names = kernel.arg_names
signature = {{n: "constexpr" if n in constants else pointers.get(n, "i32") for n in names}}
for fusion in (False, True):
    made = triton.compile(
        ASTSource(kernel, signature, constexprs={{(names.index(n),): v for n, v in constants.items()}}),
        target=GPUTarget("cuda", 90, 32),
        options=dict(num_warps=1, enable_fp_fusion=fusion),
    )
    print(len(re.findall(r"\\bfma\\.", made.asm["ptx"])))
"""
    result = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, env=_compiling())
    assert result.returncode == 0, result.stderr
    without, with_fusion = map(int, result.stdout.split())
    assert without == 0
    assert with_fusion > 0  # else the test would see nothing


def _compiling() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}


@pytest.mark.cuda
@pytest.mark.skipif(DEVICE == "cpu", reason="this machine has no NVIDIA GPU")
def test_operators_on_the_gpu():
    """By dispatch, under torch.compile, beside the CPU."""

    def step(x, rows, q):
        tq.store(x, rows, 3, "tq4_0", 64)
        y = tq.dequantize(tq.quantize(x * 2, "tq3_0"), "tq3_0")
        return y, tq.attention(q, rows, rows, "tq4_0", "tq4_0")[0] + 1

    x, q = (torch.randn(1, heads, 5, 64, generator=torch.manual_seed(0)) for heads in (2, 4))
    rows = torch.zeros(1, 2, 9, 36, dtype=torch.uint8)
    gpu = [on_device(part) for part in (x, rows.clone(), q)]
    expected = step(x, rows, q)
    got = torch.compile(step, fullgraph=True)(*gpu)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a.cpu(), b, atol=0.05, rtol=0)
