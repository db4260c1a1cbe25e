"""Conversations as the model wants them written: its own chat template."""

from __future__ import annotations

from collections.abc import Sequence

import jinja2
import llama_cpp
import numpy as np
from llama_cpp.llama_chat_format import Jinja2ChatFormatter

from ..errors import InputError
from .models import Model

Message = dict[str, str]
"""`role` (system, user or assistant) and `content`."""


class Template:
    """The template in a model's metadata, run as Jinja: llama.cpp's C interface only knows some by heart.

    Raises InputError where there is none, or it cannot be read.
    """

    def __init__(self, model: Model) -> None:
        source = source_of(model)
        if source is None:
            raise InputError(f"{model.name} has no chat template: it continues text. Take an instruct model.")
        self._model = model
        self._start = model.bos_text
        try:
            self._render = Jinja2ChatFormatter(source, model.eos_text, model.bos_text)
        except jinja2.TemplateError as error:
            raise InputError(
                f"The chat template of {model.name} cannot be read: {error}. Do without it: --raw."
            ) from None

    def tokens(self, messages: Sequence[Message]) -> np.ndarray:
        """int32 tokens of a conversation and of what opens the answer to it.

        Raises InputError for a conversation that the template refuses, such as one with a system message.
        """
        try:
            text = self._render(messages=list(messages)).prompt
        except (jinja2.TemplateError, ValueError, TypeError) as error:
            raise InputError(f"The chat template of {self._model.name} refuses this: {error}") from None
        if self._model.bos is not None:  # the tokenizer adds it
            text = text.removeprefix(self._start)
        return self._model.tokenize(text, markup=True)


def source_of(model: Model) -> str | None:
    """The template as written; None where the model has none."""
    found = llama_cpp.llama_model_chat_template(model.pointer, None)
    return found.decode() if found else None
