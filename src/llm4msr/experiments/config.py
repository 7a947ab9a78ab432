"""The settings of a matrix of experiments: data sets x backbones x enhancers x seeds, from one TOML file::

seeds = 3
preset = "paper-amazon"                      # the paper's Table 4, for settings not given here
backbones = ["star", "mmoe"]

[data.journey]
folder = "data"
knowledge = "knowledge"

[enhancers.none]
[enhancers.epnet]
[enhancers."llm4msr, composed"]
name = "llm4msr"                             # if the label is not the enhancer's own name
settings = { source = "composed" }
controls = ["random", "shuffled"]            # the same with its knowledge replaced

[search]
trials = 6                                   # a cell, on validation data only
[train]
epochs = 4

Without `backbones` or `enhancers` the matrix takes those of the paper's Table 2, plus the enhancer `llm4msr`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field, field_validator, model_validator

from llm4msr.errors import InputError
from llm4msr.experiments.presets import preset
from llm4msr.knowledge.config import KnowledgeConfig
from llm4msr.models.registry import BACKBONES
from llm4msr.training.train_config import TrainConfig
from llm4msr.validation import Settings, read_toml

_BACKBONES = ("star", "omoe", "mmoe", "ple", "aitm", "shared_bottom")
PLAIN = "none"
"""The name of the enhancer that leaves the backbone alone."""
_ENHANCERS = (PLAIN, "dynamic_network", "epnet", "llm4msr_paper", "llm4msr")


class DataChoice(Settings):
    """A folder that `prepare` wrote, and one that `reason` wrote for it."""

    folder: Path
    knowledge: Path | None = None


class EnhancerChoice(Settings):
    """An enhancer under a label: its registered `name` (a matrix fills in the label), its settings, and its controls.

    `knowledge` is a knowledge folder to read instead of the data set's own.
    """

    name: str = ""
    settings: dict[str, Any] = Field(default_factory=dict)
    controls: tuple[str, ...] = ()
    knowledge: Path | None = None


class Search(Settings):
    """The search for learning rate and embedding decay: `trials` per cell, within the bounds, on a logarithmic scale.

    The first trial uses the configured settings; with 0 trials they are taken without a search.
    """

    trials: int = Field(default=6, ge=0, le=1000)
    learning_rate: tuple[float, float] = (2e-4, 1e-2)
    embedding_decay: tuple[float, float] = (1e-5, 5e-3)

    @model_validator(mode="after")
    def _bounds(self) -> Search:
        for low, high in (self.learning_rate, self.embedding_decay):
            if not 0 < low <= high:
                raise ValueError("bounds are two positive numbers, the lower one first")
        return self


class MatrixConfig(Settings):
    """A matrix. `backbones` may be a list of names, or a table from names to settings.

    The default backbones are the paper's; so are the default enhancers, plus `llm4msr`.
    """

    data: dict[str, DataChoice] = Field(min_length=1)
    backbones: dict[str, dict[str, Any]] = Field(min_length=1)
    enhancers: dict[str, EnhancerChoice] = Field(min_length=1)
    seeds: int = Field(default=3, ge=1, le=1000)
    embedding_dim: int = Field(default=16, ge=1, le=4096)
    search: Search = Search()
    train: TrainConfig = TrainConfig()
    knowledge: KnowledgeConfig = KnowledgeConfig()

    @property
    def baseline(self) -> str | None:
        """The label of the backbone alone, which all other enhancers are compared with; None if it is not there."""
        return next((label for label, choice in self.enhancers.items() if choice.name == PLAIN), None)

    @field_validator("enhancers")
    @classmethod
    def _named(cls, enhancers: dict[str, EnhancerChoice]) -> dict[str, EnhancerChoice]:
        named = {n: e if e.name else e.model_copy(update={"name": n}) for n, e in enhancers.items()}
        if PLAIN in named and named[PLAIN].name != PLAIN:
            raise ValueError(f"the label {PLAIN!r} is the backbone's alone; give {named[PLAIN].name} another label")
        return named

    @model_validator(mode="before")
    @classmethod
    def _filled(cls, raw: Any) -> Any:
        """Turn a list of backbones into a table, and fill in the settings of a preset that are not given."""
        if not isinstance(raw, dict):
            return raw
        raw = dict(raw)
        backbones = raw.setdefault("backbones", list(_BACKBONES))
        raw.setdefault("enhancers", {name: {} for name in _ENHANCERS})
        if isinstance(backbones, list) and all(isinstance(name, str) for name in backbones):
            if twice := sorted({name for name in backbones if backbones.count(name) > 1}):
                raise ValueError(f"backbones: {twice[0]} is named twice")
            backbones = raw["backbones"] = {name: {} for name in backbones}
        if (name := raw.pop("preset", None)) is not None:
            try:
                known = preset(str(name))
            except InputError as error:
                raise ValueError(str(error)) from error
            raw.setdefault("embedding_dim", known["embedding_dim"])
            given = {"batch_size": known["batch_size"], "learning_rate": known["learning_rate"]}
            if isinstance(train := raw.get("train", {}), dict):
                raw["train"] = {**given, **train}
            if isinstance(backbones, dict):
                raw["backbones"] = {n: _with_hidden(n, settings, known["hidden"]) for n, settings in backbones.items()}
        return raw


def read_matrix(path: Path) -> MatrixConfig:
    """Read a matrix. Paths in it are relative to the file's folder. Raises `InputError` naming file and key."""
    return _beside(MatrixConfig.checked(read_toml(path), str(path)), path.parent)


def _beside(config: MatrixConfig, folder: Path) -> MatrixConfig:
    def place(path: Path | None) -> Path | None:
        return None if path is None else folder / path

    data = {
        name: choice.model_copy(update={"folder": place(choice.folder), "knowledge": place(choice.knowledge)})
        for name, choice in config.data.items()
    }
    enhancers = {
        label: choice.model_copy(update={"knowledge": place(choice.knowledge)})
        for label, choice in config.enhancers.items()
    }
    return config.model_copy(update={"data": data, "enhancers": enhancers})


def _with_hidden(backbone: str, settings: Any, hidden: Any) -> Any:
    """A backbone's settings with a preset's hidden layers, unless the backbone has no such setting."""
    if not isinstance(settings, dict):
        return settings  # refused later
    if backbone in BACKBONES.names():
        field = BACKBONES.get(backbone).config_type.model_fields.get("hidden")
        if field is None or not isinstance(field.default, tuple):
            return settings
    return {"hidden": hidden, **settings}
