"""EPNet: the embedding half of PEPNet (Chang et al., KDD 2023): scenario-specific gates scale the embedding."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from llm4msr.models.batch import Batch, EmbeddingShape, KnowledgeWidths
from llm4msr.models.layers import EmbeddingGate
from llm4msr.models.registry import ENHANCERS, Backbone, Enhancer, ModelPartConfig


class EPNetConfig(ModelPartConfig):
    """`scenario_dim`: width of the scenario's embedding; `hidden`: hidden width of the gate; `scale`: largest value."""

    scenario_dim: int = Field(default=16, ge=1)
    hidden: int = Field(default=64, ge=1)
    scale: float = Field(default=2.0, gt=0)


@ENHANCERS.register("epnet", EPNetConfig, replayable=True)
class EPNet(Enhancer):
    """`logit = backbone(gate_d(e))`; see `EmbeddingGate`."""

    def __init__(self, config: EPNetConfig, shape: EmbeddingShape, scenarios: int, knowledge: KnowledgeWidths) -> None:
        super().__init__()
        del knowledge
        self._width = shape.width
        self.gate = EmbeddingGate(shape.width, scenarios, config.scenario_dim, config.hidden, config.scale)

    @property
    def backbone_width(self) -> int:
        """`E`."""
        return self._width

    def forward(self, e: Tensor, batch: Batch, backbone: Backbone) -> tuple[Tensor, None]:
        """Logits `(B,)`."""
        return backbone(self.gate(e, batch.scenario_ids()), batch.offsets), None
