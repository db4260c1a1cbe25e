"""What every kernel must do, on whatever machine runs it: the checks of test_kernels.py and test_neon.py."""

from __future__ import annotations

import dataclasses
import subprocess
from collections.abc import Iterable

import numpy as np

from llama_tq import reference
from llama_tq.reference import TypeSpec

BLOCK = TypeSpec.block_size

OPERATIONS = ("quantize", "dequantize", "vec_dot")
LENGTHS = range(0, 1024 + BLOCK, BLOCK)


@dataclasses.dataclass
class Machine:
    """Something that runs the compiled kernel_driver.c."""

    command: list[str]

    def run(self, *arguments: str, data: bytes = b"") -> bytes:
        result = subprocess.run([*self.command, *arguments], input=data, capture_output=True)
        assert result.returncode == 0, f"{arguments}: {result.returncode}, {result.stderr.decode()}"
        return result.stdout

    def tiers(self) -> list[str]:
        return self.run("tiers").decode().split()

    def rows(self, isa: str, operation: str, type: str, rows: Iterable[tuple[int, bytes]]) -> bytes:
        """Results for rows of (number of values, bytes), one after the other."""
        data = b"".join(np.int64(n).tobytes() + row for n, row in rows)
        return self.run(isa, operation, type, data=data)

    def check(self, isa: str, operation: str, type: str) -> None:
        spec = reference.TYPES[type]
        {"quantize": check_quantize, "dequantize": check_dequantize, "vec_dot": check_vec_dot}[operation](
            self, isa, spec
        )


# --- numbers to encode --------------------------------------------------------------------------------------


