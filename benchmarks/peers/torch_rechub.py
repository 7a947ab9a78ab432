"""Torch-RecHub: its Shared Bottom, its closest model to a multi-scenario one, with one task for each scenario.

Its multi-task models cannot restrict a tower to some rows, so every tower learns from every row.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from benchmarks.contender import DIM, HIDDEN, Contender, NotHereError, Task

NAME = "Torch-RecHub"


def contenders(task: Task) -> dict[str, list[Contender]]:
    """Its contenders, by the name of our backbone. Raises `NotHereError` if the library is missing."""
    try:
        features = importlib.import_module("torch_rechub.basic.features")
        models = importlib.import_module("torch_rechub.models.multi_task")
        loading = importlib.import_module("torch_rechub.utils.data")
    except ImportError as error:
        raise NotHereError(f"{error}; pip install torch-rechub") from error
    data = task.data
    train = slice(0, data.split.valid)
    names = [f.name for f in data.fields_of("categorical")]
    rows = {name: np.array(data.field(name)[train], np.int32) for name in names}
    tasks = data.scenario_count
    labels = np.repeat(np.array(data.label[train])[:, None], tasks, 1)
    fields = [features.SparseFeature(n, vocab_size=data.vocabulary_size(n), embed_dim=DIM) for n in names]
    tower = {"dims": [HIDDEN[2]]}
    model = models.SharedBottom(fields, ["classification"] * tasks, {"dims": list(HIDDEN[:2])}, [tower] * tasks)
    model.to(task.device).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, weight_decay=1e-5)
    criterion = torch.nn.BCELoss()

    def batches() -> Iterator[Any]:
        generator = loading.DataGenerator(rows, labels)
        loader, _, _ = generator.generate_dataloader(
            x_val=rows, y_val=labels, x_test=rows, y_test=labels, batch_size=task.batch, num_workers=2
        )
        return iter(loader)

    def step(batch: Any) -> None:
        x, y = {name: value.to(task.device) for name, value in batch[0].items()}, batch[1].to(task.device)
        found = model(x)
        loss = sum(criterion(found[:, i], y[:, i].float()) for i in range(tasks)) / tasks
        model.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()

    return {"shared_bottom": [Contender(f"{NAME} SharedBottom", task.batch, batches, step)]}
