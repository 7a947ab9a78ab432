"""Training speed, end to end: our batches beside a row-wise loader, in one run, in turn, with the same model.

    python -m benchmarks.training_speed [PREPARED] [--steps 60] [--rounds 3]

`PREPARED` is a prepared folder; without it the full Complete Journey task (2.3 M rows, 14 fields) is prepared into a
temporary folder. The row-wise loader is what public multi-scenario libraries use: a `Dataset` that gives one dict a
row, collated by a `DataLoader` with two workers. Both feed the same STAR (embedding 16, layers 256-128-64), batch
4096, fp32, Adam, for the same number of steps. Times include everything between the first step and the last: making
the batch, forward, backward, update. The clock starts when the first batch is there, so that starting the peer's
workers does not count.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, RandomSampler

from llm4msr.data.prepare import prepare
from llm4msr.data.prepared import PreparedData
from llm4msr.data.sources.completejourney import CompleteJourneyConfig, complete_journey
from llm4msr.models.batch import Batch
from llm4msr.models.model import ModelConfig, MultiScenarioModel, PartChoice, build_model
from llm4msr.training.batches import BatchSource
from llm4msr.training.optim import Optimizers

BATCH = 4096


class RowWise(Dataset[dict[str, Tensor]]):
    """One dict a row, as peers' data sets give it."""

    def __init__(self, data: PreparedData) -> None:
        names = [f.name for f in data.fields_of("categorical")]
        self._columns = {name: torch.from_numpy(np.array(data.field(name))) for name in names}
        self._scenario = torch.from_numpy(np.array(data.scenario))
        self._label = torch.from_numpy(np.array(data.label))
        self._rows = data.split.valid

    def __len__(self) -> int:
        return self._rows

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        found = {name: column[row] for name, column in self._columns.items()}
        return {**found, "scenario": self._scenario[row], "label": self._label[row]}


def row_wise_batches(data: PreparedData) -> Iterator[Batch]:
    """The row-wise loader's batches, put into our form, so that both feed the same model."""
    names = [f.name for f in data.fields_of("categorical")]
    rows = RowWise(data)
    loader: DataLoader[Any] = DataLoader(rows, BATCH, sampler=RandomSampler(rows), num_workers=2)
    for raw in loader:
        order = torch.argsort(raw["scenario"], stable=True)
        counts = torch.bincount(raw["scenario"].long(), minlength=data.scenario_count)
        yield Batch(
            categorical=torch.stack([raw[name] for name in names], 1)[order].long(),
            multi=torch.empty(len(order), 0, dtype=torch.int64),
            numeric=torch.empty(len(order), 0),
            offsets=(0, *counts.cumsum(0).tolist()),
            label=raw["label"][order].float(),
            rows=torch.arange(len(order)),
        )


def train(model: MultiScenarioModel, optimizers: Optimizers, batches: Iterator[Batch], steps: int) -> float:
    """Rows a second over `steps` steps, from when the first batch is there."""
    rows, began = 0, 0.0
    for batch in islice(batches, steps):
        began = began or time.perf_counter()
        loss = functional.binary_cross_entropy_with_logits(model(batch)[0], batch.label)
        optimizers.zero_grad()
        loss.backward()
        optimizers.step()
        rows += len(batch)
    return rows / (time.perf_counter() - began)


def measure(data: PreparedData, steps: int, rounds: int) -> None:
    """Print rows a second of both, and their ratio, for each round and as the median."""
    if len(data.fields_of("categorical")) < len(data.schema.fields) or data.split.valid < steps * BATCH:
        raise SystemExit(f"the benchmark needs categorical fields only, and {steps * BATCH:,} training rows")
    source = BatchSource(data)
    config = ModelConfig(backbone=PartChoice(name="star"))
    model = build_model(config, source.layout, data.scenario_count, source.widths, seed=0).train()
    optimizers = Optimizers(model, learning_rate=1e-3, embedding_decay=1e-5, weight_decay=0.0)
    fields = len(data.schema.fields)
    print(f"{data.rows:,} rows, {fields} fields, STAR 256-128-64, batch {BATCH}, {torch.get_num_threads()} threads")
    train(model, optimizers, source.epoch(BATCH, seed=0, epoch=0), 10)
    ratios = []
    for number in range(1, rounds + 1):
        ours = train(model, optimizers, source.epoch(BATCH, seed=number, epoch=0), steps)
        peer = train(model, optimizers, row_wise_batches(data), steps)
        ratios.append(ours / peer)
        print(f"round {number}: ours {ours:,.0f} rows/s, row-wise loader {peer:,.0f} rows/s, ratio {ratios[-1]:.1f}")
    print(f"median ratio to the row-wise loader: {median(ratios):.1f}")


def main() -> None:
    """Read the arguments and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prepared", nargs="?", type=Path)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    if arguments.prepared is not None:
        measure(PreparedData.open(arguments.prepared), arguments.steps, arguments.rounds)
        return
    with tempfile.TemporaryDirectory() as folder:
        measure(
            prepare(complete_journey(CompleteJourneyConfig()), Path(folder) / "data"), arguments.steps, arguments.rounds
        )


if __name__ == "__main__":
    main()
