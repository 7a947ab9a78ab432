"""What every engine takes and gives."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

Pooling = Literal["last_generated", "last_prompt", "mean_prompt", "mean_generated", "closing"]
FinishReason = Literal["stop", "length", "prefill"]

CLOSING_QUESTION = "In one word, these preferences are:"
"""Appended after the summary by the pooling `closing`; the vector is the state of its last token."""


class Generation(BaseModel):
    """How a prompt is run, and which hidden state is kept of it. It is part of what a stored answer is found by.

    `pooling` names the state, always after the model's final norm:

    - `last_generated` (the paper's): the last token generated, fed through the model once more; an end-of-text token
      does not count.
    - `mean_generated`: the mean over the generated tokens.
    - `closing`: the last token of a fixed question appended after the generated text.
    - `last_prompt`, `mean_prompt`: the prompt's last token, or the mean over its tokens without the first, which in
      every prompt is the same outlier. Nothing is generated.

    A text that the token limit cut off is, where `close_cut` is set, closed with the same fixed question, and the
    vector is the question's last state: the state in the middle of a sentence says little. The paper's own pooling is
    `last_generated` without it.

    `chat` wraps the prompt in the model's own chat template, where it has one. Decoding is greedy;
    `repetition_penalty` divides the positive logits of tokens already generated, and multiplies the negative ones
    (Keskar et al., CTRL, 2019), since small models otherwise repeat themselves.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

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
    """What came of one prompt.

    `vector` is float16 `(d,)`. `finish_reason` is "stop" where the text ended by itself, "length" where the token
    limit cut it off, "prefill" where nothing was generated.
    """

    text: str
    vector: NDArray[np.float16]
    finish_reason: FinishReason
    prompt_tokens: int
    generated_tokens: int


@dataclass(frozen=True)
class Refusal:
    """A prompt that got no answer, and why. It is set aside, and the others go on."""

    reason: str


Outcome = Answer | Refusal


class Engine(Protocol):
    """A frozen LLM that answers prompts."""

    @property
    def identity(self) -> dict[str, Any]:
        """Model, revision and number format: with the generation settings, all that an answer depends on."""
        ...

    @property
    def special_tokens(self) -> Sequence[str]:
        """Tokens that steer the model and must not come from data."""
        ...

    def run(self, prompts: Sequence[str], generation: Generation) -> Iterator[Sequence[tuple[int, Outcome]]]:
        """Answer the prompts in any order: each item is one finished batch of (position in `prompts`, outcome)."""
        ...
