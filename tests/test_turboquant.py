"""llama_tq.turboquant against the paper (arXiv 2504.19874), and against what it must refuse."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.special import betaln, softmax

from llama_tq.reference import TYPES
from llama_tq.turboquant import (
    CompressedVector,
    TurboQuant,
    TurboQuantConfig,
    TurboQuantKVCache,
    codebook,
    distortion,
)
from llama_tq.turboquant.packing import pack, unpack
from llama_tq.turboquant.rotation import rotation
from llama_tq.turboquant.selftest import selftest

DIMENSIONS = (2, 3, 4, 7, 64, 128, 1536, 10**6)
BITS = range(1, 9)
HEAD = 128
SMALL = 64  # where hundreds of rotations are drawn


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def both(**more: object) -> list[TurboQuantConfig]:
    """TurboQuant_mse and TurboQuant_prod."""
    return [TurboQuantConfig(HEAD, qjl_enabled=qjl, **more) for qjl in (False, True)]


def relative_error(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return ((x - y) ** 2).sum(-1) / (x**2).sum(-1)


# --- codebooks ---


@pytest.mark.parametrize("dimension", DIMENSIONS)
@pytest.mark.parametrize("bits", BITS)
def test_every_level_is_the_mean_of_its_cell(dimension, bits):
    """The condition of Lloyd and Max, with integrals of the density by another way: numerically, over the
    angle, where the density has no poles. A few cells, from the middle to the end.
    """
    levels = codebook(dimension, bits)
    assert levels.shape == (2**bits,) and not levels.flags.writeable
    assert np.all(np.diff(levels) > 0) and np.all(np.abs(levels) < 1)
    np.testing.assert_array_equal(levels, -levels[::-1])
    edges = np.concatenate([[-1], (levels[:-1] + levels[1:]) / 2, [1]])
    scale = np.exp(-betaln(0.5, (dimension - 1) / 2))
    for cell in {2**bits // 2, 2**bits * 3 // 4, 2**bits - 1}:
        a, b = np.arcsin(np.maximum(edges[cell : cell + 2], -1))
        b = min(b, a + 40 / np.sqrt(dimension))  # further out there is nothing left

        def moment(power, a=a, b=b):
            def f(t):
                return scale * np.sin(t) ** power * np.exp((dimension - 2) / 2 * np.log1p(-(np.sin(t) ** 2)))

            return quad(f, a, b, epsabs=0, epsrel=1e-11, limit=200)[0]

        np.testing.assert_allclose(moment(1) / moment(0), levels[cell], rtol=1e-9)


@pytest.mark.parametrize("bits", BITS)
def test_three_dimensions_are_uniform(bits):
    """By Archimedes: then the levels are the middles of equal cells."""
    np.testing.assert_allclose(
        codebook(3, bits), (np.arange(2**bits) + 0.5) / 2 ** (bits - 1) - 1, atol=1e-12
    )
    assert distortion(3, bits) == pytest.approx(4.0**-bits, rel=1e-9)


def test_levels_of_the_paper():
    d = 10**6
    np.testing.assert_allclose(codebook(d, 1) * d**0.5, np.sqrt(2 / np.pi) * np.array([-1, 1]), rtol=1e-5)
    np.testing.assert_allclose(codebook(d, 2)[2:] * d**0.5, [0.453, 1.51], rtol=1e-3)
    np.testing.assert_array_equal(codebook(d, 0), [0])


@pytest.mark.parametrize(("bits", "printed"), [(1, 0.36), (2, 0.117), (3, 0.03), (4, 0.009)])
def test_distortions_of_the_paper(bits, printed):
    """It cuts them off after so many digits."""
    digits = len(str(printed)) - 2
    assert np.floor(distortion(1536, bits) * 10**digits) / 10**digits == printed


@pytest.mark.parametrize("dimension", DIMENSIONS)
def test_distortion_is_within_the_bounds_of_the_paper(dimension):
    """Theorems 1 and 3, which are about large dimensions: on a circle a code can do better than the lower."""
    assert distortion(dimension, 0) == 1
    for bits in BITS:
        assert distortion(dimension, bits) <= np.sqrt(3) * np.pi / 2 / 4**bits
        assert distortion(dimension, bits) >= 4.0**-bits * (0.55 if dimension == 2 else 1 - 1e-9)


def test_codebook_refusals():
    for call in (codebook, distortion):
        with pytest.raises(ValueError, match="bits is 9; allowed are integers from 0 to 8"):
            call(128, 9)
        with pytest.raises(ValueError, match="dimension is 1; allowed are integers from 2 on"):
            call(1, 3)


# --- rotations ---


@pytest.mark.parametrize("kind", ["haar", "hadamard"])
@pytest.mark.parametrize("dimension", [8, 64])
def test_rotations_are_orthonormal_and_depend_on_the_seed(kind, dimension):
    made = [rotation(kind, dimension, np.random.default_rng(seed)) for seed in (0, 0, 5)]
    np.testing.assert_allclose(made[0] @ made[0].T, np.eye(dimension), atol=1e-12)
    np.testing.assert_array_equal(made[0], made[1])
    assert np.abs(made[0] - made[2]).max() > 0.1


def test_haar_is_uniform():
    """The trace of a Haar matrix has mean 0 and variance 1 in every dimension. Without the fix of signs its
    mean is off: the diagonal of LAPACK's Q leans to one side.
    """
    traces = np.array([np.trace(rotation("haar", 8, np.random.default_rng(s))) for s in range(4000)])
    assert abs(traces.mean()) < 5 / np.sqrt(4000)
    assert traces.var() == pytest.approx(1, abs=5 * np.sqrt(2 / 4000))


def test_hadamard_refuses_other_sizes():
    with pytest.raises(ValueError, match="dimension is 96; rotation 'hadamard' needs a power of two"):
        TurboQuantConfig(96, rotation="hadamard")


# --- packing ---


@pytest.mark.parametrize("bits", range(9))
@pytest.mark.parametrize("count", [1, 7, 64])
def test_packing(bits, count):
    numbers = np.random.default_rng(bits).integers(0, 2**bits, (5, count)).astype(np.uint8)
    packed = pack(numbers, bits)
    assert packed.dtype == np.uint8 and packed.shape == (5, -(-count * bits // 8))
    np.testing.assert_array_equal(unpack(packed, count, bits), numbers)


def test_packed_bits_are_in_order():
    np.testing.assert_array_equal(pack(np.array([[1, 2, 3]], np.uint8), 3), [[0b11010001, 0]])


# --- sizes ---


@pytest.mark.parametrize("dimension", [2, 100, 128])
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(("qjl", "m"), [(False, 0), (True, 0), (True, 20)])
def test_sizes_are_those_of_the_bytes(dimension, bits, qjl, m):
    tq = TurboQuant(TurboQuantConfig(dimension, bits, qjl, m))
    size = tq.compressed_size_bytes()
    signs = -(-(m or dimension) // 8) if qjl else 0
    assert size == -(-dimension * (bits - qjl) // 8) + signs + (8 if qjl else 4)
    c = tq.compress(normal(3, dimension))
    arrays = [a for a in (c.indices, c.norm, c.residual_norm, c.signs) if a is not None]
    assert sum(len(a.tobytes()) for a in arrays) == c.nbytes == 3 * size
    assert tq.compress(normal(dimension)).nbytes == size
    assert tq.compression_ratio() == dimension * 2 / size
    assert tq.compression_ratio(bits_per_value=32) == dimension * 4 / size


def test_ratio_of_known_size():
    assert TurboQuant(TurboQuantConfig(256, 3)).compressed_size_bytes() == 256 * 3 // 8 + 8
    with pytest.raises(ValueError, match="bits_per_value is 8; allowed are 16 and 32"):
        TurboQuant(TurboQuantConfig(256, 3)).compression_ratio(8)


# --- TurboQuant_mse ---


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_error_is_what_the_codebook_promises_for_every_vector(bits):
    """Over rotations. Theorem 1 bounds it from above, theorem 3 from below."""
    vectors = np.stack([np.eye(SMALL)[3], np.ones(SMALL), normal(SMALL)])
    errors = np.empty((400, len(vectors)))
    for seed, row in enumerate(errors):
        tq = TurboQuant(TurboQuantConfig(SMALL, bits, False, seed=seed))
        row[:] = relative_error(vectors, tq.decompress(tq.compress(vectors)))
    standard_error = errors.std(0, ddof=1) / np.sqrt(len(errors))
    assert np.all(np.abs(errors.mean(0) - distortion(SMALL, bits)) < 4.5 * standard_error)
    assert np.all(errors.mean(0) > 4.0**-bits)
    assert np.all(errors.mean(0) < np.sqrt(3) * np.pi / 2 / 4**bits)


@pytest.mark.parametrize("bits", BITS)
def test_hadamard_does_as_well_on_normal_vectors(bits):
    tq = TurboQuant(TurboQuantConfig(HEAD, bits, False, rotation="hadamard"))
    errors = relative_error(x := normal(4000, HEAD), tq.decompress(tq.compress(x)))
    assert errors.mean() == pytest.approx(distortion(HEAD, bits), rel=0.03)


# --- TurboQuant_prod ---

PRODUCTS = {
    1: 1.57,
    2: 0.56,
    3: 0.18,
    4: 0.047,
}  # of theorem 2: the variance of <q, x> for unit vectors, times d


@pytest.mark.parametrize("bits", PRODUCTS)
@pytest.mark.parametrize("rotation", ["haar", "hadamard"])
def test_inner_products_are_unbiased_over_seeds(bits, rotation):
    """For a query along the vector, where the bias of TurboQuant_mse is largest, and for another."""
    x, y = normal(2, SMALL)
    queries = np.stack([x / np.linalg.norm(x), y / np.linalg.norm(y)])
    x = queries[0]
    found = np.empty((800, 2))
    for seed, row in enumerate(found):
        tq = TurboQuant(TurboQuantConfig(SMALL, bits, seed=seed, rotation=rotation))
        row[:] = tq.inner_product(queries, tq.compress(x))
    standard_error = found.std(0, ddof=1) / np.sqrt(len(found))
    assert np.all(np.abs(found.mean(0) - queries @ x) < 4 * standard_error)
    assert found[:, 1].var() == pytest.approx(PRODUCTS[bits] / SMALL, rel=0.3)
    if bits < 4:  # so much bias as TurboQuant_mse has would be noticed
        assert distortion(SMALL, bits) > 4 * standard_error[0]


@pytest.mark.parametrize("bits", PRODUCTS)
def test_without_qjl_inner_products_are_too_small(bits):
    x = normal(4000, HEAD)
    tq = TurboQuant(TurboQuantConfig(HEAD, bits, False))
    share = (x * tq.decompress(tq.compress(x))).sum(1) / (x**2).sum(1)
    assert 1 - share.mean() == pytest.approx(distortion(HEAD, bits), rel=0.03)


def test_more_signs_less_variance():
    x, q = normal(1000, HEAD), normal(200, HEAD, seed=1)
    variances = []
    for m in (32, 128, 512):
        tq = TurboQuant(TurboQuantConfig(HEAD, 2, True, m))
        variances.append((tq.inner_product(q, tq.compress(x)) - q @ x.T).var())
    assert variances[0] / variances[1] == pytest.approx(4, rel=0.1)
    assert variances[1] / variances[2] == pytest.approx(4, rel=0.1)


def test_one_bit_with_qjl_is_signs_alone():
    """The paper's first figure for inner products, 1.57 / d, is of this."""
    tq = TurboQuant(TurboQuantConfig(HEAD, 1, True))
    c = tq.compress(x := normal(5, HEAD))
    assert c.indices.shape == (5, 0) and c.signs.shape == (5, 16)
    np.testing.assert_array_equal(c.residual_norm, c.norm)
    np.testing.assert_allclose(c.norm, np.linalg.norm(x, axis=1), rtol=1e-6)


