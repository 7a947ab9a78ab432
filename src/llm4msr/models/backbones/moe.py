"""Mixtures of experts: OMoE with one gate, MMoE with a gate for each scenario."""

from __future__ import annotations

from typing import cast

from pydantic import Field
from torch import Tensor, nn

from llm4msr.models.experts import Experts, mix
from llm4msr.models.layers import MLP, by_scenario
from llm4msr.models.registry import BACKBONES, Backbone, ModelPartConfig, Width


class MixtureConfig(ModelPartConfig):
    """`hidden`: all widths but the last are the layers of an expert; the last is the hidden layer of each tower."""

    experts: int = Field(default=4, ge=1)
    hidden: tuple[Width, ...] = Field(default=(256, 128, 64), min_length=2)


class _Mixture(Backbone):
    """`logit = tower_d(sum_k softmax(gate(x))_k expert_k(x))`. Experts run on all rows, towers on their own slice."""

    def __init__(self, config: MixtureConfig, width: int, scenarios: int, gates: int) -> None:
        super().__init__()
        *shared, last = config.hidden
        self.experts = Experts(config.experts, (width, *shared))
        self.gates = nn.ModuleList(nn.Linear(width, config.experts, bias=False) for _ in range(gates))
        self.towers = nn.ModuleList(MLP((shared[-1], last, 1)) for _ in range(scenarios))

    def _tower(self, d: int, mixed: Tensor) -> Tensor:
        return cast(Tensor, self.towers[d](mixed))


@BACKBONES.register("omoe", MixtureConfig, replayable=True)
class OMoE(_Mixture):
    """One gate for all scenarios (Jacobs et al., Adaptive Mixtures of Local Experts, 1991; named in the MMoE paper)."""

    def __init__(self, config: MixtureConfig, width: int, scenarios: int) -> None:
        super().__init__(config, width, scenarios, gates=1)

    def forward(self, x: Tensor, offsets: tuple[int, ...]) -> Tensor:
        """Logits `(B,)`."""
        mixed = mix(self.experts(x), self.gates[0](x))
        return by_scenario(mixed, offsets, self._tower).view(-1)


@BACKBONES.register("mmoe", MixtureConfig, replayable=True)
class MMoE(_Mixture):
    """A gate for each scenario, `g_d(x) = softmax(W_d x)` (Ma et al., KDD 2018, equations 6 and 7)."""

    def __init__(self, config: MixtureConfig, width: int, scenarios: int) -> None:
        super().__init__(config, width, scenarios, gates=scenarios)

    def forward(self, x: Tensor, offsets: tuple[int, ...]) -> Tensor:
        """Logits `(B,)`; each gate runs only on its scenario's slice."""
        scores = by_scenario(x, offsets, lambda d, rows: cast(Tensor, self.gates[d](rows)))
        return by_scenario(mix(self.experts(x), scores), offsets, self._tower).view(-1)
