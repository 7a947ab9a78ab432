"""No enhancer: the backbone alone."""

from __future__ import annotations

from torch import Tensor

from llm4msr.models.batch import Batch, EmbeddingShape, KnowledgeWidths
from llm4msr.models.registry import ENHANCERS, Backbone, Enhancer, ModelPartConfig


class PlainConfig(ModelPartConfig):
    """There are no settings."""


@ENHANCERS.register("none", PlainConfig, replayable=True)
class Plain(Enhancer):
    """`logit = backbone(e)`."""

    def __init__(self, config: PlainConfig, shape: EmbeddingShape, scenarios: int, knowledge: KnowledgeWidths) -> None:
        super().__init__()
        del config, scenarios, knowledge
        self._width = shape.width

    @property
    def backbone_width(self) -> int:
        """`E`."""
        return self._width

    def forward(self, e: Tensor, batch: Batch, backbone: Backbone) -> tuple[Tensor, None]:
        """Logits `(B,)`."""
        return backbone(e, batch.offsets), None
