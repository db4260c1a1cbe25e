"""The command: what it prints, and how it fails."""

from __future__ import annotations

import json
import os
import platform
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import llama_cpp._tq
import numpy as np
import pytest
from click.testing import CliRunner

import drivers
import llama_tq
from llama_tq import cli
from llama_tq.errors import InputError
from llama_tq.runtime import embedded, memory
from llama_tq.runtime.installed import cache_types
from llama_tq.runtime.pairs import Pair, bits_per_value, parse_pairs
from llama_tq.runtime.system import VARIABLES
from tiny_models import MODELS

PROMPT = "def __init__(self"


def run(*arguments: object) -> str:
    """Standard output of a command that succeeds."""
    result = CliRunner().invoke(cli.main, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def fail(*arguments: object) -> str:
    """The one line that a command with bad input prints on standard error."""
    result = CliRunner().invoke(cli.main, [str(a) for a in arguments])
    assert result.exit_code == 2
    assert not result.stdout
    (line,) = result.stderr.splitlines()
    return line


@pytest.mark.parametrize("command", [None, *cli.main.commands])
def test_help(command):
    text = run(*([command] if command else []), "--help")
    for parameter in cli.main.commands[command].params if command else ():
        assert (parameter.opts[0] if parameter.opts[0].startswith("-") else parameter.name.upper()) in text
        if parameter.param_type_name == "option":
            assert parameter.help or parameter.name == "seed", parameter.name


COMMANDS = {
    "info": ["info"],
    "plan": ["plan", "demo", "--memory", "64MiB"],
    "eval": ["eval", "demo", "--ctx", 512, "--chunks", 1, "--pairs", "tq4_0,q8_0/tq3_0", "--no-recall"],
    "compare": ["compare", "demo", PROMPT, "-n", 8, "--pairs", "tq4_0,tq2_1"],
    "run": ["run", "demo", PROMPT, "-n", 8, "-k", "tq4_0", "-v", "tq3_0"],
    "bench": ["bench", "demo", "--depths", "0,256", "--pairs", "f16,tq4_0"],
    "benchmark": ["benchmark", "--turboquant"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_json_is_all_of_standard_output(command, tmp_path):
    """From a process of its own, because llama.cpp writes past Python."""
    arguments = [sys.executable, "-m", "llama_tq.cli", *map(str, COMMANDS[command]), "--json"]
    done = subprocess.run(arguments, capture_output=True, text=True, cwd=tmp_path, check=True)
    result = json.loads(done.stdout)
    assert "llama_" not in done.stderr
    match command:
        case "info":
            assert [t["name"] for t in result["types"]] == [t.name for t in llama_tq.types()]
            assert sum(tier["active"] for tier in result["tiers"]) == 1
            assert set(result["backends"][0]["types"]) == set(cache_types())
            parts = ("system", "packages", "variables")
            system, packages, variables = ({f["name"]: f["value"] for f in result[part]} for part in parts)
            assert platform.python_version() in system["Python"]
            assert system["compiler"]
            assert "LLAMAFILE" in system["CPU has"].split()
            assert packages["numpy"] == np.__version__
            assert variables["LLAMA_CACHE"] == os.environ["LLAMA_CACHE"]
            assert variables["LLAMA_TQ_ISA"] is None
        case "plan":
            assert {row["pair"] for row in result["pairs"]} >= {"f16/f16", "q8_0/q8_0", "tq4_0/tq4_0"}
            assert all(row["longest"] <= result["n_ctx_train"] for row in result["pairs"])
        case "eval":
            pairs = ["f16/f16", "q8_0/q8_0", "q5_0/q5_0", "q4_0/q4_0", "tq4_0/tq4_0", "q8_0/tq3_0"]
            assert [row["pair"] for row in result["pairs"]] == pairs
            assert result["pairs"][0]["divergence"]["max"] == 0
            directory = tmp_path / "eval-demo"
            assert json.loads((directory / "result.json").read_text()) == result
            assert all((directory / f"{name}.png").stat().st_size > 5000 for name in ("pareto", "heatmap"))
        case "compare":
            assert result["reference"]["text"] == "".join(result["reference"]["pieces"])
            for other in result["continuations"]:
                first = other["first_difference"]
                assert result["reference"]["tokens"][:first] == other["generation"]["tokens"][:first]
                assert (other["equal_share"] == 1) == (first is None)
        case "run":
            assert (result["pair"], len(result["tokens"])) == ("tq4_0/tq3_0", 8)
        case "bench":
            assert [(s["pair"], s["depth"]) for s in result["speeds"]] == [
                (pair, depth) for pair in ("f16/f16", "tq4_0/tq4_0") for depth in (0, 256)
            ]
            assert all(s["read"] > 0 and s["write"] > 0 for s in result["speeds"])
        case "benchmark":
            check_benchmark(result)


def test_info_has_every_variable_that_changes_what_we_do():
    sources = [*drivers.CSRC.rglob("*.c*"), *Path(llama_tq.__file__).parent.rglob("*.py")]
    read = r'(?:getenv|variable|environ\.get|environ\.setdefault)\("(\w+)"|"(\w+)" not in os\.environ'
    text = "\n".join(source.read_text() for source in sources)
    found = {a or b for a, b in re.findall(read, text)}
    assert "LLAMA_TQ_ISA" in found
    assert found - {"HOME", "LOCALAPPDATA"} <= set(VARIABLES)


def test_first_results_come_before_the_last():
    """Commands are told each at once, and print it on standard error."""
    lines = []

    def seen(kind: str):
        return lambda *what: lines.append((kind, what[0]))

    llama_tq.benchmark(values=1 << 12, progress=seen("next"), on_type=seen("row"))
    assert [kind for kind, _ in lines[:4]] == ["next", "row", "next", "row"]

    lines.clear()
    pairs = parse_pairs("tq4_0,tq2_1")
    result = llama_tq.compare("demo", PROMPT, pairs, n_tokens=4, on_pair=seen("next"), on_text=seen("row"))
    assert [kind for kind, _ in lines] == ["next", *["row"] * 4] * 3
    assert "".join(what for kind, what in lines[1:5]) == result.reference.text

    lines.clear()
    llama_tq.demo(
        pairs=pairs,
        n_ctx=512,
        n_tokens=4,
        progress=seen("next"),
        on_first=seen("row"),
        on_generation=seen("row"),
    )
    assert [kind for kind, _ in lines[:4]] == ["next", "row", "next", "row"]
    assert sum(kind == "row" for kind, _ in lines) == 6


def check_benchmark(rows: list[dict]) -> None:
    """All types in all tiers of the machine; the same error in every tier; the figures of FORMAT.md."""
    tiers = {k.isa for k in llama_tq.kernels() if k.supported}
    for name, snr in {"tq4_0": 23.5, "tq3_0": 17.25, "tq2_1": 10.9}.items():
        ours = [row for row in rows if row["type"] == name]
        assert {row["tier"] for row in ours} == tiers
        assert len({row["nmse"] for row in ours}) == 1
        assert ours[0]["snr_db"] > snr
    paper = {row["type"]: row for row in rows if row["tier"] == "numpy"}
    assert list(paper) == ["mse 2", "prod 2", "mse 3", "prod 3", "mse 4", "prod 4"]
    for row in rows:
        assert row["nmse"] > row["limit"] == 4 ** -row["bits_per_value"]
        if row["type"] in paper:
            continue
        assert row["cosine"] > 0.9
        assert row["inner_product_correlation"] > 0.9
        assert abs(row["inner_product_bias"]) < 0.1
    assert {row["type"] for row in rows if row["tier"] == "ggml"} == {"q8_0", "q5_0", "q4_0", "iq4_nl"}
    for bits, mse in {
        2: 0.116,
        3: 0.034,
        4: 0.0093,
    }.items():  # of the paper's table, and pi / 2 of one bit less
        assert paper[f"mse {bits}"]["nmse"] == pytest.approx(mse, rel=0.02)
        assert paper[f"mse {bits}"]["bits_per_value"] == bits + 32 / 128
        assert paper[f"prod {bits}"]["bits_per_value"] == bits + 64 / 128
        if bits > 2:
            stage_one = paper[f"mse {bits - 1}"]["nmse"]
            assert paper[f"prod {bits}"]["nmse"] == pytest.approx(np.pi / 2 * stage_one, rel=0.02)


def test_tables(tmp_path):
    assert "tq3_0" in run("info")
    text = run("plan", "demo", "--pairs", "tq4_0/tq2_1")
    assert "tq4_0/tq2_1" in text
    assert run("run", "demo", PROMPT, "-n", 6).strip()
    text = run("compare", "demo", PROMPT, "-n", 6, "--pairs", "tq2_1")
    assert "tq2_1/tq2_1" in text
    text = run("bench", "demo", "--depths", "0", "--pairs", "tq4_0", "--plot", tmp_path / "speed.png")
    assert re.search(r"tq4_0/tq4_0 +0 +[\d.]+ +[\d.]+", text)
    assert (tmp_path / "speed.png").stat().st_size > 5000


def test_speeds_are_told_at_once():
    told = []
    result = llama_tq.bench(
        "demo",
        [Pair("tq4_0", "tq4_0")],
        [0, 256],
        on_speed=told.append,
        progress=lambda what, *_: told.append(what),
    )
    assert told == ["tq4_0/tq4_0 at 0", result.speeds[0], "tq4_0/tq4_0 at 256", result.speeds[1], "done"]


def test_ctrl_c_keeps_what_is_finished(tmp_path):
    arguments = [
        "eval",
        "demo",
        "--ctx",
        256,
        "--chunks",
        16,
        "--no-recall",
        "--pairs",
        "tq4_0",
        "--no-yardsticks",
    ]
    command = [sys.executable, "-m", "llama_tq.cli", *map(str, arguments), "--out", str(tmp_path)]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # background jobs ignore it
    )
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("chunk-*.npz")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert (process.returncode, out) == (130, "")
    assert "go on with --resume" in err
    kept = len(list(tmp_path.glob("chunk-*.npz")))
    assert 0 < kept < 16
    done = subprocess.run([*command, "--resume", "--json"], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["chunks"] == 16


def test_nothing_needs_converting():
    """Whatever peers' commands of that name take."""
    for arguments in ([], ["my model.gguf"], ["--bits", 4, "my model.gguf", "-o", "out.gguf"], ["--json"]):
        line = fail("convert", *arguments)
        assert "Nothing needs converting" in line
        model = "'my model.gguf'" if "my model.gguf" in arguments else "MODEL"
        assert line.endswith(f"Run: llama-tq run {model} PROMPT --type-k tq4_0 --type-v tq4_0")


def test_benchmark_without_scipy_says_what_to_install(monkeypatch):
    for name in [m for m in sys.modules if m.startswith("llama_tq.turboquant")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "scipy", None)
    assert "llama_tq.turboquant needs SciPy: pip install" in fail("benchmark", "--turboquant")


def test_functions_are_what_the_commands_call():
    for name in llama_tq.__all__:
        assert getattr(llama_tq, name) is not None
    result = llama_tq.plan("demo", pairs=[llama_tq.Pair("tq4_0", "tq4_0")])
    assert json.loads(run("plan", "demo", "--pairs", "tq4_0", "--json"))["pairs"][0]["cache_bytes"] == (
        result.pairs[0].cache_bytes
    )


def test_temperature_is_repeatable():
    texts = {run("run", "demo", PROMPT, "-n", 12, "--temperature", 1.5, "--seed", seed) for seed in (1, 1, 2)}
    assert len(texts) == 2


def test_bad_models(tmp_path):
    assert "There is no file" in fail("plan", tmp_path / "absent.gguf")
    assert "is not a file" in fail("plan", tmp_path)
    (tmp_path / "text.gguf").write_text("not a model")
    assert "invalid magic" in fail("run", tmp_path / "text.gguf", "x")
    (tmp_path / "half.gguf").write_bytes(embedded.MODEL.read_bytes()[: embedded.MODEL.stat().st_size // 2])
    for command in (["plan"], ["run", "x"], ["compare", "x"], ["bench"]):
        assert "corrupted or incomplete" in fail(command[0], tmp_path / "half.gguf", *command[1:])


def test_models_that_cannot_write(tmp_path):
    MODELS["grouped_query"].write(tmp_path / "mute.gguf")
    assert "has no tokenizer" in fail("run", tmp_path / "mute.gguf", "x")


def test_bad_types():
    assert "'tq4' is not a cache type. Did you mean tq4_0" in fail("run", "demo", "x", "-k", "tq4")
    assert "'zzz' is not a cache type. Known are f32, f16" in fail("plan", "demo", "--pairs", "q8_0/zzz")


def test_bad_sizes(tmp_path, monkeypatch):
    assert "is not an amount of memory" in fail("plan", "demo", "--memory", "much")
    assert "of weights, more than" in fail("plan", "demo", "--memory", "1KiB")
    assert "takes 1 to" in fail("plan", "demo", "--ctx", 10**6)
    assert "is not a list of numbers" in fail("bench", "demo", "--depths", "a,b")
    assert "Ask for at least 1" in fail("eval", "demo", "--chunks", 0, "--out", tmp_path / "out")
    assert "Depths 99999 are not possible" in fail("bench", "demo", "--depths", 99999)
    assert "Ask for at least 1" in fail("run", "demo", "x", "-n", 0)
    assert "more than the context of" in fail("run", "demo", "x " * 300, "--ctx", 256)
    monkeypatch.setattr(memory, "available", lambda: 1 << 20)
    assert "1 MiB are free" in fail("bench", "demo", "--depths", 0)


def test_bad_texts(tmp_path):
    (tmp_path / "short").write_text("Not enough.")
    (tmp_path / "latin").write_bytes(b"caf\xe9")
    out = ["--out", tmp_path / "out"]
    assert "too few for 1 chunks of 2048" in fail(
        "eval", "demo", "--text", tmp_path / "short", "--ctx", 2048, *out
    )
    assert "is not UTF-8 text (byte 3)" in fail("eval", "demo", "--text", tmp_path / "latin", *out)
    assert "Cannot read" in fail("eval", "demo", "--text", tmp_path / "absent", *out)
    assert "There is no text" in fail("eval", embedded.MODEL, *out)
    assert not (tmp_path / "out").exists()


@pytest.fixture
def unpatched(monkeypatch):
    monkeypatch.setattr(llama_cpp._tq, "tq_types", lambda _: {})
    cache_types.cache_clear()
    yield
    cache_types.cache_clear()


def test_unpatched_llama_cpp_is_named(unpatched):
    for command in (["info"], ["plan", "demo"], ["benchmark"]):
        result = CliRunner().invoke(cli.main, command)
        assert result.exit_code == 1
        assert not result.stdout
        assert "is not the patched one" in result.stderr
    with pytest.raises(InputError, match="is not the patched one"):
        llama_tq.plan("demo")


def test_pairs():
    assert parse_pairs("q8_0/tq3_0, tq4_0,q8_0/tq3_0") == (Pair("q8_0", "tq3_0"), Pair("tq4_0", "tq4_0"))
    assert Pair("tq4_0", "tq2_1").bits_per_value == 3.5
    assert bits_per_value("f16") == 16


def test_bytes():
    assert memory.parse_bytes("8GiB") == 8 << 30
    assert memory.parse_bytes("1.5 MB") == 1_500_000
    assert memory.parse_bytes("4096") == 4096
    assert [memory.format_bytes(n) for n in (7, 2048, 18 << 20, 9 << 30)] == [
        "7 B",
        "2 KiB",
        "18 MiB",
        "9 GiB",
    ]
    with pytest.raises(InputError, match="Write it as"):
        memory.parse_bytes("8 elephants")


def test_waiting_threads_do_not_spin_for_long(monkeypatch):
    """libgomp is told before llama_cpp loads it, unless the user has said how threads wait."""
    loaded = "import sys, llama_tq.cli; sys.exit('llama_cpp' in sys.modules)"
    subprocess.run([sys.executable, "-c", loaded], check=True)
    for theirs, expected in (
        ({}, cli._SPINS),
        ({"GOMP_SPINCOUNT": "7"}, "7"),
        ({"OMP_WAIT_POLICY": "active"}, None),
    ):
        for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
            monkeypatch.delenv(name, raising=False)
        for name, value in theirs.items():
            monkeypatch.setenv(name, value)
        run("info")
        assert os.environ.get("GOMP_SPINCOUNT") == expected


def test_command_is_on_the_path():
    program = Path(sys.executable).parent / ("llama-tq.exe" if os.name == "nt" else "llama-tq")
    assert "eval" in subprocess.run([program, "--help"], capture_output=True, text=True, check=True).stdout
