"""The kernels under compute-sanitizer: no access outside of what they own, and no race."""

from __future__ import annotations

import shutil

import pytest

import cuda_checks
import kernel_checks
from cuda_checks import Case
from llama_tq import reference
from test_cuda_device import build, convert

pytestmark = pytest.mark.cuda
CASES = [
    Case(),
    Case(k="tq3_0", v="tq2_1", tokens=3, rows=700, heads=10, kv_heads=2),
    Case(k="q8_0", v="tq3_0", k_dim=64, v_dim=96, tokens=2),
    Case(k="f16", tokens=70, rows=150, k_dim=256, v_dim=256),
    Case(tokens=70, rows=300, heads=6, kv_heads=2, centre="order", mask="heads"),
    Case(tokens=70, rows=300, heads=4, kv_heads=2, centre="order"),
    Case(streams=3, tokens=4, rows=90, kv_heads=2, centre="anyhow", sinks=True, softcap=3.0),
]


@pytest.fixture(scope="session")
def driver(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return build(tmp_path_factory.mktemp("sanitized"), "TQ_CUDA_RACECHECK_DRIVER", "-DTQ_CUDA_RACECHECK")


@pytest.fixture(params=["memcheck", "racecheck"])
def sanitized(request, driver: list[str]) -> list[str]:
    program = shutil.which("compute-sanitizer")
    assert program, "compute-sanitizer is not on the PATH; it comes with CUDA"
    return [program, "--tool", request.param, "--error-exitcode", "9", "--log-file", "/dev/stderr", *driver]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_attention(sanitized: list[str], case: Case):
    problem = cuda_checks.attention_checks.make(case)
    cuda_checks.attention_checks.assert_within(
        cuda_checks.run(sanitized, problem), *cuda_checks.solve(problem)
    )


@pytest.mark.parametrize("type", reference.TYPES)
def test_encoder_and_decoder(sanitized: list[str], type: str):
    x = kernel_checks.values(reference.TYPES[type])
    blocks = reference.quantize(x, type)
    assert convert(sanitized, "encode", type, x) == blocks.tobytes()
    assert convert(sanitized, "decode", type, blocks) == reference.dequantize(blocks, type).tobytes()


@pytest.mark.parametrize(
    "problem", [*cuda_checks.ADDED[::3], *cuda_checks.TURNED[::3]], ids=lambda p: str(p[0])
)
def test_attention_that_stores(sanitized: list[str], problem: tuple):
    cuda_checks.check_added(sanitized, *problem)
