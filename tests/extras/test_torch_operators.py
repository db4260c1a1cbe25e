"""The operators on the CPU: the bytes of the reference, attention within its bound, compilation, refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import llama_tq
from kernel_checks import values
from llama_tq import reference
from llama_tq import torch as tq
from llama_tq.torch.rotation import matrix, rotate
from torch_problems import CASES, check, inputs, log_sums, make, rounded_by

TYPES = list(reference.TYPES)


@pytest.mark.parametrize("type", TYPES)
def test_bytes_and_floats_of_the_reference(type):
    x = values(reference.TYPES[type]).reshape(-1, 64)
    b = tq.quantize(torch.from_numpy(x), type)
    np.testing.assert_array_equal(b.numpy(), reference.quantize(x, type))
    floats = tq.dequantize(b, type).numpy()
    np.testing.assert_array_equal(floats.view(np.int32), reference.dequantize(b.numpy(), type).view(np.int32))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_encoded_as_the_float32_it_is(dtype):
    x = torch.randn(3, 5, 96, generator=torch.manual_seed(0)).to(dtype)
    assert torch.equal(tq.quantize(x, "tq3_0"), tq.quantize(x.float(), "tq3_0"))


def test_strides_of_any_kind():
    x = torch.randn(6, 4, 64, generator=torch.manual_seed(0))
    assert torch.equal(tq.quantize(x.transpose(0, 1), "tq4_0"), tq.quantize(x, "tq4_0").transpose(0, 1))
    b = tq.quantize(x, "tq2_1")
    assert torch.equal(tq.dequantize(b.transpose(0, 1), "tq2_1"), tq.dequantize(b, "tq2_1").transpose(0, 1))
    assert tq.quantize(x[:, :0], "tq4_0").shape == (6, 0, 36)


@pytest.mark.parametrize("n", [32, 64, 256])
def test_rotation_is_orthonormal_and_undoes_itself(n):
    h = matrix(n, torch.device("cpu")).double()
    assert torch.equal(h, h.T)
    torch.testing.assert_close(h @ h, torch.eye(n).double(), atol=1e-6, rtol=0)
    x = torch.randn(5, 2 * n, generator=torch.manual_seed(0))
    torch.testing.assert_close(rotate(rotate(x, n), n), x, atol=1e-5, rtol=0)


def test_store_writes_its_rows_and_no_other():
    x = torch.randn(2, 3, 5, 128, generator=torch.manual_seed(0)).to(torch.bfloat16)
    rows = torch.full((2, 3, 12, 72), 170, dtype=torch.uint8)
    tq.store(x, rows, 4, "tq4_0", 64)
    assert torch.equal(rows[:, :, 4:9], tq.quantize(rotate(x, 64), "tq4_0"))
    assert (rows[:, :, :4] == 170).all() and (rows[:, :, 9:] == 170).all()


@pytest.mark.parametrize("isa", llama_tq._core.supported_isas())
@pytest.mark.parametrize("case", CASES, ids=str)
def test_attention(case, isa):
    problem = make(case)
    with llama_tq.force_isa(isa):
        result, lse = tq.attention(**inputs(problem))
    error = rounded_by(problem, isa)
    check(problem, result, error, isa)
    keys = np.abs(reference.dequantize(problem.k, case.k)).sum(-1).max()
    np.testing.assert_allclose(
        lse.numpy(), log_sums(problem), atol=error.max() * keys * problem.scale + 1e-4, rtol=1e-5
    )


@pytest.mark.parametrize("tokens, rows", [(1, 40), (5, 40), (300, 300), (600, 700)])
def test_past_is_the_mask_that_it_stands_for(tokens, rows):
    """Also where queries are taken in several parts, of two sequences."""
    q = torch.randn(2, 4, tokens, 64, generator=torch.manual_seed(0))
    k, v = (tq.quantize(torch.randn(2, 2, rows, 64, generator=torch.manual_seed(i)), "tq4_0") for i in (1, 2))
    past = rows - tokens
    seen = torch.arange(rows) <= past + torch.arange(tokens)[:, None]
    options = {"k_type": "tq4_0", "v_type": "tq4_0"}
    masked = tq.attention(q, k, v, **options, mask=seen[None, None])
    added = tq.attention(q, k, v, **options, mask=torch.where(seen, 0.0, torch.finfo().min)[None, None])
    plain = tq.attention(q, k, v, **options, past=past)
    for other in (masked, added):
        torch.testing.assert_close(
            plain, other, atol=0.02, rtol=0
        )  # chunks of the cache differ, so do roundings
    assert torch.equal(masked[0], added[0])


def test_a_view_into_a_larger_cache():
    q = torch.randn(2, 4, 3, 64, generator=torch.manual_seed(0)).to(torch.float16)
    rows = tq.quantize(torch.randn(2, 2, 90, 64, generator=torch.manual_seed(1)), "tq4_0")
    part = rows[:, :, 7:60]
    inside, apart = (tq.attention(q, x, x, "tq4_0", "tq4_0") for x in (part, part.contiguous()))
    assert torch.equal(inside[0], apart[0]) and inside[0].dtype == torch.float16


def test_operators_are_sound():
    """Schemas, shapes and dispatch, by PyTorch's own checks."""
    x, b = torch.randn(2, 2, 5, 64), torch.zeros(2, 2, 5, 36, dtype=torch.uint8)
    ops = torch.ops.llama_tq
    checks = ("test_schema", "test_faketensor", "test_autograd_registration")
    for op, arguments in (
        (ops.quantize, (x, "tq4_0")),
        (ops.dequantize, (b, "tq4_0")),
        (ops.store, (x, b, 0, "tq4_0", 64)),
        (ops.attention, (x, b, b, "tq4_0", "tq4_0", None, None, 0.125, 0.0)),
    ):
        torch.library.opcheck(op.default, arguments, test_utils=checks)


