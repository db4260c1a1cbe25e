"""A conversation with a model whose cache has chosen types."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator

import numpy as np

from ..errors import InputError
from ..runtime.models import Context, Model
from ..runtime.pairs import REFERENCE, Pair
from ..runtime.template import Template
from .defaults import CHAT_CTX, CHAT_TOKENS
from .generate import Generation, check_tokens, continue_text, conversation


class Chat:
    """Turns of a conversation. The cache keeps them, so that only what is new is read."""

    def __init__(
        self, context: Context, template: Template, system: str | None, temperature: float, seed: int
    ) -> None:
        self._context, self._template, self._system = context, template, system
        self._temperature, self._rng = temperature, np.random.default_rng(seed)
        self._turns: list[str] = []
        self._read = np.empty(0, np.int32)

    @property
    def messages(self) -> list[dict[str, str]]:
        """What has been said: `role` and `content` of every message."""
        return conversation(self._system, *self._turns)

    def ask(
        self,
        message: str,
        *,
        n_tokens: int = CHAT_TOKENS,
        on_text: Callable[[str], object] = lambda _: None,
        stop: Callable[[], bool] = lambda: False,
    ) -> Generation:
        """The answer to `message`, of at most `n_tokens` tokens; `on_text` gets each piece of it at once.

        It ends early, and counts as said, where the context ends, and when `stop`, asked before every token,
        is true. Raises InputError for an empty message, for less than one token, and when there is no room
        for an answer any more: then nothing was said.
        """
        if not message.strip():
            raise InputError("The message is empty. Say something.")
        check_tokens(n_tokens)
        prompt = self._template.tokens([*self.messages, {"role": "user", "content": message}])
        room = self._context.n_ctx - len(prompt)
        if room < 1:
            raise InputError(
                f"The conversation has {len(prompt)} tokens now, and the context {self._context.n_ctx}. "
                "Start another, or one with a larger context."
            )
        before, self._read = self._read, self._read[:0]  # until all of the answer is there
        how = self._temperature, self._rng, on_text
        answer = continue_text(self._context, prompt, min(n_tokens, room), *how, read=before, stop=stop)
        self._read = np.concatenate([prompt, np.array(answer.tokens[:-1], np.int32)])
        self._turns += [message, answer.text]
        return answer


@contextlib.contextmanager
def chat(
    model: str | os.PathLike[str],
    pair: Pair = REFERENCE,
    *,
    system: str | None = None,
    n_ctx: int | None = None,
    temperature: float = 0.0,
    seed: int = 0,
    n_gpu_layers: int = 0,
) -> Iterator[Chat]:
    """A conversation through the chat template of `model`, with a cache of the types in `pair`.

    `with llama_tq.chat("smollm2") as talk: talk.ask("Hello!").text`. The context is of `n_ctx` tokens, by
    default of CHAT_CTX or as many as the model takes, and does not slide. A temperature of 0 takes the most
    probable token. `n_gpu_layers` are on the GPU, with their cache; -1 for all.

    Raises InputError for a bad model, one without a template, and a context that is above the model's.
    """
    with Model(model, n_gpu_layers=n_gpu_layers) as opened:
        template = Template(opened)
        template.tokens(conversation(system, "Hello"))  # refuses a system message here, if at all
        room = n_ctx if n_ctx is not None else min(CHAT_CTX, opened.n_ctx_train)
        with opened.context(pair, room, swa_full=True) as context:
            yield Chat(context, template, system, temperature, seed)
