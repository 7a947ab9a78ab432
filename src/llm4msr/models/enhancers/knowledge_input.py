"""Knowledge as plain input: the two simple fusions that section 3.3 of the LLM4MSR paper argues against.

They read the same vectors as the meta layers, so that a comparison separates the gain of the meta layers from the gain
of the knowledge itself.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from llm4msr.models.batch import Batch, EmbeddingShape, KnowledgeWidths
from llm4msr.models.layers import MLP
from llm4msr.models.readers import USER_TABLES, UserSource, given, of_rows, scenario_vectors, user_states
from llm4msr.models.registry import ENHANCERS, Backbone, Enhancer, ModelPartConfig


class KnowledgeInputConfig(ModelPartConfig):
    """The knowledge to read (`user`, from `source`, and `scenario`); `hidden`: hidden width of the aligning MLP."""

    source: UserSource = "composed"
    user: bool = True
    scenario: bool = True
    hidden: int = Field(default=64, ge=1)

    @model_validator(mode="after")
    def _reads_something(self) -> KnowledgeInputConfig:
        if not (self.user or self.scenario):
            raise ValueError("user and scenario are both off: take the enhancer 'none' instead")
        return self

    @property
    def needs(self) -> frozenset[str]:
        """All kinds of knowledge that the enhancer reads."""
        tables = USER_TABLES[self.source] if self.user else ()
        return frozenset({*tables, *(["scenario"] if self.scenario else [])})


class _KnowledgeInput(Enhancer):
    """Maps each row's knowledge with networks; the subclass defines their kind."""

    scenario_vectors: Tensor

    def __init__(
        self, config: KnowledgeInputConfig, shape: EmbeddingShape, scenarios: int, knowledge: KnowledgeWidths
    ) -> None:
        super().__init__()
        del scenarios
        self._shape = shape
        self.user_map = self._map(given(sum(knowledge.users), "user states"), config) if config.user else None
        vectors = scenario_vectors(knowledge) if config.scenario else None
        self.reads_scenarios = vectors is not None
        self.register_buffer("scenario_vectors", vectors)
        self.scenario_map = None if vectors is None else self._map(vectors.shape[1], config)

    def blur_scenarios(self) -> None:
        """Give every scenario the mean of all scenarios' vectors."""
        if self.reads_scenarios:
            self.scenario_vectors = self.scenario_vectors.mean(0, keepdim=True).expand_as(self.scenario_vectors)

    @abstractmethod
    def _map(self, width: int, config: KnowledgeInputConfig) -> nn.Module:
        """The network that maps a knowledge vector of this width."""

    def _mapped(self, batch: Batch) -> list[Tensor]:
        """Each kind of knowledge after its network, `(B, ...)`. A vector that rows share is mapped once."""
        found = []
        if self.user_map is not None:
            states = user_states(batch)
            found.append(of_rows(self.user_map(states.vectors), states.inverse))
        if self.scenario_map is not None:
            found.append(self.scenario_map(self.scenario_vectors).index_select(0, batch.scenario_ids()))
        return found


@ENHANCERS.register("knowledge_field", KnowledgeInputConfig, replayable=True)
class KnowledgeField(_KnowledgeInput):
    """`logit = backbone([e, W_u z_u, W_s z_s])`: each vector is one more field, through a linear projection."""

    def _map(self, width: int, config: KnowledgeInputConfig) -> nn.Module:
        del config
        return nn.Linear(width, self._shape.dim)

    @property
    def backbone_width(self) -> int:
        """`E`, plus the length of one embedding for each kind of knowledge."""
        maps = (self.user_map, self.scenario_map)
        return self._shape.width + self._shape.dim * sum(m is not None for m in maps)

    def forward(self, e: Tensor, batch: Batch, backbone: Backbone) -> tuple[Tensor, None]:
        """Logits `(B,)`."""
        return backbone(torch.cat([e, *self._mapped(batch)], 1), batch.offsets), None


@ENHANCERS.register("knowledge_added", KnowledgeInputConfig, replayable=True)
class KnowledgeAdded(_KnowledgeInput):
    """`logit = backbone(e + MLP_u(z_u) + MLP_s(z_s))`: each vector is aligned with the embedding and added to it."""

    def _map(self, width: int, config: KnowledgeInputConfig) -> nn.Module:
        return MLP((width, config.hidden, self._shape.width))

    @property
    def backbone_width(self) -> int:
        """`E`."""
        return self._shape.width

    def forward(self, e: Tensor, batch: Batch, backbone: Backbone) -> tuple[Tensor, None]:
        """Logits `(B,)`."""
        return backbone(torch.stack([e, *self._mapped(batch)]).sum(0), batch.offsets), None