def test_compiled_without_a_break():
    def step(x, rows, q):
        tq.store(x, rows, 3, "tq4_0", 64)
        y = tq.dequantize(tq.quantize(x * 2, "tq3_0"), "tq3_0")
        return y, tq.attention(q, rows, rows, "tq4_0", "tq4_0")[0] + 1

    x, q = torch.randn(1, 2, 5, 64), torch.randn(1, 4, 5, 64)
    rows = torch.zeros(1, 2, 9, 36, dtype=torch.uint8)
    compiled_rows = rows.clone()
    expected = step(x, rows, q)
    got = torch.compile(step, backend="aot_eager", fullgraph=True)(x, compiled_rows, q)
    assert torch.equal(rows, compiled_rows)
    torch.testing.assert_close(got, expected, atol=0, rtol=0)


def _attention(**changes):
    arguments = {
        "q": torch.zeros(1, 4, 1, 64),
        "k": torch.zeros(1, 2, 8, 36, dtype=torch.uint8),
        "v": torch.zeros(1, 2, 8, 36, dtype=torch.uint8),
        "k_type": "tq4_0",
        "v_type": "tq4_0",
    }
    return tq.attention(**(arguments | changes))


U8 = torch.uint8


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: tq.quantize(torch.zeros(32), "q4_0"), ValueError, "q4_0.*allowed are tq4_0"),
        (lambda: tq.quantize(torch.zeros(33), "tq4_0"), ValueError, "33.*multiple of 32"),
        (lambda: tq.quantize(torch.zeros(32).double(), "tq4_0"), TypeError, "float64.*allowed are float32"),
        (lambda: tq.dequantize(torch.zeros(17, dtype=U8), "tq4_0"), ValueError, "17.*multiple of 18"),
        (lambda: tq.dequantize(torch.zeros(18), "tq4_0"), TypeError, "float32.*allowed is uint8"),
        (
            lambda: tq.store(torch.zeros(1, 1, 2, 32), torch.zeros(1, 1, 4, 14, dtype=U8), 0, "tq4_0", 32),
            ValueError,
            "14.*multiple of 18",
        ),
        (
            lambda: tq.store(torch.zeros(1, 1, 2, 32), torch.zeros(1, 2, 4, 18, dtype=U8), 0, "tq4_0", 32),
            ValueError,
            r"\(1, 2, 4, 18\).*\(1, 1, 4, 18\)",
        ),
        (
            lambda: tq.store(torch.zeros(1, 1, 2, 32), torch.zeros(1, 1, 4, 18, dtype=U8), 3, "tq4_0", 32),
            ValueError,
            "start is 3; 2 tokens",
        ),
        (
            lambda: tq.store(torch.zeros(1, 1, 2, 96), torch.zeros(1, 1, 4, 54, dtype=U8), 0, "tq4_0", 64),
            ValueError,
            "rotation is 64",
        ),
        (lambda: _attention(q=torch.zeros(1, 4, 1, 96)), ValueError, "36 bytes.* 96 take 54"),
        (lambda: _attention(q=torch.zeros(1, 3, 1, 64)), ValueError, "groups of heads"),
        (lambda: _attention(q=torch.zeros(4, 1, 64)), ValueError, "must have 4"),
        (lambda: _attention(q=torch.zeros(1, 4, 0, 64)), ValueError, "nothing to attend"),
        (lambda: _attention(v=torch.zeros(1, 2, 8, 18, dtype=U8)), ValueError, "32 values; allowed are 64"),
        (lambda: _attention(mask=torch.zeros(1, 1, 1, 7)), ValueError, r"\(1, 8\)"),
        (lambda: _attention(mask=torch.zeros(1, 1, 1, 8), past=7), ValueError, "past is 7"),
        (lambda: _attention(past=-1), ValueError, "past is -1"),
    ],
)
def test_refusals(call, error, message):
    with pytest.raises(error, match=message):
        call()
