"""Shared Bottom: one network for all scenarios, then a tower for each (Caruana, Multitask Learning, 1997)."""

from __future__ import annotations

from typing import cast

from pydantic import Field
from torch import Tensor, nn

from llm4msr.models.layers import MLP, by_scenario
from llm4msr.models.registry import BACKBONES, Backbone, ModelPartConfig, Width


class SharedBottomConfig(ModelPartConfig):
    """`hidden`: all widths but the last are the shared layers; the last is the hidden layer of each tower.

    `dropout` follows each layer while training.
    """

    hidden: tuple[Width, ...] = Field(default=(256, 128, 64), min_length=1)
    dropout: float = Field(default=0.0, ge=0, lt=1)


@BACKBONES.register("shared_bottom", SharedBottomConfig, replayable=True)
class SharedBottom(Backbone):
    """`logit = tower_d(bottom(x))`."""

    def __init__(self, config: SharedBottomConfig, width: int, scenarios: int) -> None:
        super().__init__()
        *shared, last = config.hidden
        self.bottom = MLP((width, *shared), activate_last=True, dropout=config.dropout)
        inside = shared[-1] if shared else width
        self.towers = nn.ModuleList(MLP((inside, last, 1), dropout=config.dropout) for _ in range(scenarios))

    def forward(self, x: Tensor, offsets: tuple[int, ...]) -> Tensor:
        """Logits `(B,)`; each tower runs only on its scenario's slice."""
        shared = self.bottom(x)
        return by_scenario(shared, offsets, lambda d, rows: cast(Tensor, self.towers[d](rows))).view(-1)
