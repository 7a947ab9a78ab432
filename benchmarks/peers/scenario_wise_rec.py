"""Scenario-Wise-Rec: its loader makes one dict per row in two worker processes; its models run all towers on all rows.

Its scripts give the loader a pandas `DataFrame`. With a dict of arrays instead it is faster; both are shown. As in its
scripts, MMoE has one expert per scenario, and PLE has one level of 2 specific and 1 shared experts.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd
import torch

from benchmarks.contender import DIM, HIDDEN, Contender, NotHereError, Task

NAME = "Scenario-Wise-Rec"


def contenders(task: Task) -> dict[str, list[Contender]]:
    """Its contenders, by the name of our backbone. Raises `NotHereError` if the library is missing."""
    folder = os.environ.get("SCENARIO_WISE_REC")
    if folder is None:
        raise NotHereError("set SCENARIO_WISE_REC to a clone of it")
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        features = importlib.import_module("scenario_wise_rec.basic.features")
        models = importlib.import_module("scenario_wise_rec.models.multi_domain")
        loading = importlib.import_module("scenario_wise_rec.utils.data")
    except ImportError as error:
        raise NotHereError(str(error)) from error
    data = task.data
    train = slice(0, data.split.valid)
    names = [f.name for f in data.fields_of("categorical")]
    rows: dict[str, Any] = {name: np.array(data.field(name)[train], np.int32) for name in names}
    rows["domain_indicator"] = np.array(data.scenario[train]).astype(np.int64)
    label = np.array(data.label[train])
    domains = data.scenario_count
    experts, tower = {"dims": list(HIDDEN[:2])}, {"dims": [HIDDEN[2]]}

    def fields() -> list[Any]:
        return [features.SparseFeature(n, vocab_size=data.vocabulary_size(n), embed_dim=DIM) for n in names]

    built: dict[str, Any] = {
        "star": lambda: models.Star(fields(), domains, list(HIDDEN), [32]),
        "shared_bottom": lambda: models.SharedBottom(fields(), domains, experts, tower),
        "mmoe": lambda: models.MMOE(fields(), domains, domains, experts, tower),
        "ple": lambda: models.PLE(fields(), domains, 1, 2, 1, experts, tower),
        "ple, two levels": lambda: models.PLE(fields(), domains, 2, 2, 2, experts, tower),
    }

    frame, series = pd.DataFrame(rows), pd.Series(label)

    def loader(x: Any, y: Any) -> Callable[[], Iterator[Any]]:
        def batches() -> Iterator[Any]:
            generator = loading.DataGenerator(x, y)
            found, _, _ = generator.generate_dataloader(
                x_val=x, y_val=y, x_test=x, y_test=y, batch_size=task.batch, num_workers=2
            )
            return iter(found)

        return batches

    return {
        name: [
            Contender(f"{NAME} {name}", task.batch, loader(frame, series), _step(make(), task.device)),
            Contender(f"{NAME} {name}, fed arrays", task.batch, loader(rows, label), _step(make(), task.device)),
        ]
        for name, make in built.items()
    }


def _step(model: Any, device: torch.device) -> Any:
    """The step function: one iteration of its trainer."""
    model.to(device).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, weight_decay=1e-5)
    criterion = torch.nn.BCELoss()

    def step(batch: Any) -> None:
        x, y = {name: value.to(device) for name, value in batch[0].items()}, batch[1].to(device)
        loss = criterion(model(x), y.float())
        model.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()

    return step
