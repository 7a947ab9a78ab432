"""The cost of LLM4MSR over its own backbone, in turn in one run: of a training step, an evaluation, a request.

    python -m benchmarks.llm4msr_cost [PREPARED] [--backbones star shared_bottom mmoe ple] [--rounds 5] [--device cuda]

Embedding 16, layers 256-128-64, batches of 4096 rows in memory, fp32. Every event changes a user's state, so in a
shuffled batch nearly every row sees a different state. With `rows_together = 16`, up to 16 rows that see the same state
are drawn into a batch as one. "Scoring" takes batches of the validation part in memory, as `llm4msr evaluate` makes
them; "evaluation" includes making them. A request has one user and 100 or 1,000 candidates. The vectors have 64 random
numbers. Each ratio is the median of the ratios of the rounds.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from benchmarks.contender import BATCH, HIDDEN, settled
from benchmarks.task import knowledge_of_that_shape, prepared
from llm4msr.allocation import keep_freed_memory
from llm4msr.data.prepared import PreparedData
from llm4msr.knowledge.tables import NO_KNOWLEDGE
from llm4msr.models.batch import Batch, UserStates
from llm4msr.models.model import ModelConfig, PartChoice, build_model
from llm4msr.training.batches import BatchSource
from llm4msr.training.columns import columns_of
from llm4msr.training.evaluation import predict
from llm4msr.training.order import Drawing
from llm4msr.training.recorded import training_step
from llm4msr.training.train_config import TrainConfig

COLUMNS = ("training step", "rows together", "scoring", "evaluation", "request of 100", "request of 1,000")
TOGETHER = TrainConfig().rows_together
ENHANCERS: dict[str, tuple[str, dict[str, Any]]] = {
    "none": ("none", {}),
    "llm4msr": ("llm4msr", {}),
    "llm4msr, low_rank": ("llm4msr", {"weights": "low_rank"}),
    "llm4msr_light": ("llm4msr_light", {}),
    "llm4msr, match alone": ("llm4msr", {"user": "none"}),
    "epnet": ("epnet", {}),
}


class Timed:
    """A model, its source of batches, and batches in memory."""

    def __init__(self, data: PreparedData, source: BatchSource, backbone: str, enhancer: str) -> None:
        self._data, self._source = data, source
        config = ModelConfig(backbone=PartChoice(name=backbone, settings={"hidden": HIDDEN}), enhancer=chosen(enhancer))
        self._model = build_model(config, source.layout, data.scenario_count, source.widths, seed=0).to(source.device)
        self._training = []
        for together in (1, TOGETHER):
            train = TrainConfig(batch_size=BATCH, rows_together=together)
            step = training_step(self._model, train.optimizers(self._model), source, train)
            self._training.append((step, list(islice(step.batches(0), 5))))
        with torch.inference_mode():
            self._scored = list(islice(source.part("valid", enhancer=self._model.enhancer), 10))
        batches = list(islice(source.epoch(Drawing(BATCH), 0), 5))
        self._requests = [[request(batch, size) for batch in batches] for size in (100, 1000)]

    def round(self) -> list[float]:
        """Seconds, for each column: by batch, and where rows are scored by 4096 rows."""
        self._model.train()
        found = [timed(step, batches) for step, batches in self._training]
        self._model.eval()
        with torch.inference_mode():
            scored = timed(self._model, self._scored) * len(self._scored) / sum(len(b) for b in self._scored)
            began = settled()
            predict(self._model, self._data, self._source, "valid")
            evaluated = (settled() - began) / len(range(*self._data.split.range("valid")))
            found += [scored * BATCH, evaluated * BATCH]
            found += [timed(self._model, batches) for batches in self._requests]
        return found


def chosen(enhancer: str) -> PartChoice:
    """The enhancer of a line of the tables."""
    name, settings = ENHANCERS[enhancer]
    return PartChoice(name=name, settings=settings)


def timed(work: Callable[[Any], object], batches: list[Any]) -> float:
    """Seconds a batch."""
    began = settled()
    for batch in batches:
        work(batch)
    return (settled() - began) / len(batches)


def request(batch: Batch, size: int) -> Batch:
    """The first rows of a batch as candidates of one user in one scenario."""

    def first(tensor: Tensor | None) -> Any:
        return None if tensor is None else tensor[:size]

    users = batch.users
    if users is not None:
        users = UserStates(users.vectors[:1], torch.zeros(size, dtype=torch.int64, device=users.vectors.device))
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
    parser.add_argument("prepared", nargs="?", type=Path)
    parser.add_argument("--backbones", nargs="+", default=["star", "shared_bottom", "mmoe", "ple"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    options = parser.parse_args()
    keep_freed_memory()  # as `llm4msr train` and `serve` do
    with prepared(options.prepared) as data:
        measure(data, torch.device(options.device), options.backbones, options.rounds)


def measure(data: PreparedData, device: torch.device, backbones: list[str], number: int) -> None:
    """Print a table for each backbone. A model that reads no knowledge gets batches without any."""
    plain, known = (
        BatchSource(data, knowledge, device, columns_of(data, knowledge, device))
        for knowledge in (NO_KNOWLEDGE, knowledge_of_that_shape(data))
    )
    for backbone in backbones:
        field = {}
        for name in ENHANCERS:
            reads = ModelConfig(enhancer=chosen(name)).enhancer_config().needs
            field[name] = Timed(data, known if reads else plain, backbone, name)
        rounds = [{name: model.round() for name, model in field.items()} for _ in range(number + 1)][1:]
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
