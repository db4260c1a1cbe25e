"""What of the GPU code can be proven without one: the header shared with the host, and that all compiles."""

from __future__ import annotations

import concurrent.futures
import importlib.util
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

import cuda_checks
import drivers
import kernel_checks
from llama_tq import reference


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc")
    assert compiler, "no C compiler; apt install gcc"
    program = tmp_path_factory.mktemp("device") / "device_driver"
    options = [*drivers.OPTIONS, "-ffp-contract=off", "-Wno-unused-function"]
    subprocess.run([compiler, *options, drivers.TESTS / "device_driver.c", "-lm", "-o", program], check=True)
    return program


def run(driver: Path, operation: str, type: str, data: np.ndarray) -> bytes:
    return subprocess.run(
        [driver, operation, type], input=data.tobytes(), stdout=subprocess.PIPE, check=True
    ).stdout


@pytest.mark.parametrize("type", reference.TYPES)
def test_the_shared_header_encodes_as_the_reference(driver: Path, type: str):
    x = kernel_checks.values(reference.TYPES[type])
    assert run(driver, "quantize", type, x) == reference.quantize(x, type).tobytes()


@pytest.mark.parametrize("type", reference.TYPES)
def test_the_sums_of_the_encoder_cannot_overflow(driver: Path, type: str):
    run(driver, "reach", type, np.empty(0))


@pytest.mark.parametrize("type", reference.TYPES)
def test_the_shared_header_decodes_as_the_reference(driver: Path, type: str):
    blocks = kernel_checks.blocks(reference.TYPES[type])
    assert run(driver, "dequantize", type, blocks) == reference.dequantize(blocks, type).tobytes()


@pytest.mark.parametrize("type", reference.TYPES)
def test_the_look_ups_of_the_attention_kernels_find_the_levels(driver: Path, type: str):
    spec = reference.TYPES[type]
    blocks = kernel_checks.blocks(spec)
    blocks[:, :2] = np.array([0, 23 << 2]) | blocks[:, :2] & np.array([0, 128])  # both scales are 1
    levels = np.frombuffer(run(driver, "levels", type, blocks), np.int8).reshape(-1, 32)
    assert np.array_equal(levels, reference.dequantize(blocks, type))


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The kernels of csrc/cuda compiled for the host, and two programs over them."""
    compiler = shutil.which("c++")
    assert compiler, "no C++ compiler; apt install g++"
    folder = tmp_path_factory.mktemp("host")
    (folder / "cuda").mkdir()
    for path in (drivers.CSRC / "cuda").iterdir():
        shutil.copy(path, folder / "cuda" / path.name)
    for path in (drivers.TESTS / "host_cuda").iterdir():
        shutil.copy(path, folder / "cuda" / path.name)
    options = [
        "-std=c++20",
        "-O2",
        "-ffp-contract=off",
        "-fno-strict-aliasing",
        f"-I{folder}",
        f"-I{drivers.CSRC}",
        "-DTQ_CUDA_HOPPER",
    ]
    kernels = sorted((folder / "cuda").glob("*.cu"))
    sources = [*kernels, drivers.TESTS / "cuda_driver.cu", drivers.TESTS / "rows_driver.cpp"]

    def compile(source: Path) -> Path:
        target = folder / f"{source.name}.o"
        subprocess.run([compiler, *options, "-x", "c++", "-c", source, "-o", target], check=True)
        return target

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        *objects, driver, rows = pool.map(compile, sources)
    library = ["-lggml-base", f"-L{drivers.libraries()}", f"-Wl,-rpath,{drivers.libraries()}"]
    subprocess.run([compiler, *objects, driver, "-o", folder / "cuda_driver"], check=True)
    subprocess.run([compiler, *objects, rows, *library, "-o", folder / "rows_driver"], check=True)
    return folder


def test_cache_operations_on_the_host(host: Path):
    assert subprocess.run([host / "rows_driver"], stdout=subprocess.PIPE, check=True).stdout == b""


def on_the_host(
    host: Path, case: cuda_checks.Case, rotation: tuple[int, int] = (0, 0), gpu: tuple[str, ...] = ()
):
    problem = cuda_checks.attention_checks.make(case)
    answer, bound = cuda_checks.solve(problem, rotation)
    result = cuda_checks.run([*gpu, str(host / "cuda_driver")], problem, rotation=rotation)
    cuda_checks.attention_checks.assert_within(result, answer, bound)


def is_short(case: cuda_checks.Case) -> bool:
    """Whether the host, which does one thing after the other, is done within two seconds."""
    return case.streams * case.tokens * case.heads * case.rows <= 1 << 14


SHORT = list(filter(is_short, cuda_checks.CASES))


@pytest.mark.parametrize(
    "case", [*SHORT[::4], *(case for case in SHORT if case.centre or case.largest)], ids=str
)
def test_attention_on_the_host(host: Path, case: cuda_checks.Case):
    on_the_host(host, case)


@pytest.mark.parametrize("case", cuda_checks.WIDE, ids=str)
def test_attention_by_warpgroups_on_the_host(host: Path, case: cuda_checks.Case):
    on_the_host(host, case)


@pytest.mark.parametrize("case", cuda_checks.WIDE[::3], ids=str)
def test_attention_of_as_many_columns_on_older_gpus(host: Path, case: cuda_checks.Case):
    on_the_host(host, case, gpu=cuda_checks.OLDER)


@pytest.mark.parametrize("problem", [r for r in cuda_checks.ROTATED if is_short(r[0])], ids=str)
def test_attention_that_rotates_on_the_host(host: Path, problem: tuple):
    on_the_host(host, problem[0], rotation=problem[1])


@pytest.mark.parametrize("problem", [*cuda_checks.ADDED, *cuda_checks.TURNED], ids=lambda p: str(p[0]))
def test_attention_that_stores_on_the_host(host: Path, problem: tuple):
    cuda_checks.check_added([str(host / "cuda_driver")], *problem)


def nvcc() -> str:
    """The one on the PATH, or pip's."""
    spec = importlib.util.find_spec("nvidia")
    places = (
        [str(folder) for path in spec.submodule_search_locations for folder in Path(path).glob("*/bin")]
        if spec
        else []
    )
    compiler = shutil.which("nvcc") or shutil.which("nvcc", path=os.pathsep.join(places))
    assert compiler, "no nvcc; pip install nvidia-cuda-nvcc nvidia-cuda-runtime nvidia-cuda-cccl"
    return compiler


def test_every_kernel_compiles_for_the_oldest_and_the_newest_architecture(tmp_path: Path):
    compiler = nvcc()
    listed = subprocess.run([compiler, "--list-gpu-code"], capture_output=True, text=True, check=True).stdout
    codes = sorted((code for code in listed.split()), key=lambda code: int(code.removeprefix("sm_")))
    oldest = next(code for code in codes if int(code.removeprefix("sm_")) >= 75)

    def compile(source: Path, code: str) -> str:
        target = tmp_path / f"{source.stem}.{code}"
        options = ["-std=c++17", "-O3", "-use_fast_math", f"-arch={code}", f"-I{drivers.CSRC}", "-cubin"]
        result = subprocess.run([compiler, *options, source, "-o", target], capture_output=True, text=True)
        return result.stdout + result.stderr

    sources = sorted((drivers.CSRC / "cuda").glob("*.cu"))
    assert sources
    jobs = [(source, code) for source in sources for code in (oldest, codes[-1])]
    jobs.append((drivers.CSRC / "cuda/hopper.cu", "sm_90a"))
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        messages = list(pool.map(lambda job: compile(*job), jobs))
    assert messages == [""] * len(jobs)
