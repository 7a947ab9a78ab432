"""The texts of a bundle for people: scenario cards, and the LLM's texts about users."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from llm4msr.data.prepared import PreparedData
from llm4msr.knowledge.folder import KnowledgeFolder
from llm4msr.knowledge.stores import Stores
from llm4msr.knowledge.vectors import Reduction
from llm4msr.knowledge.written import scenario_texts, text_of_snapshot
from llm4msr.serving.requests import ScenarioCard
from llm4msr.serving.trained import Trained
from llm4msr.times import iso


def scenario_cards(trained: Trained) -> list[ScenarioCard]:
    """One card per scenario."""
    data, texts = trained.data, {} if trained.folder is None else scenario_texts(trained.folder)
    vectors = None if trained.folder is None else _directions(trained.folder, data.scenario_count)
    train = slice(0, data.split.valid)
    scenario, label = np.asarray(data.scenario[train]), np.asarray(data.label[train])
    cards = []
    for d, declared in enumerate(data.schema.scenarios):
        there = scenario == d
        cards.append(
            ScenarioCard(
                value=declared.value,
                title=declared.title,
                description=declared.description,
                notes=declared.notes,
                text=texts.get(d, ""),
                rows=int(there.sum()),
                click_rate=round(float(label[there].mean()), 6) if there.any() else None,
                auc=trained.result.scores.scenarios[d].auc,
                similarity=None if vectors is None else [round(float(v), 6) for v in vectors[d] @ vectors.T],
                context=_usual_context(data, np.flatnonzero(there)),
            )
        )
    return cards


def _usual_context(data: PreparedData, rows: NDArray[np.intp]) -> dict[str, Any]:
    """For each context field, in some rows: the most frequent raw value if it is categorical, the mean if numeric."""
    found: dict[str, Any] = {}
    for spec in data.schema.fields:
        if (
            spec.side != "context"
            or spec.kind == "multi"
            or spec.source == data.schema.columns.scenario
            or not len(rows)
        ):
            continue
        column = np.asarray(data.field(spec.name)[rows])
        if spec.kind == "numeric":
            record, mean = data.records[spec.name], float(np.nanmean(column)) if len(column) else 0.0
            found[spec.name] = round(mean * record.deviation + record.mean, 6) if np.isfinite(mean) else None
        elif (counts := np.bincount(column)[1:]).any():
            found[spec.name] = data.vocabulary(spec.name).values[int(counts.argmax())]
    return found


def _directions(folder: KnowledgeFolder, scenarios: int) -> NDArray[np.float32] | None:
    """The scenarios' standardised vectors, scaled to length 1, `(D, d)`; None unless every scenario has one."""
    if (folder.index["level"] == "scenario").sum() < scenarios:
        return None
    _, raw = folder.scenarios()
    vectors = Reduction.fit(raw, 0).apply(raw)
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12), np.float32)


def user_texts(trained: Trained) -> Iterator[tuple[int, str]]:
    """For each user with a snapshot: the code, and as JSON the latest snapshot's time, text and finish reason."""
    folder = trained.folder
    if folder is None or not (folder.index["level"] == "user").any():
        return
    index = folder.subjects("user").filter((pl.col("time") < trained.moment) | (folder.leaks != ""))
    latest = index.sort("subject", "time").group_by("subject", maintain_order=True).last()
    writer = folder.writer(trained.data)
    with Stores(folder.path, read_only=True) as store:
        for user, time, key in latest.select("subject", "time", "key").iter_rows():
            answer = text_of_snapshot(store, folder, writer, user, time, key)
            record = {
                "snapshot": iso(time),
                "time": time,
                "text": "" if answer is None else answer.text,
                "finish_reason": "" if answer is None else answer.finish_reason,
            }
            yield user, json.dumps(record, ensure_ascii=False)