# --- both ---


@pytest.mark.parametrize("config", both())
def test_inner_products_are_those_of_the_decompressed_vectors(config):
    tq = TurboQuant(config)
    many, one = tq.compress(normal(5, HEAD)), tq.compress(normal(HEAD))
    for c, batch in ((many, (5,)), (one, ())):
        y = tq.decompress(c)
        assert y.dtype == np.float64 and y.shape == c.shape == (*batch, HEAD)
        for q in (normal(HEAD, seed=1), normal(3, HEAD, seed=1), np.ones((0, HEAD), np.int8)):
            found = tq.inner_product(q, c)
            assert found.shape == q.shape[:-1] + batch
            np.testing.assert_allclose(found, q @ y.T, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("config", both())
def test_one_vector_is_a_batch_of_one(config):
    tq = TurboQuant(config)
    one, many = tq.compress(normal(HEAD)), tq.compress(normal(1, HEAD))
    np.testing.assert_array_equal(one.indices, many.indices)
    np.testing.assert_array_equal(tq.decompress(one), tq.decompress(many)[0])
    assert len(one) == len(many) == 1


@pytest.mark.parametrize("config", both())
@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1.0, 1e30])
def test_the_norm_does_not_matter(config, scale):
    tq, x = TurboQuant(config), normal(50, HEAD)
    expected = tq.decompress(tq.compress(x))
    np.testing.assert_allclose(tq.decompress(tq.compress(x * scale)) / scale, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("config", both())
@pytest.mark.parametrize("value", [0.0, -0.0, 1e-300, 1e-47])
def test_zero_and_what_float32_cannot_tell_from_it(config, value):
    tq = TurboQuant(config)
    c = tq.compress(np.full((2, HEAD), value))
    assert not c.norm.any()
    np.testing.assert_array_equal(tq.decompress(c), np.zeros((2, HEAD)))
    assert tq.inner_product(normal(HEAD), c).tolist() == [0, 0]


@pytest.mark.parametrize("config", both())
def test_nothing_at_all(config):
    tq = TurboQuant(config)
    c = tq.compress(np.empty((0, HEAD)))
    assert c.nbytes == len(c) == 0 and tq.decompress(c).shape == (0, HEAD)
    assert tq.inner_product(normal(3, HEAD), c).shape == (3, 0)


@pytest.mark.parametrize("config", both())
def test_kinds_of_numbers(config):
    tq = TurboQuant(config)
    x = np.random.default_rng(0).integers(-100, 100, (3, HEAD))
    expected = tq.compress(x.astype(np.float64))
    for other in (x, x.astype(np.float16), x.astype(np.float32), x.tolist(), np.asfortranarray(x)):
        c = tq.compress(other)
        np.testing.assert_array_equal(c.indices, expected.indices)
        np.testing.assert_array_equal(c.norm, expected.norm)


@pytest.mark.parametrize("config", both())
def test_the_seed_is_all_there_is_to_chance(config):
    x = normal(3, HEAD)
    same, other = TurboQuant(config), TurboQuant(dataclasses.replace(config, seed=7))
    c = TurboQuant(config).compress(x)
    np.testing.assert_array_equal(c.indices, same.compress(x).indices)
    assert (c.indices != other.compress(x).indices).mean() > 0.5
    np.testing.assert_array_equal(same.decompress(c), TurboQuant(config).decompress(c))
    with pytest.raises(ValueError, match=r"c was compressed with .*seed=42.*; allowed is .*seed=7"):
        other.decompress(c)


# --- refusals ---


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dimension": 1}, "dimension is 1; allowed are integers from 2 on"),
        ({"dimension": 128.0}, r"dimension is 128\.0; allowed are integers"),
        ({"bits": 0}, "bits is 0; allowed are integers from 1 to 8"),
        ({"bits": 9}, "bits is 9; allowed are integers from 1 to 8"),
        ({"bits": "3"}, "bits is '3'; allowed"),
        ({"bits": True}, "bits is True; allowed"),
        ({"qjl_dim": -1}, "qjl_dim is -1; allowed are integers from 0 on"),
        ({"qjl_dim": 64, "qjl_enabled": False}, "qjl_dim is 64, but qjl_enabled is False; allowed is 0"),
        ({"qjl_enabled": 1}, "qjl_enabled is 1; allowed are True and False"),
        ({"seed": -1}, "seed is -1; allowed are integers from 0 on"),
        ({"seed": None}, "seed is None; allowed"),
        ({"rotation": "fourier"}, "rotation is 'fourier'; allowed are haar, hadamard"),
    ],
)
def test_configurations_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        TurboQuantConfig(**{"dimension": HEAD, **changes})


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.ones(127), r"has shape \(127,\); allowed are \(128,\) and \(n, 128\)"),
        (np.ones((2, 3, 128)), r"has shape \(2, 3, 128\); allowed"),
        (np.float64(1), r"has shape \(\); allowed"),
        (np.full(128, np.nan), "has NaN or infinite values"),
        (np.full((2, 128), np.inf), "has NaN or infinite values"),
        (np.ones(128, complex), "has dtype complex128; allowed are real numbers"),
        (np.ones(128, bool), "has dtype bool; allowed are real numbers"),
        (np.full(128, "1"), "has dtype <U1; allowed are real numbers"),
        (None, "has dtype object; allowed are real numbers"),
    ],
)
def test_arrays_refused(x, message):
    tq, cache = TurboQuant(TurboQuantConfig(HEAD)), TurboQuantKVCache(TurboQuantConfig(HEAD))
    c = tq.compress(np.ones(HEAD))
    for call in (tq.compress, lambda q: tq.inner_product(q, c), cache.attend, lambda x: cache.append(x, x)):
        with pytest.raises(ValueError, match=message):
            call(x)
    assert len(cache) == 0


