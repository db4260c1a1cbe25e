"""What llama.cpp would end the process for is an exception in Python, and the process goes on."""

from __future__ import annotations

import ctypes
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import llama_cpp
import llama_cpp.llama_cpp as api
import numpy as np
import pytest
from llama_cpp import LlamaGrammar

import llama_models
from llama_session import Session
from llama_tq import Pair
from llama_tq.runtime import embedded
from llama_tq.runtime.means import means
from llama_tq.runtime.models import Context, Model

TQ = {"type_k": "tq4_0", "type_v": "tq3_0"}


def llama(**options: object) -> llama_cpp.Llama:
    return llama_cpp.Llama(str(embedded.MODEL), **{"n_ctx": 256, "verbose": False, **TQ, **options})


def closed(what: Callable[[llama_cpp.Llama], object]) -> None:
    model = llama()
    model.eval([1, 2, 3])
    model.close()
    what(model)


def raw(what: Callable[[Session], object], **options: object) -> None:
    """Afterwards the context still decodes."""
    with Session(embedded.MODEL, *TQ.values(), **options) as session:
        session.decode([1, 2, 3])
        try:
            what(session)
        finally:
            api.llama_memory_clear(session.memory, True)
            session.decode([4, 5, 6])


def sampled(session: Session, sampler: object) -> None:
    api.llama_sampler_sample(sampler, session.context, -1)


def vocabulary(session: Session) -> int:
    return api.llama_model_get_vocab(api.llama_get_model(session.context))


def encoded(session: Session) -> None:
    api.llama_encode(session.context, api.llama_batch_get_one((ctypes.c_int32 * 2)(1, 2), 2))


def context_of(type_k: int, type_v: int) -> None:
    """By numbers, which llama_cpp.Llama does not let through."""
    model = llama()
    params = api.llama_context_default_params()
    params.type_k, params.type_v = type_k, type_v
    params.flash_attn_type = api.LLAMA_FLASH_ATTN_TYPE_ENABLED
    with llama_cpp._tq.native_errors() as errors:
        context = api.llama_init_from_model(model.model, params)
    assert context is None
    raise ValueError("; ".join(errors))


def positions_that_were_not_learned() -> None:
    path = Path(sys.argv[1])
    with Session(path, "f16", "f16", cells=2 * llama_models.CONTEXT) as session:
        end = llama_models.CONTEXT
        session.decode([1, 2], end - 2)
        with llama_cpp._tq.native_errors() as errors:
            try:
                session.decode([3, 4], end)
            except AssertionError:
                raise ValueError("; ".join(errors)) from None


def left(what: Callable[[Model, Context], object]) -> None:
    with Model("demo") as model, model.context(Pair("tq4_0", "tq4_0"), 256) as context:
        pass
    what(model, context)


