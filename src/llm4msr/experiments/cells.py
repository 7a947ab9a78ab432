"""The cells of a matrix, and whether each of them can be run at all."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from llm4msr.data.prepared import PreparedData
from llm4msr.errors import InputError
from llm4msr.experiments.config import MatrixConfig
from llm4msr.knowledge.controls import CONTROLS, NO_CONTROL
from llm4msr.knowledge.folder import KnowledgeFolder
from llm4msr.knowledge.readings import VECTORS, open_reading
from llm4msr.models.model import ModelConfig, PartChoice
from llm4msr.models.registry import BACKBONES
from llm4msr.training.config import RunConfig

RUNS = "runs"
"""The name of the folder of all runs, inside a study's folder."""
_LEVEL = {"scenario": "scenario", "prompted": "user", "own": "item", "others": "item", "item": "item"}
"""The level that each kind of knowledge is made from."""


@dataclass(frozen=True)
class Cell:
    """One data set, backbone, enhancer and control, with the settings that its search starts from."""

    data: str
    backbone: str
    enhancer: str
    control: str
    base: RunConfig

    @property
    def name(self) -> str:
        """The cell's name in errors and progress."""
        return f"{self.data}: {self.backbone} with {self.base.knowledge.replacement.label(self.enhancer)}"

    @property
    def folder(self) -> Path:
        """The folder of its runs, relative to the matrix's root folder."""
        control = self.control if self.base.knowledge.replacement.replaces else ""
        parts = (self.data, self.backbone, f"{self.enhancer} {control}".strip())
        return Path(RUNS, *(re.sub(r"[^A-Za-z0-9.+-]+", "-", part).strip("-.") or "x" for part in parts))

    def config(self, learning_rate: float, embedding_decay: float, seed: int) -> RunConfig:
        """The run config of one seed with the searched settings. A control that draws at random draws anew for it."""
        update = {"learning_rate": learning_rate, "embedding_decay": embedding_decay, "seed": seed}
        train, knowledge = self.base.train, self.base.knowledge
        if knowledge.replacement.disturbs:
            drawn = knowledge.control_seed + seed - train.seed
            knowledge = knowledge.model_copy(update={"control_seed": drawn})
        return self.base.model_copy(update={"train": train.model_copy(update=update), "knowledge": knowledge})


def cells_of(config: MatrixConfig) -> list[Cell]:
    """Every cell, an enhancer before its controls. Raises `InputError` for the first cell that cannot be run."""
    cells = []
    for data_name, choice in config.data.items():
        data = PreparedData.open(choice.folder)
        for backbone, settings in config.backbones.items():
            for label, enhancer in config.enhancers.items():
                folder = enhancer.knowledge or choice.knowledge
                model = ModelConfig(
                    embedding_dim=config.embedding_dim,
                    backbone=PartChoice(name=backbone, settings=settings),
                    enhancer=PartChoice(name=enhancer.name, settings=enhancer.settings),
                )
                for control in (NO_CONTROL, *dict.fromkeys(enhancer.controls)):
                    knowledge = config.knowledge.model_copy(update={"control": control})
                    base = RunConfig(
                        data=choice.folder,
                        knowledge_folder=folder,
                        model=model,
                        knowledge=knowledge,
                        train=config.train,
                    )
                    cell = Cell(data_name, backbone, label, control, base)
                    _check(cell, data)
                    cells.append(cell)
    folders = [cell.folder for cell in cells]
    for cell in cells:
        if folders.count(cell.folder) > 1:
            raise InputError(f"{cell.name}: another cell has the same folder name {cell.folder}; change a label")
    return cells


def _check(cell: Cell, data: PreparedData) -> None:
    """Raise `InputError`, naming the cell, if its parts do not go together."""
    model, folder = cell.base.model, cell.base.knowledge_folder
    try:
        BACKBONES.config(model.backbone.name, model.backbone.settings)
        needs = model.enhancer_config().needs
        if cell.base.knowledge.replacement.replaces and not needs:
            raise InputError(f"the enhancer {model.enhancer.name!r} reads no knowledge that a control could replace")
        if needs:
            if folder is None:
                raise InputError(
                    f"needs {', '.join(sorted(needs))} knowledge, but its data set names no knowledge folder"
                )
            opened = KnowledgeFolder.open(folder, data)
            for level in {_LEVEL[need] for need in needs}:
                opened.subjects(level)  # type: ignore[arg-type]
            read = [kind for kind in cell.base.knowledge.vectors if kind not in VECTORS]
            instead = cell.base.knowledge.replacement.vectors
            if instead is not None and instead not in CONTROLS:
                read.append(instead)
            for kind in read:
                open_reading(opened, data, kind)
        for part in ("train", "valid", "test"):
            first, last = data.split.range(part)
            if first == last:
                raise InputError(f"{data.path}: the {part} part has no row")
    except InputError as error:
        raise InputError(f"the cell {cell.name}: {error}") from error
