"""A whole model: embedding, enhancer and backbone put together."""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from llm4msr.models.batch import Batch, EmbeddingShape, FieldLayout, KnowledgeWidths
from llm4msr.models.embedding import FeatureEmbedding
from llm4msr.models.registry import BACKBONES, ENHANCERS, Backbone, Enhancer
from llm4msr.validation import Settings


class PartChoice(Settings):
    """A backbone or an enhancer by name, with its settings."""

    name: str
    settings: dict[str, Any] = Field(default_factory=dict)


class ModelConfig(Settings):
    """The parts of a model. With `item_start`, the item's embedding is initialised with its knowledge vector."""

    embedding_dim: int = Field(default=16, ge=1, le=4096)
    item_start: bool = False
    backbone: PartChoice = PartChoice(name="star")
    enhancer: PartChoice = PartChoice(name="none")

    def backbone_config(self) -> Any:
        """The backbone's settings, checked."""
        return BACKBONES.config(self.backbone.name, self.backbone.settings)

    def enhancer_config(self) -> Any:
        """The enhancer's settings, checked."""
        return ENHANCERS.config(self.enhancer.name, self.enhancer.settings)


class MultiScenarioModel(nn.Module):
    """`logit = enhancer(embedding(batch), backbone)`."""

    def __init__(self, embedding: FeatureEmbedding, enhancer: Enhancer, backbone: Backbone) -> None:
        super().__init__()
        self.embedding = embedding
        self.enhancer = enhancer
        self.backbone = backbone

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Logits `(B,)`, and the enhancer's penalty on generated weights or None."""
        logits, penalty = self.enhancer(self.embedding(batch), batch, self.backbone)
        return logits, penalty

    def freeze(self) -> MultiScenarioModel:
        """Prepare for use after training: evaluation mode, no gradients, parts that depend on scenarios alone fixed."""
        self.enhancer.freeze()
        self.backbone.freeze()
        return self.eval().requires_grad_(False)


def build_model(
    config: ModelConfig,
    layout: FieldLayout,
    scenarios: int,
    knowledge: KnowledgeWidths,
    seed: int,
    *,
    empty: bool = False,
) -> MultiScenarioModel:
    """Make a model. The same seed gives the same initial weights, regardless of earlier random numbers.

    An `empty` model has no memory for the embedding table yet: use `load_state_dict(weights, assign=True)` on it.
    Raises `InputError` for a backbone, an enhancer or a setting that does not exist.
    """
    backbone_type, enhancer_type = BACKBONES.get(config.backbone.name), ENHANCERS.get(config.enhancer.name)
    backbone_config, enhancer_config = config.backbone_config(), config.enhancer_config()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        embedding = FeatureEmbedding(layout, config.embedding_dim, empty=empty)
        shape = EmbeddingShape(layout.fields, config.embedding_dim)
        enhancer: Enhancer = enhancer_type(enhancer_config, shape, scenarios, knowledge)
        backbone: Backbone = backbone_type(backbone_config, enhancer.backbone_width, scenarios)
    return MultiScenarioModel(embedding, enhancer, backbone)
