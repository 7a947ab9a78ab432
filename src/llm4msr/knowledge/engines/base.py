"""The interface of all engines: their settings, answers and methods."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from llm4msr.knowledge.engines import Pooling
from llm4msr.validation import Settings

FinishReason = Literal["stop", "length", "prefill"]

CLOSING_QUESTION = "In one word, these preferences are:"
"""Appended to the generated text by `closing` and `close_cut`; the vector is the state of its last token."""


class Generation(Settings):
    """How a prompt is run, and which hidden state becomes its vector. It is part of the key of a stored answer.

    `pooling` names the state, always after the model's final norm:

    - `last_generated` (the paper's): the last token generated, fed through the model once more; an end-of-text token
      does not count.
    - `mean_generated`: the mean over the generated tokens.
    - `closing`: the last token of a fixed question appended after the generated text.
    - `last_prompt`: the prompt's last token. Nothing is generated.
    - `mean_prompt`: the mean over the prompt's tokens without the first, which is the same outlier in every prompt.
      Nothing is generated.

    With `close_cut`, the same fixed question is appended to a text that the token limit cut off, and the vector is the
    state of the question's last token: a state from the middle of a sentence says little. The paper's own pooling is
    `last_generated` without `close_cut`.

    `chat` wraps the prompt in the model's own chat template, if it has one. Decoding is greedy. `repetition_penalty`
    divides the positive logits of tokens already generated, and multiplies the negative ones (Keskar et al., CTRL,
    2019), since small models otherwise repeat themselves; vLLM applies it to the prompt's tokens, too.
    """

    pooling: Pooling
    max_new_tokens: Annotated[int, Field(ge=1, le=4096)] = 96
    repetition_penalty: Annotated[float, Field(ge=1.0, le=2.0)] = 1.2
    chat: bool = True
    close_cut: bool = True

    @property
    def generates(self) -> bool:
        """Whether text is generated at all."""
        return self.pooling not in ("last_prompt", "mean_prompt")


@dataclass(frozen=True)
class Answer:
    """The answer to one prompt.

    `vector` is float16 `(d,)`. `finish_reason` is "stop" if the text ended by itself, "length" if the token limit cut
    it off, "prefill" if nothing was generated.
    """

    text: str
    vector: NDArray[np.float16]
    finish_reason: FinishReason
    prompt_tokens: int
    generated_tokens: int


@dataclass(frozen=True)
class Refusal:
    """The reason why a prompt got no answer. Such a prompt is set aside, and the others go on."""

    reason: str


Outcome = Answer | Refusal


class Engine(Protocol):
    """A frozen LLM that answers prompts."""

    @property
    def identity(self) -> dict[str, Any]:
        """Model, revision and number format: all that an answer depends on, besides generation settings and prompt."""
        ...

    @property
    def model_name(self) -> str:
        """The model's name, for people: no answer depends on it."""
        ...

    @property
    def special_tokens(self) -> Sequence[str]:
        """Tokens that steer the model and must not come from data."""
        ...

    def run(self, prompts: Sequence[str], generation: Generation) -> Iterator[Sequence[tuple[int, Outcome]]]:
        """Answer the prompts in any order. Yields finished batches of (position in `prompts`, outcome)."""
        ...


EngineFor = Callable[[Mapping[str, Any]], Engine]
"""Makes the engine that knowledge was made with, given its identity."""
