"""The attention kernels of this machine and of AArch64, and ggml's flash attention with and without them."""

from __future__ import annotations

import ctypes
import dataclasses
from pathlib import Path

import numpy as np
import pytest

import attention_checks
import drivers
import llama_tq
from attention_checks import CASES, GGML_IDS, Case, Problem

TIERS = list(dict.fromkeys(kernel.isa for kernel in llama_tq.kernels() if kernel.supported))
THREADS = (1, 2, 5)


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return drivers.build("attention_driver.c", tmp_path_factory.mktemp("driver"))


@pytest.fixture(scope="module")
def aarch64_driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return drivers.build_static(drivers.AARCH64, "attention_driver.c", tmp_path_factory.mktemp("aarch64"))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_tier_is_within_the_bound_whatever_the_threads(driver: list[str], case: Case):
    problem = attention_checks.make(case)
    for isa in TIERS:
        results = [attention_checks.run(driver, problem, isa, threads) for threads in THREADS]
        attention_checks.check(problem, results[0], isa)
        assert len({result.tobytes() for result in results}) == 1, isa
        assert attention_checks.run(driver, problem, isa, 1, by_row=False).tobytes() == results[0].tobytes()


@pytest.mark.parametrize(("tier", "cpu"), (("neon", "cortex-a53"), ("neon_dotprod", "max")))
@pytest.mark.parametrize("case", CASES, ids=str)
def test_neon_is_within_the_bound(aarch64_driver: Path, case: Case, tier: str, cpu: str):
    problem = attention_checks.make(case)
    result = attention_checks.run(drivers.emulate(aarch64_driver, cpu), problem, tier, 3)
    attention_checks.check(problem, result, tier)


@pytest.mark.parametrize("wrong", (np.nan, np.inf, -np.inf))
@pytest.mark.parametrize("rows", (60, 1300))
def test_a_query_that_is_not_finite_is_not_hidden(driver: list[str], wrong: float, rows: int):
    problem = attention_checks.make(Case(tokens=3, rows=rows))
    shape = (*problem.q.shape[:-1], problem.case.v_dim)
    for isa in TIERS:
        good = attention_checks.run(driver, problem, isa, 2).reshape(shape)
        q = problem.q.copy()
        q[0, 1, 2, 5] = wrong
        bad = attention_checks.run(driver, dataclasses.replace(problem, q=q), isa, 2).reshape(shape).copy()
        assert np.isnan(bad[0, 1, 2]).all(), isa
        bad[0, 1, 2] = good[0, 1, 2]
        assert bad.tobytes() == good.tobytes(), isa


def test_the_check_notices_a_small_error(driver: list[str]):
    problem = attention_checks.make(Case(tokens=2))
    result = attention_checks.run(driver, problem, "scalar", 1).copy()
    result[7] += 0.01 * np.abs(result).max()
    with pytest.raises(AssertionError, match="too much"):
        attention_checks.check(problem, result, "scalar")


# --- in ggml ---


