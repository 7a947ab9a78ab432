"""Everything that a run depends on, as one checked object."""

from __future__ import annotations

from pathlib import Path

from llm4msr.knowledge.config import KnowledgeConfig
from llm4msr.knowledge.states import Source
from llm4msr.models.model import ModelConfig
from llm4msr.training.train_config import TrainConfig
from llm4msr.validation import Settings


class RunConfig(Settings):
    """Everything that a run depends on; `knowledge_folder` is needed if the model reads knowledge."""

    data: Path
    knowledge_folder: Path | None = None
    model: ModelConfig = ModelConfig()
    knowledge: KnowledgeConfig = KnowledgeConfig()
    train: TrainConfig = TrainConfig()

    @property
    def needs(self) -> frozenset[Source]:
        """The kinds of knowledge that the model reads."""
        items = {"item"} if self.model.item_start else set()
        return frozenset({*self.model.enhancer_config().needs, *items})

    def absolute(self) -> RunConfig:
        """The same config with absolute paths, so that the run can be evaluated from any working directory."""
        folder = self.knowledge_folder
        return self.model_copy(
            update={"data": self.data.resolve(), "knowledge_folder": None if folder is None else folder.resolve()}
        )
