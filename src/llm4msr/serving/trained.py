"""A finished run, opened for export as a bundle."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import polars as pl

from llm4msr.data.prepared import PreparedData
from llm4msr.errors import InputError
from llm4msr.knowledge.folder import KnowledgeFolder
from llm4msr.models.model import MultiScenarioModel
from llm4msr.serving.states import Events
from llm4msr.times import iso, microseconds
from llm4msr.training.batches import BatchSource
from llm4msr.training.config import RunConfig
from llm4msr.training.identity import run_config
from llm4msr.training.run import RunResult, open_trained, read_result


@dataclass(frozen=True)
class Trained:
    """What a bundle is made from. Its states and histories are from strictly before `moment`."""

    config: RunConfig
    result: RunResult
    data: PreparedData
    source: BatchSource
    model: MultiScenarioModel
    folder: KnowledgeFolder | None
    moment: int

    @property
    def needs(self) -> frozenset[str]:
        """The kinds of knowledge that the model reads."""
        needs: frozenset[str] = self.config.model.enhancer_config().needs
        return needs

    def events(self) -> Events:
        """The positives before the bundle's moment, in order of user and time."""
        frame = self.data.positives.filter(pl.col("time") < self.moment)
        columns = [frame[name].to_numpy() for name in ("user", "time", "item", "scenario", "behaviour")]
        return Events(*columns)


def open_for_export(run: Path, as_of_time: datetime | None, config: RunConfig | None = None) -> Trained:
    """Open a finished run; a `config` says where data and knowledge are now.

    Raises `InputError` if the run has not ended, its data or knowledge changed, or it was trained with a control; and
    if nothing happened before `as_of_time`.
    """
    config = config or run_config(run)
    if config.knowledge.replacement.replaces:
        raise InputError(
            f"{run}: was trained with the control {config.knowledge.control!r} in the place of knowledge, "
            "to be compared and not to be served; export the run without it"
        )
    data, source, model = open_trained(run, config)
    folder = None if config.knowledge_folder is None else KnowledgeFolder.open(config.knowledge_folder, data)
    ends = [int(data.time[0]), int(data.time[-1])]
    if data.positives.height:
        times = data.positives["time"].to_numpy()
        ends += [int(times.min()), int(times.max())]
    first, last = min(ends), max(ends)
    moment = last + 1 if as_of_time is None else microseconds(as_of_time)
    if moment <= first:
        raise InputError(f"the bundle as of {iso(moment)}: nothing happened before; the data begin at {iso(first)}")
    return Trained(config, read_result(run), data, source, model, folder, moment)
