"""Runs of the small shop, and bundles made of them."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from llm4msr.data.prepared import PreparedData
from llm4msr.knowledge.folder import KnowledgeFolder
from llm4msr.serving.log import EventRecord
from llm4msr.serving.requests import ScoreRequest
from llm4msr.serving.scorer import Scorer
from llm4msr.training.config import RunConfig
from llm4msr.training.run import train_run
from tests.models.zoo import BACKBONES


def train_shop(
    folder: Path,
    data: PreparedData,
    knowledge: KnowledgeFolder | None,
    backbone: str = "star",
    enhancer: str = "llm4msr",
    settings: dict[str, Any] | None = None,
    **more: Any,
) -> Path:
    """A run of one short epoch."""
    config = {
        "data": str(data.path),
        "knowledge_folder": None if knowledge is None else str(knowledge.path),
        "model": {
            "embedding_dim": 4,
            "backbone": {"name": backbone, "settings": BACKBONES[backbone]},
            "enhancer": {"name": enhancer, "settings": settings or {}},
        },
        "knowledge": {"dimensions": 6, **more},
        "train": {"epochs": 1, "batch_size": 256, "validations_per_epoch": 1, "learning_rate": 0.02},
    }
    train_run(RunConfig.checked(config, "the test"), folder)
    return folder


def moment_of(data: PreparedData, row: int) -> datetime:
    """The time of a row."""
    return datetime.fromtimestamp(int(data.time[row]) / 1e6, tz=UTC)


def replayed(scorer: Scorer, data: PreparedData, context: pl.DataFrame) -> np.ndarray:
    """The probability of each test row, scored online: before what happened at its time, after all before it.

    `context` has the raw context of every row, in the data's order.
    """
    first, last = data.split.range("test")
    out = np.empty(last - first)
    moments = np.asarray(data.time[first:last])
    positives = data.positives.filter(pl.col("time") >= data.split.test_time)
    for moment in np.unique(moments):
        for row in np.flatnonzero(moments == moment) + first:
            request = ScoreRequest(
                user=data.users["user"][int(data.user[row])],
                scenario=data.schema.scenarios[int(data.scenario[row])].value,
                items=[data.items["item"][int(data.item[row])]],
                features=context.row(int(row), named=True),
            )
            out[row - first] = scorer.score([request])[0].scores[0]
        scorer.live.write(records(data, positives.filter(pl.col("time") == int(moment))))
    return out


def records(data: PreparedData, positives: pl.DataFrame) -> list[EventRecord]:
    """Positives as the events that a server is told of."""
    return [
        EventRecord(
            data.users["user"][user],
            data.items["item"][item],
            data.schema.scenarios[scenario].value,
            time,
            data.schema.behaviours[behaviour].name,
        )
        for user, item, scenario, time, behaviour in positives.select(
            "user", "item", "scenario", "time", "behaviour"
        ).iter_rows()
    ]