CASES: dict[str, tuple[Callable[[], object], str]] = {
    "a batch beyond n_batch": (
        lambda: raw(lambda s: s.decode([1] * 300, 3)),
        r"RuntimeError: llama_decode: .*n_tokens_all <= cparams.n_batch",
    ),
    "a batch without tokens": (
        lambda: raw(lambda s: api.llama_decode(s.context, api.llama_batch(n_tokens=1))),
        "RuntimeError: llama_decode: the batch has neither tokens nor embeddings",
    ),
    "a batch of -1 tokens": (
        lambda: api.llama_batch_init(-1, 0, 1),
        "RuntimeError: llama_batch_init: .*-1 tokens",
    ),
    "n_batch of -1": (lambda: llama(n_batch=-1), "RuntimeError: llama_batch_init: .*-1 tokens"),
    "an encoder that is not there": (
        lambda: raw(encoded),
        "RuntimeError: llama_encode: the model has no encoder",
    ),
    "no context": (lambda: api.llama_n_ctx(None), "RuntimeError: llama_n_ctx: the context is NULL"),
    "no model": (lambda: api.llama_model_n_embd(None), "RuntimeError: llama_model_n_embd: the model is NULL"),
    "a sequence that is not there": (
        lambda: raw(lambda s: api.llama_memory_seq_rm(s.memory, -7, 0, -1)),
        "RuntimeError: llama_memory_seq_rm: .*seq_id",
    ),
    "a part of a sequence of its own": (
        lambda: raw(lambda s: api.llama_memory_seq_cp(s.memory, 0, 1, 1, 2), sequences=2, unified=False),
        r"RuntimeError: llama_memory_seq_cp: .*full KV buffers",
    ),
    "positions divided by 0": (
        lambda: raw(lambda s: api.llama_memory_seq_div(s.memory, 0, 0, -1, 0)),
        "RuntimeError: llama_memory_seq_div: positions cannot be divided by 0",
    ),
    "positions that were not learned": (
        positions_that_were_not_learned,
        "ValueError: there is no position 4096: the model has learned 4096",
    ),
    "a token without text": (
        lambda: raw(lambda s: api.llama_vocab_get_text(vocabulary(s), 10**8)),
        "RuntimeError: llama_vocab_get_text: ",
    ),
    "a token without a kind": (
        lambda: raw(lambda s: api.llama_vocab_is_control(vocabulary(s), 10**8)),
        "RuntimeError: llama_vocab_is_control: there is no token 100000000",
    ),
    "tokens without text": (lambda: llama().detokenize([10**8]), "RuntimeError: llama_token_to_piece: "),
    "no sampler": (
        lambda: raw(lambda s: sampled(s, None)),
        "RuntimeError: llama_sampler_sample: the sampler is NULL",
    ),
    "a sampler that chooses nothing": (
        lambda: raw(
            lambda s: sampled(s, api.llama_sampler_chain_init(api.llama_sampler_chain_default_params()))
        ),
        "RuntimeError: llama_sampler_sample: .*cur_p.selected",
    ),
    "a grammar that cannot be parsed": (
        lambda: llama()("x", max_tokens=1, grammar=LlamaGrammar.from_string("root ::= (", verbose=False)),
        "ValueError: The grammar cannot be parsed",
    ),
    "a cache of integers": (lambda: context_of(26, 26), "ValueError: a cache cannot have the type i32"),
    "a block larger than a head": (
        lambda: context_of(14, llama_cpp.GGML_TYPE_TQ4_0),
        "ValueError: K cache type q6_K needs head sizes that are multiples of 256, and layer 0 has 128",
    ),
    "a pooling that is not there": (
        lambda: llama(embedding=True, pooling_type=77),
        "ValueError: Failed to create llama_context: .*unknown pooling type",
    ),
    "a call of a closed model": (
        lambda: closed(lambda m: m("x", max_tokens=1)),
        "RuntimeError: .* is NULL: closed",
    ),
    "tokens for a closed model": (lambda: closed(lambda m: m.eval([1])), "AssertionError"),
    "text from a closed model": (
        lambda: closed(lambda m: m.detokenize([1])),
        "RuntimeError: .* is NULL: closed",
    ),
    "the state of a closed model": (
        lambda: closed(lambda m: m.save_state()),
        "RuntimeError: .* is NULL: closed",
    ),
    "tokens for a model that was left": (
        lambda: left(lambda model, _: model.tokenize("x")),
        "RuntimeError: llama_vocab_type: the vocabulary is NULL: closed",
    ),
    "the means of a model that was left": (
        lambda: left(lambda model, _: means(model)),
        "ValueError: there is nothing at this address: closed",
    ),
    "the memory of a context that was left": (
        lambda: left(lambda _, context: context.memory),
        "ValueError: there is nothing at this address: closed",
    ),
    "tokens for a context that was left": (
        lambda: left(lambda _, context: context.decode(np.ones(4, np.int32), 0)),
        "ValueError",
    ),
}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Of all cases in one process, one after the other."""
    path = tmp_path_factory.mktemp("models") / "learned.gguf"
    llama_models.learned_positions(path)
    done = subprocess.run([sys.executable, __file__, path], capture_output=True, text=True)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    return {**dict(lines), "rc": f"{done.returncode}: {done.stderr[-2000:]}"}


@pytest.mark.parametrize("case", CASES)
def test_is_an_exception(results: dict[str, str], case: str):
    assert case in results, f"the process ended: {results['rc']}"
    assert re.match(CASES[case][1], results[case]), results[case]


def test_the_process_goes_on(results: dict[str, str]):
    assert results["rc"].startswith("0:"), results["rc"]


def main() -> None:
    for name, (case, _) in CASES.items():
        try:
            case()
        except Exception as error:
            result = f"{type(error).__name__}: {error}"
        else:
            result = "nothing"
        print(json.dumps([name, result]), flush=True)


if __name__ == "__main__":
    main()