@pytest.mark.parametrize("x", [np.full(128, 1e308), np.full(128, 3.1e37), np.full(128, np.finfo("f4").max)])
def test_norms_beyond_float32_are_refused(x):
    with pytest.raises(ValueError, match=r"x has a vector of norm .*; allowed are norms up to 3.4e\+38"):
        TurboQuant(TurboQuantConfig(HEAD)).compress(x)


def test_other_things_refused():
    tq = TurboQuant(TurboQuantConfig(HEAD))
    with pytest.raises(ValueError, match="c is ndarray; allowed is what compress returns"):
        tq.decompress(np.ones(3))
    with pytest.raises(ValueError, match="config is 128; allowed is a TurboQuantConfig"):
        TurboQuant(128)


# --- the cache ---


@pytest.mark.parametrize("config", both(bits=4))
def test_cache_is_attention_over_what_it_holds(config):
    k, v, q = normal(3, 40, HEAD)
    cache, tq, values = TurboQuantKVCache(config), TurboQuant(config), TurboQuant(both(bits=4)[0])
    cache.append(k[0], v[0])
    cache.append(k[1:30], v[1:30])
    cache.attend(q)  # what is read in between changes nothing
    cache.append(k[30:], v[30:])
    assert len(cache) == 40
    scores = q @ tq.decompress(tq.compress(k)).T / np.sqrt(HEAD)
    np.testing.assert_allclose(cache.attention_scores(q), scores, rtol=1e-9)
    expected = softmax(scores, axis=-1) @ values.decompress(values.compress(v))
    np.testing.assert_allclose(cache.attend(q), expected, rtol=1e-9)
    np.testing.assert_allclose(cache.attend(q[0]), expected[0], rtol=1e-9)
    assert cache.attention_scores(q[0]).shape == (40,) and cache.attend(q[0]).shape == (HEAD,)
    assert cache.nbytes == 40 * (tq.compressed_size_bytes() + values.compressed_size_bytes())


