"""Real server processes over HTTP with a TQ cache, next to the same server with f16."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import llama_cpp
import pytest

from llama_tq.runtime import embedded

SLOTS, SLOT_CTX = 2, 512
TQ = ("tq4_0", "tq3_0")
F16 = ("f16", "f16")
PROMPTS = [
    "def test_empty(self):\n    self.assertEqual(",
    "The following example shows how to",
    "import os\nimport sys\n\ndef main():\n",
    "class Queue:\n    def __init__(self",
]


def long_prompt(words: int) -> str:
    """The beginning of the held-out text."""
    return " ".join(embedded.held_out_text().split(" ")[:words])


@contextlib.contextmanager
def serving(command: list[object], ready: str) -> Iterator[httpx.Client]:
    """A client of a server process; the process ends with the block."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(part) for part in (*command, "--host", "127.0.0.1", "--port", port)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    log: list[str] = []
    reader = ThreadPoolExecutor(1)
    reader.submit(lambda: log.extend(process.stdout))  # or the server blocks on a full pipe
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120) as client:
            for _ in range(600):
                with contextlib.suppress(httpx.TransportError):
                    if client.get(ready).status_code == 200:
                        break
                if process.poll() is not None:
                    break
                time.sleep(0.1)
            assert process.poll() is None, "".join(log)
            yield client
    finally:
        process.terminate()
        process.wait(30)
        reader.shutdown()


@contextlib.contextmanager
def llama_server(types: tuple[str, str], *options: object) -> Iterator[httpx.Client]:
    program = Path(llama_cpp.__file__).parent / "bin" / "llama-server"
    context = ["-c", SLOTS * SLOT_CTX, "-np", SLOTS, "--no-kv-unified", "--cache-ram", 0]
    with serving(
        [program, "-m", embedded.MODEL, "-ctk", types[0], "-ctv", types[1], *context, *options], "/health"
    ) as c:
        yield c


@contextlib.contextmanager
def python_server(types: tuple[str, str], *options: object) -> Iterator[httpx.Client]:
    command = [sys.executable, "-m", "llama_cpp.server", "--model", embedded.MODEL, "--n_ctx", SLOT_CTX]
    with serving([*command, "--type_k", types[0], "--type_v", types[1], *options], "/v1/models") as client:
        yield client


@pytest.fixture(scope="module", params=[TQ, F16], ids="/".join)
def server(request):
    with llama_server(request.param, "--context-shift") as client:
        yield client


def complete(client: httpx.Client, prompt: str, tokens: int = 16, **more: object) -> dict:
    """llama-server's answer, greedy, with the probability of each token."""
    body = {"prompt": prompt, "n_predict": tokens, "temperature": 0, "n_probs": 1, "ignore_eos": True, **more}
    answer = client.post("/completion", json=body)
    answer.raise_for_status()
    return answer.json()


def first_logprob(answer: dict) -> float:
    """Of the first token generated."""
    return answer["completion_probabilities"][0]["logprob"]


def test_tq_answers_like_f16():
    """The first token has nearly the probability that it has with f16."""
    answers = {}
    for types in (F16, TQ):
        with llama_server(types) as client:
            answers[types] = [complete(client, long_prompt(60) + p, 1) for p in PROMPTS]
    for ours, reference in zip(answers[TQ], answers[F16], strict=True):
        assert first_logprob(ours) == pytest.approx(first_logprob(reference), abs=0.7)


def test_parallel_requests(server):
    """Four at a time in two slots: each gets its own answer, its first token as probable as alone.

    Later tokens may differ: a batch is rounded differently from a row, so near ties fall either way.
    """
    alone = [complete(server, prompt) for prompt in PROMPTS]
    with ThreadPoolExecutor(len(PROMPTS)) as pool:
        together = list(pool.map(lambda prompt: complete(server, prompt), PROMPTS))
    for a, b in zip(alone, together, strict=True):
        assert first_logprob(b) == pytest.approx(first_logprob(a), abs=0.3)
    assert len({answer["content"] for answer in together}) == len(PROMPTS)


def test_prompt_cache_reuse(server):
    prompt = long_prompt(120)
    fresh = complete(server, prompt, id_slot=0, cache_prompt=False)
    complete(server, prompt, id_slot=0, cache_prompt=True)
    reused = complete(server, prompt, id_slot=0, cache_prompt=True)
    assert fresh["timings"]["cache_n"] == 0
    assert reused["timings"]["cache_n"] >= fresh["timings"]["prompt_n"] - 5
    assert reused["timings"]["prompt_n"] <= 5
    assert first_logprob(reused) == pytest.approx(first_logprob(fresh), abs=0.3)


def test_context_shift(server):
    """More tokens than the slot holds: the cache is shifted, and the text goes on as confidently."""
    answer = complete(server, long_prompt(200), SLOT_CTX)
    assert answer["truncated"]
    assert answer["tokens_predicted"] == SLOT_CTX
    logprobs = [p["logprob"] for p in answer["completion_probabilities"]]
    before, after = logprobs[:100], logprobs[-100:]
    assert sum(after) / len(after) > sum(before) / len(before) - 1


def test_python_server_by_type_names():
    """llama_cpp.server: parallel requests, and its own prompt cache, which saves and restores states."""
    body = {"max_tokens": 12, "temperature": 0}
    texts = {}
    for types in (F16, TQ):
        with python_server(types, "--cache", "true") as client:

            def ask(prompt: str, client: httpx.Client = client) -> str:
                answer = client.post("/v1/completions", json={"prompt": prompt, **body})
                answer.raise_for_status()
                return answer.json()["choices"][0]["text"]

            first = [ask(prompt) for prompt in PROMPTS]
            with ThreadPoolExecutor(len(PROMPTS)) as pool:
                again = list(pool.map(ask, PROMPTS))
            assert len(set(first)) == len(set(again)) == len(PROMPTS)
            texts[types] = first
    assert all(texts[TQ])
    assert any(a == b for a, b in zip(texts[TQ], texts[F16], strict=True))


def test_python_server_names_an_unknown_type():
    command = [sys.executable, "-m", "llama_cpp.server", "--model", embedded.MODEL, "--type_k", "tq9_9"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode
    assert "tq9_9" in done.stderr
