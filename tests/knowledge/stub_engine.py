"""An engine without a model: it answers at once, or slowly, and writes down what it was asked.

Run as a program it reasons about prepared data, so that a test can kill it:
`python -m tests.knowledge.stub_engine DATA KNOWLEDGE LOG CONFIG`.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llm4msr.data.prepared import PreparedData
from llm4msr.knowledge.engines.base import Answer, Generation, Outcome, Refusal
from llm4msr.knowledge.reason import reason
from llm4msr.knowledge.reason_config import ReasonConfig

WIDTH = 6
BATCH = 4


class StubEngine:
    """Vectors are drawn from the prompt's hash. `asked` has every prompt run; `log` gets each as a line of JSON."""

    def __init__(self, *, log: Path | None = None, pause: float = 0.0, special_tokens: Sequence[str] = ()) -> None:
        self.asked: list[str] = []
        self._log = log
        self._pause = pause
        self._special_tokens = special_tokens

    @property
    def identity(self) -> dict[str, Any]:
        return {"engine": "stub"}

    @property
    def model_name(self) -> str:
        return "stub"

    @property
    def special_tokens(self) -> Sequence[str]:
        return self._special_tokens

    def run(self, prompts: Sequence[str], generation: Generation) -> Iterator[list[tuple[int, Answer]]]:
        for start in range(0, len(prompts), BATCH):
            batch = list(enumerate(prompts))[start : start + BATCH]
            self.asked.extend(prompt for _, prompt in batch)
            if self._log is not None:
                with self._log.open("a", encoding="utf-8") as file:
                    file.writelines(json.dumps(prompt) + "\n" for _, prompt in batch)
            time.sleep(self._pause)
            yield [(place, stub_answer(prompt, generation)) for place, prompt in batch]


class SilentOnFirst(StubEngine):
    """Says nothing to the first prompt of a batch, as of the first scenario."""

    def run(  # type: ignore[override]
        self, prompts: Sequence[str], generation: Generation
    ) -> Iterator[list[tuple[int, Outcome]]]:
        for batch in super().run(prompts, generation):
            yield [(place, Refusal("no") if place == 0 else answer) for place, answer in batch]


def stub_answer(prompt: str, generation: Generation) -> Answer:
    """What the stub says to a prompt."""
    seed = int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:4])
    vector = np.random.default_rng(seed).standard_normal(WIDTH).astype(np.float16)
    if generation.generates:
        return Answer("so it is", vector, "stop", len(prompt), 3)
    return Answer("", vector, "prefill", len(prompt), 0)


if __name__ == "__main__":
    data, knowledge, log, config = sys.argv[1:]
    engine = StubEngine(log=Path(log), pause=0.05)
    reason(PreparedData.open(Path(data)), engine, Path(knowledge), ReasonConfig.model_validate_json(config))