def test_cache_refusals():
    cache = TurboQuantKVCache(TurboQuantConfig(HEAD))
    for call in (cache.attend, cache.attention_scores):
        with pytest.raises(ValueError, match="the cache is empty; append keys and values first"):
            call(np.ones(HEAD))
    with pytest.raises(ValueError, match=r"k has shape \(2, 128\), v \(128,\); allowed are equal ones"):
        cache.append(np.ones((2, HEAD)), np.ones(HEAD))
    with pytest.raises(ValueError, match="x has NaN"):
        cache.append(np.ones(HEAD), np.full(HEAD, np.nan))
    assert len(cache) == cache.nbytes == 0


# --- the self-test ---


def test_selftest_shows_the_paper_and_what_softmax_makes_of_it():
    """The columns of ``python -m llama_tq.turboquant``, and the sentence under them."""
    rows = {row.code.name: row for row in selftest()}
    assert list(rows) == [f"{a} {b}" for b in (2, 3, 4) for a in ("mse", "prod")] + list(TYPES)
    for bits in (2, 3, 4):
        mse, prod = rows[f"mse {bits}"], rows[f"prod {bits}"]
        for row in (mse, prod):
            assert row.code.lower < row.mse < row.code.upper
        assert mse.code.upper == np.sqrt(3) * np.pi / 2 / 4**bits
        assert mse.mse == pytest.approx(distortion(HEAD, bits), rel=0.02)
        assert abs(prod.bias) < 4 * prod.bias_error < 0.02
        assert mse.bias == pytest.approx(-mse.mse, abs=4 * mse.bias_error)
        assert mse.correlation > prod.correlation and mse.cosine > prod.cosine
        assert prod.attention_kld > 3 * mse.attention_kld
        assert prod.attention_error > 3 * mse.attention_error
    for name, paper in {"tq4_0": "prod 4", "tq3_0": "prod 3", "tq2_1": "prod 2"}.items():
        assert rows[name].code.bits_per_value == rows[paper].code.bits_per_value
        assert rows[name].mse < rows[paper].mse / 3
        assert rows[name].attention_kld < rows[paper].attention_kld / 3


def test_selftest_prints():
    command = [sys.executable, "-m", "llama_tq.turboquant"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, "COLUMNS": "80"}
    )
    first = [line.split()[:2] for line in done.stdout.splitlines()]
    for code in (["mse", "3"], ["prod", "3"], ["tq3_0", "3.50"]):
        assert first.count(code) == 2
    assert "QJL helps where" in done.stdout and "hurts where" in " ".join(done.stdout.split())


# --- the package ---


def test_without_scipy_it_says_what_to_install():
    code = "import sys; sys.modules['scipy'] = None; import llama_tq.turboquant"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "ImportError: llama_tq.turboquant needs SciPy: pip install 'scipy>=1.11' (the extra [turboquant])"
    )


def test_compressed_vectors_are_made_by_compress():
    assert isinstance(TurboQuant(TurboQuantConfig(HEAD)).compress(np.ones(HEAD)), CompressedVector)
