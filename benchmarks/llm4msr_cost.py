"""What LLM4MSR costs over its own backbone, in one run, in turn: a training step, an evaluation, a request.

    python -m benchmarks.llm4msr_cost PREPARED KNOWLEDGE [--backbones star shared_bottom] [--rounds 9]

Embedding 16, layers 256-128-64, batches of 4096 rows in memory, fp32. In training and evaluation nearly every row sees
a user state of its own, since states move with every event; a request has one user and 100 or 1,000 candidates, so that
what is made of her state is made once. Ratios are medians of the rounds' own ratios.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.contender import BATCH, HIDDEN
from llm4msr.models.batch import Batch, UserStates
from llm4msr.models.model import ModelConfig, PartChoice
from llm4msr.training.optim import Optimizers
from llm4msr.training.run import RunConfig, open_run

COLUMNS = ("training step", "evaluation", "request of 100", "request of 1,000")
ENHANCERS: dict[str, tuple[str, dict[str, Any]]] = {
    "none": ("none", {}),
    "llm4msr": ("llm4msr", {}),
    "llm4msr, low_rank": ("llm4msr", {"weights": "low_rank"}),
    "llm4msr, match alone": ("llm4msr", {"user": "none"}),
    "epnet": ("epnet", {}),
}


class Timed:
    """A model and its batches."""

    def __init__(self, data: Path, knowledge: Path, backbone: str, enhancer: str) -> None:
        name, settings = ENHANCERS[enhancer]
        config = RunConfig(
            data=data,
            knowledge_folder=knowledge,
            model=ModelConfig(
                backbone=PartChoice(name=backbone, settings={"hidden": HIDDEN}),
                enhancer=PartChoice(name=name, settings=settings),
            ),
        )
        _, source, self._model = open_run(config)
        self._batches = list(islice(source.epoch(BATCH, 0, 0), 5))
        self._requests = [[request(batch, size) for batch in self._batches] for size in (100, 1000)]
        self._optimizers = Optimizers(self._model, learning_rate=1e-3, embedding_decay=1e-5, weight_decay=0.0)

    def round(self) -> list[float]:
        """Seconds a batch of each column."""
        self._model.train()
        found = [timed(self._train, self._batches)]
        self._model.eval()
        with torch.inference_mode():
            found += [timed(lambda b: self._model(b), some) for some in (self._batches, *self._requests)]
        return found

    def _train(self, batch: Batch) -> None:
        logits, _ = self._model(batch)
        self._optimizers.zero_grad()
        functional.binary_cross_entropy_with_logits(logits, batch.label).backward()
        self._optimizers.step()


def timed(work: Callable[[Batch], object], batches: list[Batch]) -> float:
    """Seconds a batch."""
    began = time.perf_counter()
    for batch in batches:
        work(batch)
    return (time.perf_counter() - began) / len(batches)


def request(batch: Batch, size: int) -> Batch:
    """The first rows of a batch as candidates of one user in one scenario."""

    def first(tensor: Tensor | None) -> Any:
        return None if tensor is None else tensor[:size]

    users = batch.users
    if users is not None:
        users = UserStates(users.vectors[:1], torch.zeros(size, dtype=torch.int64))
    last = (size,) * (len(batch.offsets) - 1)
    return replace(
        batch,
        **{name: first(getattr(batch, name)) for name in ("categorical", "multi", "numeric", "label", "rows", "item")},
        offsets=(0, *last),
        users=users,
    )


def main() -> None:
    """Measure and print a table for each backbone."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prepared", type=Path)
    parser.add_argument("knowledge", type=Path)
    parser.add_argument("--backbones", nargs="+", default=["star", "shared_bottom"])
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    for backbone in options.backbones:
        field = {name: Timed(options.prepared, options.knowledge, backbone, name) for name in ENHANCERS}
        rounds = [{name: model.round() for name, model in field.items()} for _ in range(options.rounds + 1)][1:]
        print(f"| {backbone} | {' | '.join(f'{column}, ms | ratio' for column in COLUMNS)} |")
        print(f"|---|{'---:|---:|' * len(COLUMNS)}")
        for name in field:
            cells = []
            for place in range(len(COLUMNS)):
                ratio = median(found[name][place] / found["none"][place] for found in rounds)
                cells.append(f"{median(found[name][place] for found in rounds) * 1e3:.2f} | {ratio:.2f}")
            print(f"| {name} | {' | '.join(cells)} |", flush=True)
        print()


if __name__ == "__main__":
    main()
