"""Chat templates, and conversations through them, on SmolLM2."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest

import llama_tq
from llama_tq.errors import InputError
from llama_tq.runtime import template
from llama_tq.runtime.models import Model
from llama_tq.runtime.pairs import Pair
from llama_tq.runtime.template import Template
from test_cli import fail, run

TQ4 = Pair("tq4_0", "tq4_0")
SYSTEM = "Answer in one sentence."
CAPITAL = "What is the capital of France?"


@pytest.fixture(scope="module")
def smollm2():
    with Model("smollm2") as model:
        yield model


def test_a_conversation_is_written_as_the_template_says(smollm2):
    tokens = Template(smollm2).tokens([{"role": "system", "content": "S"}, {"role": "user", "content": "U"}])
    text = "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\n"
    assert "".join(map(smollm2.pieces(), tokens)) == text
    assert np.count_nonzero(tokens == smollm2.tokenize("<|im_start|>", markup=True)[0]) == 3  # one token each


class _Scripted:
    """A model with a template of our own."""

    name, bos, bos_text, eos_text = "scripted", 1, "<s>", "</s>"

    def tokenize(self, text: str, *, markup: bool) -> str:
        assert markup
        return text


@pytest.fixture
def scripted(monkeypatch):
    def with_template(source: str | None) -> Template:
        monkeypatch.setattr(template, "source_of", lambda _: source)
        return Template(_Scripted())

    return with_template


USER = [{"role": "user", "content": "U"}]


def test_the_start_token_is_not_doubled(scripted):
    assert scripted("{{ bos_token }}{{ messages[0]['content'] }}{{ eos_token }}").tokens(USER) == "U</s>"


def test_bad_templates(scripted):
    with pytest.raises(InputError, match=r"scripted has no chat template"):
        scripted(None)
    with pytest.raises(InputError, match=r"cannot be read: .*--raw"):
        scripted("{% for %}")
    for refusing in ("{{ raise_exception('No system role.') }}", "{{ messages[0]['content'] / 2 }}"):
        with pytest.raises(InputError, match="The chat template of scripted refuses this"):
            scripted(refusing).tokens(USER)


def test_run_goes_through_the_template():
    """A question is answered, not continued; and --raw continues it."""
    answer = run("run", "smollm2", CAPITAL, "--system", SYSTEM, "-n", 16, "-k", "tq4_0", "-v", "tq4_0")
    assert answer == "The capital of France is Paris.\n"
    raw = llama_tq.generate("smollm2", CAPITAL, n_tokens=1, raw=True)
    with Model("smollm2", weights=False) as model:
        assert raw.prompt_tokens == len(model.tokenize(CAPITAL))


def test_compare_goes_through_the_template():
    result = llama_tq.compare("smollm2", CAPITAL, [TQ4], system=SYSTEM, n_tokens=16)
    assert result.reference.text == "The capital of France is Paris."


def test_turns_reuse_the_cache_and_change_nothing(smollm2):
    """The second answer begins as after the whole conversation read anew, and most of it was not read again.
    Near ties go one way or the other: keys and values of other batches are rounded otherwise.
    """
    with llama_tq.chat("smollm2", TQ4, system=SYSTEM) as talk:
        first, second = talk.ask(CAPITAL), talk.ask("And of Italy?")
        said = talk.messages
    assert [m["role"] for m in said] == ["system", "user", "assistant", "user", "assistant"]
    assert (said[2]["content"], said[4]["content"]) == (first.text, second.text)
    assert "Paris" in first.text
    assert "Italy" in second.text
    assert first.reused_tokens == 0
    assert second.reused_tokens >= first.prompt_tokens
    whole = Template(smollm2).tokens(said[:4])
    assert len(whole) == second.prompt_tokens
    with smollm2.context(TQ4, 256) as context:
        logits = context.prefill(whole)  # the context's memory
        assert logits[second.tokens[0]] > logits.max() - 1


def test_an_answer_can_be_stopped_or_broken_off(smollm2):
    """A stopped one counts; one that an exception breaks off does not, and the next is right all the same."""
    pieces: list[str] = []

    def break_off(_: str) -> None:
        raise ZeroDivisionError

    with llama_tq.chat("smollm2", TQ4, system=SYSTEM) as talk:
        stopped = talk.ask(CAPITAL, on_text=pieces.append, stop=lambda: len(pieces) == 2)
        assert (len(stopped.tokens), stopped.text) == (2, "".join(pieces))
        with pytest.raises(ZeroDivisionError):
            talk.ask("Why?", on_text=break_off)
        assert len(talk.messages) == 3
    with llama_tq.chat("smollm2", TQ4, system=SYSTEM) as talk:
        with pytest.raises(ZeroDivisionError):
            talk.ask("Why?", on_text=break_off)
        assert talk.ask(CAPITAL).text == "The capital of France is Paris."


def test_refusals():
    with llama_tq.chat("smollm2", TQ4, n_ctx=256) as talk:
        with pytest.raises(InputError, match="The message is empty"):
            talk.ask(" ")
        with pytest.raises(InputError, match=r"The conversation has \d+ tokens now, and the context 256"):
            talk.ask("word " * 300)
        with pytest.raises(InputError, match="Ask for at least 1"):
            talk.ask("Hello", n_tokens=0)
        assert talk.messages == []
        long = talk.ask("word " * 200)
        assert long.prompt_tokens + len(long.tokens) <= 256
    assert "demo has no chat template" in fail("chat", "demo")
    assert "demo has no chat template" in fail("run", "demo", "x", "--system", "y")
    assert "raw does without" in fail("compare", "smollm2", "x", "--system", "y", "--raw")
    assert "takes 1 to 8192" in fail("chat", "smollm2", "--ctx", 9000)


def test_chat_from_a_pipe():
    command = [sys.executable, "-m", "llama_tq.cli", "chat", "smollm2", "--system", SYSTEM]
    done = subprocess.run(
        command, input=f"{CAPITAL}\n\nAnd of Italy?", capture_output=True, text=True, check=True
    )
    first, second = done.stdout.splitlines()
    assert first == "The capital of France is Paris."
    assert "Italy" in second
    status = re.sub(r"\s+", " ", done.stderr)
    assert len(re.findall(r"f16/f16: \d+ of 4096 tokens used, cache [\d.]+ MiB; \d+ read at", status)) == 2


@pytest.mark.skipif(sys.platform == "win32", reason="there are no pseudo-terminals")
def test_chat_on_a_terminal():
    """Ctrl-C stops an answer and not the conversation; Ctrl-D ends it."""
    command = [sys.executable, "-m", "llama_tq.cli", "chat", "smollm2", "-n", "2000"]
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(command[0], command)
    screen = SimpleNamespace(text="")

    def wait_for(pattern: str) -> None:
        deadline = time.monotonic() + 120
        while not re.search(pattern, screen.text, re.DOTALL):
            assert time.monotonic() < deadline, screen.text
            if select.select([terminal], [], [], 1)[0]:
                screen.text += os.read(terminal, 4096).decode(errors="replace")

    wait_for(r"> $")
    os.write(terminal, b"Tell me a very long story about a fox, with all details.\n")
    wait_for(r"details\.\r\n.{40}")
    os.write(terminal, b"\x03")
    wait_for(r"tokens used.*> $")
    written = int(re.search(r"(\d+)\s+written", screen.text)[1])
    assert 0 < written < 2000
    os.write(terminal, b"\x04")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    os.close(terminal)
