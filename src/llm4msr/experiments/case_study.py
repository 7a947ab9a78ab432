"""The paper's Figure 5: the LLM's texts on the scenarios and one user, and how that knowledge changes the scores."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from llm4msr.data.prepared import PreparedData
from llm4msr.errors import InputError
from llm4msr.knowledge.engines.base import EngineFor
from llm4msr.knowledge.folder import KnowledgeFolder
from llm4msr.knowledge.written import scenario_texts
from llm4msr.models.batch import Batch
from llm4msr.models.readers import mean_state
from llm4msr.report.explain import Explanation, code_of_user, explain_user
from llm4msr.report.sheets import Cell, Sheet
from llm4msr.training.config import RunConfig
from llm4msr.training.identity import run_config
from llm4msr.training.run import open_trained


@dataclass(frozen=True)
class CaseStudy:
    """A user's explanation, and a table of their test rows: scores with their own knowledge, and with the mean.

    `scenarios` has the LLM's text about each scenario, by title; it is empty if the LLM was not asked about them.
    """

    scenarios: dict[str, str]
    explanation: Explanation
    scores: Sheet


def case_study(
    run: Path, user: str, engine: EngineFor, *, most: int = 10, config: RunConfig | None = None
) -> CaseStudy:
    """Study one user of a finished run; the table has the `most` rows of each scenario whose scores change most.

    Give a `config` if data or knowledge have moved since the run.

    Raises `InputError` if the run reads no user knowledge, or the user is unknown or has no test row.
    """
    config = run_config(run) if config is None else config
    data, source, model = open_trained(run, config)
    if not source.widths.users or config.knowledge_folder is None:
        raise InputError(f"{run}: its enhancer {config.model.enhancer.name!r} reads no knowledge of users")
    found = code_of_user(data, user)
    first, last = data.split.range("test")
    rows = np.flatnonzero(np.asarray(data.user[first:last]) == found) + first
    if not len(rows):
        raise InputError(f"{data.path}: the user {user!r} has no row in the test part; choose one who has")
    batch = source.make(rows)
    own = _scores(model, batch)
    with_mean = _with_mean_state(batch, source.population(), source.widths.users)
    everybody = _scores(model, with_mean)
    folder = KnowledgeFolder.open(config.knowledge_folder, data)
    sheet = _sheet(user, data, batch, own, everybody, folder.writer(data).title, most)
    texts = {data.schema.scenarios[d].title: text for d, text in scenario_texts(folder).items()}
    return CaseStudy(texts, explain_user(data, folder, user, engine), sheet)


def telling_user(data: PreparedData) -> str:
    """The id of the test part's user who has positives in the most scenarios before the test part.

    Among equals, the one with the most positives.
    """
    first, last = data.split.range("test")
    tested = pl.DataFrame({"user": np.unique(np.asarray(data.user[first:last]))})
    before = data.positives.filter(pl.col("time") < data.split.test_time)
    counted = before.group_by("user").agg(pl.col("scenario").n_unique(), pl.len()).join(tested, on="user")
    if counted.is_empty():
        return str(data.users["user"][int(tested["user"][0])])
    best = counted.sort("scenario", "len", "user", descending=[True, True, False])["user"][0]
    return str(data.users["user"][int(best)])


def _with_mean_state(batch: Batch, others: Batch, splits: tuple[int, ...]) -> Batch:
    """The batch with every user state replaced by a mean: of each source, over the rows of `others` that know it."""
    assert batch.users is not None
    assert others.users is not None
    mean = mean_state(others.users, splits).expand_as(batch.users.vectors).contiguous()
    return replace(batch, users=replace(batch.users, vectors=mean))


def _scores(model: torch.nn.Module, batch: Batch) -> NDArray[np.float32]:
    model.eval()
    with torch.inference_mode():
        scores: NDArray[np.float32] = torch.sigmoid(model(batch)[0]).float().cpu().numpy()
    return scores


def _sheet(
    user: str,
    data: PreparedData,
    batch: Batch,
    own: NDArray[np.float32],
    mean: NDArray[np.float32],
    title: Callable[[int], str],
    most: int,
) -> Sheet:
    rows, scenario = batch.rows.cpu().numpy(), batch.scenario_ids().cpu().numpy()
    lines = []
    for d, titled in enumerate(data.schema.scenarios):
        there = np.flatnonzero(scenario == d)
        order = there[np.argsort(-np.abs(own[there] - mean[there]), kind="stable")]
        _, first = np.unique(np.asarray(data.item)[rows[order]], return_index=True)  # an item once, where it moves most
        for place in order[np.sort(first)][:most]:
            name = title(int(data.item[rows[place]]))
            line = [titled.title, name, "yes" if data.label[rows[place]] else ""]
            change = own[place] - mean[place]
            lines.append([*(Cell(v) for v in line), *(Cell(f"{v:.3f}") for v in (own[place], mean[place]))])
            lines[-1].append(Cell(f"{change:+.3f}", bool((change > 0) == (data.label[rows[place]] == 1))))
    header = ["scenario", "item", "clicked", "score", "with the mean knowledge", "change"]
    note = "The user's test rows that change most, one per item; bold if the change is towards what the user did."
    return Sheet(f"What the user's knowledge changes: user {user}", header, lines, 3, note)