class Ggml:
    """What is called of libggml-base and libggml-cpu."""

    class InitParams(ctypes.Structure):
        _fields_ = (("size", ctypes.c_size_t), ("buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool))

    def __init__(self) -> None:
        base, cpu = (ctypes.CDLL(str(drivers.libraries() / f"libggml-{name}.so")) for name in ("base", "cpu"))
        pointer, long, single = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
        for library, name, result, *arguments in (
            (base, "ggml_init", pointer, self.InitParams),
            (base, "ggml_free", None, pointer),
            (base, "ggml_new_tensor_4d", pointer, pointer, ctypes.c_int, long, long, long, long),
            (base, "ggml_get_data", pointer, pointer),
            (base, "ggml_permute", pointer, pointer, pointer, *[ctypes.c_int] * 4),
            (base, "ggml_flash_attn_ext", pointer, *[pointer] * 5, single, single, single),
            (base, "ggml_flash_attn_ext_add_sinks", None, pointer, pointer),
            (base, "ggml_tq_set_centre", None, *[pointer] * 5, ctypes.c_int, ctypes.c_bool),
            (base, "ggml_new_graph", pointer, pointer),
            (base, "ggml_build_forward_expand", None, pointer, pointer),
            (base, "ggml_backend_graph_compute", ctypes.c_int, pointer, pointer),
            (base, "ggml_backend_free", None, pointer),
            (cpu, "ggml_backend_cpu_init", pointer),
            (cpu, "ggml_backend_cpu_set_n_threads", None, pointer, ctypes.c_int),
            (cpu, "ggml_backend_cpu_set_use_ref", None, pointer, ctypes.c_bool),
        ):
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
            setattr(self, name.removeprefix("ggml_"), function)

    def attention(self, problem: Problem, threads: int, upstream: bool) -> np.ndarray:
        """The answer of the CPU backend, of upstream's own path on demand."""
        case = problem.case
        centre = problem.centre
        arrays = (problem.q, problem.k, problem.v, problem.mask, problem.sinks)
        arrays += (centre.plain, centre.mean, centre.turns, centre.chunk) if centre else ()
        room = sum(array.nbytes for array in arrays if array is not None)
        room += problem.q[..., 0].size * case.v_dim * 4 + (1 << 20)
        context = self.init(self.InitParams(room, None, False))

        def tensor(type: int, array: np.ndarray, *shape: int) -> int:
            t = self.new_tensor_4d(context, type, *shape)
            array = np.ascontiguousarray(array)
            ctypes.memmove(self.get_data(t), array.ctypes.data, array.nbytes)
            return t

        def heads_last(type: int, array: np.ndarray, dim: int) -> int:
            t = tensor(type, array, dim, array.shape[2], array.shape[1], array.shape[0])
            return self.permute(context, t, 0, 2, 1, 3)

        q = heads_last(0, problem.q, case.k_dim)
        k = heads_last(GGML_IDS[case.k], problem.k, case.k_dim)
        v = heads_last(GGML_IDS[case.v], problem.v, case.v_dim)
        mask = None
        if problem.mask is not None:
            mask = tensor(1, problem.mask, *problem.mask.shape[::-1])
        out = self.flash_attn_ext(context, q, k, v, mask, problem.scale, case.max_bias, case.softcap)
        if problem.sinks is not None:
            self.flash_attn_ext_add_sinks(out, tensor(0, problem.sinks, case.heads, 1, 1, 1))
        if centre:
            plain = heads_last(0, centre.plain, case.k_dim)
            mean = tensor(0, centre.mean, case.k_dim, case.kv_heads, 1, 1)
            turns = tensor(0, centre.turns, case.k_dim, len(centre.turns), 1, 1)
            chunk = tensor(26, centre.chunk, case.rows, case.streams, 1, 1)  # 26: I32
            self.tq_set_centre(out, plain, mean, turns, chunk, case.rope_dims or case.k_dim, case.neox)
        graph = self.new_graph(context)
        self.build_forward_expand(graph, out)
        backend = self.backend_cpu_init()
        self.backend_cpu_set_n_threads(backend, threads)
        self.backend_cpu_set_use_ref(backend, upstream)
        assert self.backend_graph_compute(backend, graph) == 0
        size = problem.q[..., 0].size * case.v_dim
        result = np.frombuffer(ctypes.string_at(self.get_data(out), 4 * size), np.float32)
        self.backend_free(backend)
        self.free(context)
        return result.reshape(*problem.q.shape[:-1], case.v_dim)


@pytest.fixture(scope="module")
def ggml() -> Ggml:
    return Ggml()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_ggml_computes_by_these_kernels(ggml: Ggml, driver: list[str], case: Case):
    problem = attention_checks.make(case)
    results = [ggml.attention(problem, threads, upstream=False) for threads in THREADS]
    expected = attention_checks.run(driver, problem, llama_tq.active_isa(), 1).tobytes()
    assert [result.tobytes() == expected for result in results] == [True] * len(THREADS)


# Upstream sums f16 values in f16, to which no useful bound applies.
@pytest.mark.parametrize("case", [case for case in CASES if case.v != "f16"], ids=str)
def test_upstream_computes_the_same(ggml: Ggml, case: Case):
    problem = attention_checks.make(case)
    rounding = 2.0**-11  # of a half: f16 queries, and the scales of q8_0 ones
    error = np.abs(problem.q) * rounding
    if case.k != "f16":
        blocks = problem.q.reshape(*problem.q.shape[:-1], -1, 32)
        step = np.abs(blocks).max(-1, keepdims=True) / 127
        error += np.broadcast_to(step / 2 * (1 + rounding), blocks.shape).reshape(problem.q.shape)
    answer, bound = attention_checks.solve(problem, error, tier=None)
    attention_checks.assert_within(ggml.attention(problem, 2, upstream=True), answer, bound)