def values(spec: TypeSpec) -> np.ndarray:
    """Normal distributions at all scales, and all that an encoder may trip over; float32."""
    rng = np.random.default_rng(spec.id)

    def normal(blocks: int) -> np.ndarray:
        return rng.standard_normal((blocks, BLOCK))

    # On the grid of a code: rint() meets ties, and so does `nearest`, in the search and in the assignment.
    code = rng.integers(8, 264, (600, 1))
    on_grid = (8 + code % 8) * np.exp2(code // 8 - 26.0)
    steps = rng.integers(-127 * 16, 127 * 16, (600, BLOCK)) / np.repeat([1, 2, 16], 200)[:, None]
    one_hot = np.zeros((8 * BLOCK, BLOCK))
    one_hot[np.arange(8 * BLOCK), np.tile(np.arange(BLOCK), 8)] = rng.choice([-1, 1], 8 * BLOCK) * np.exp2(
        rng.uniform(-24, 18, 8 * BLOCK)
    )
    special = np.concatenate(
        [
            [0, -0.0, 1, -1, 1e-7],
            [np.nan, np.inf, -np.inf, 3e38, 1e-45, -1e-38],
            [65504, 121920, 121921, 2**-21, -(2**-22)],  # the limits of FORMAT.md 4.1
        ]
    )
    parts = [
        normal(2000),
        normal(1500) * np.exp2(rng.uniform(-40, 30, (1500, 1))),
        normal(1000) * np.exp2(rng.uniform(-9, 9, (1000, 2))).repeat(16, axis=1),  # 4.3: too far apart
        rng.standard_cauchy((500, BLOCK)),
        rng.choice(special, (500, BLOCK)),
        np.where(rng.random((500, BLOCK)) < 0.1, rng.choice(special, (500, BLOCK)), normal(500)),
        on_grid * steps,
        np.repeat(normal(1000)[:, :1], BLOCK, axis=1),  # several codes, and both signs, may have the price 0
        one_hot,
        np.repeat(special[:, None], BLOCK, axis=1),
        rng.integers(0, 2**32, (500, BLOCK), dtype=np.uint32).view(np.float32),
    ]
    with np.errstate(over="ignore", invalid="ignore"):
        return np.concatenate([part.astype(np.float32) for part in parts])


def check_quantize(machine: Machine, isa: str, spec: TypeSpec) -> None:
    """The bytes of the reference, in one row of all blocks and in rows of every length."""
    x = values(spec)
    expected = reference.quantize(x, spec.name)
    rows = [(x.size, x.tobytes())]
    want = expected.tobytes()
    rng = np.random.default_rng(1)
    for n in LENGTHS:
        pick = rng.integers(0, len(x), n // BLOCK)
        rows.append((n, x[pick].tobytes()))
        want += expected[pick].tobytes()
    assert machine.rows(isa, "quantize", spec.name, rows) == want


# --- blocks to decode ---------------------------------------------------------------------------------------


def blocks(spec: TypeSpec) -> np.ndarray:
    """Every scale word over random indices, and every value of every index byte in both codebooks."""
    rng = np.random.default_rng(spec.id)
    words = rng.integers(0, 256, (1 << 16, spec.block_bytes), dtype=np.uint8)
    words[:, :2] = np.arange(1 << 16, dtype="<u2")[:, None].view(np.uint8)
    body = spec.block_bytes - 2
    indices = np.zeros((2, body, 256, spec.block_bytes), np.uint8)
    indices[..., 1] = np.array([20 << 2, 20 << 2 | 128])[:, None, None]
    for j in range(body):
        indices[:, j, :, 2 + j] = np.arange(256)
    return np.concatenate([words, indices.reshape(-1, spec.block_bytes)])


def check_dequantize(machine: Machine, isa: str, spec: TypeSpec) -> None:
    """The floats of the reference, bit for bit, in one row of all blocks and in rows of every length."""
    b = blocks(spec)
    expected = reference.dequantize(b, spec.name)
    rows = [(len(b) * BLOCK, b.tobytes())]
    want = expected.tobytes()
    rng = np.random.default_rng(1)
    for n in LENGTHS:
        pick = rng.integers(0, len(b), n // BLOCK)
        rows.append((n, b[pick].tobytes()))
        want += expected[pick].tobytes()
    assert machine.rows(isa, "dequantize", spec.name, rows) == want


# --- dot products -------------------------------------------------------------------------------------------


def check_vec_dot(machine: Machine, isa: str, spec: TypeSpec) -> None:
    """Rows of every length, within a bound of the same sum in float64.

    Sums of integers in a sub-block are at most 16 * 127 * 128 < 2^24, so a float holds them, as it does a
    scale of four bits times a half of eleven. A SIMD tier rounds once per block, in a fused multiply-add,
    and in at most four additions across lanes. Scalar C rounds two products and a sum within a block, then
    once per block. So a term passes through at most k = n / 32 + 4 roundings, each of one part in 2^24 at
    most, and nothing underflows: the error is at most k / 2^24 / (1 - k / 2^24) times the sum of the terms'
    magnitudes (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1).
    """
    rng = np.random.default_rng(spec.id)
    weights = blocks(spec)
    rows, exact, bound = [], [], []
    for n in [*LENGTHS, *rng.integers(1, 33, 500) * BLOCK, 1 << 17]:
        b = weights[rng.integers(0, len(weights), n // BLOCK)]
        q = rng.integers(-128, 128, (n // BLOCK, BLOCK)).astype(np.int8)
        q[rng.random(len(q)) < 0.2] = rng.choice([-128, -127, 127])
        d = (rng.standard_normal(len(q)) * np.exp2(rng.uniform(-20, 8, len(q)))).astype(np.float16)
        activations = np.concatenate([d.view(np.uint8).reshape(-1, 2), q.view(np.uint8)], axis=1)
        rows.append((n, b.tobytes() + activations.tobytes()))
        terms = reference.dequantize(b, spec.name).astype(float) * (d.astype(float)[:, None] * q)
        exact.append(terms.sum())
        k = (n // BLOCK + 4) / 2**24
        bound.append(k / (1 - k) * np.abs(terms).sum())
    result = np.frombuffer(machine.rows(isa, "vec_dot", spec.name, rows), np.float32)
    assert len(result) == len(rows)
    assert np.all(np.abs(result - np.array(exact)) <= np.array(bound))
