"""PLE: progressive layered extraction with customised gate control (Tang et al., RecSys 2020)."""

from __future__ import annotations

from typing import cast

import torch
from pydantic import Field
from torch import Tensor, nn

from llm4msr.models.experts import Experts, mix
from llm4msr.models.layers import MLP, by_scenario
from llm4msr.models.registry import BACKBONES, Backbone, ModelPartConfig, Width


class PLEConfig(ModelPartConfig):
    """`levels` extraction levels, each with `shared_experts` and, for each scenario, `specific_experts`.

    `hidden`: all widths but the last are the layers of an expert; the last is the hidden layer of each tower.
    """

    levels: int = Field(default=2, ge=1, le=8)
    shared_experts: int = Field(default=2, ge=1)
    specific_experts: int = Field(default=2, ge=1)
    hidden: tuple[Width, ...] = Field(default=(256, 128, 64), min_length=2)


class _Level(nn.Module):
    """The experts and gates of one extraction level. The last level has no shared gate, since it needs none."""

    def __init__(self, config: PLEConfig, inside: int, hidden: tuple[int, ...], scenarios: int, *, last: bool) -> None:
        super().__init__()
        seen = config.specific_experts + config.shared_experts
        self.specific = nn.ModuleList(Experts(config.specific_experts, (inside, *hidden)) for _ in range(scenarios))
        self.shared = Experts(config.shared_experts, (inside, *hidden))
        self.gates = nn.ModuleList(nn.Linear(inside, seen, bias=False) for _ in range(scenarios))
        everything = scenarios * config.specific_experts + config.shared_experts
        self.shared_gate = None if last else nn.Linear(inside, everything, bias=False)


@BACKBONES.register("ple", PLEConfig, replayable=True)
class PLE(Backbone):
    """At each level, scenario d mixes its own and the shared experts, with a gate on its own input (equations 5 to 7):

    `x_d' = sum_k softmax(W_d x_d)_k [specific_d(x_d), shared(x_s)]_k`.

    The shared path mixes the experts of all scenarios and the shared ones, with a gate on the shared input. The shared
    gate sees all experts, so a row's logit needs every path below the last level. At the last level it needs only its
    scenario's path and the shared one.
    """

    def __init__(self, config: PLEConfig, width: int, scenarios: int) -> None:
        super().__init__()
        *hidden, last = config.hidden
        inside = [width] + [hidden[-1]] * (config.levels - 1)
        self.levels = nn.ModuleList(
            _Level(config, w, tuple(hidden), scenarios, last=place == config.levels - 1)
            for place, w in enumerate(inside)
        )
        self.towers = nn.ModuleList(MLP((hidden[-1], last, 1)) for _ in range(scenarios))

    def forward(self, x: Tensor, offsets: tuple[int, ...]) -> Tensor:
        """Logits `(B,)`."""
        paths, common = [x] * len(self.towers), x
        for place in range(len(self.levels) - 1):
            level = cast(_Level, self.levels[place])
            shared = level.shared(common)
            specific = [experts(path) for experts, path in zip(level.specific, paths, strict=True)]
            gates = [gate(path) for gate, path in zip(level.gates, paths, strict=True)]
            paths = [mix(torch.cat([own, shared]), scores) for own, scores in zip(specific, gates, strict=True)]
            assert level.shared_gate is not None  # only the last level has none
            common = mix(torch.cat([*specific, shared]), level.shared_gate(common))
        last = cast(_Level, self.levels[-1])
        shared = last.shared(common)

        def scenario(d: int, rows: Tensor) -> Tensor:
            del rows
            slice_ = slice(offsets[d], offsets[d + 1])
            own = paths[d][slice_]
            mixed = mix(torch.cat([last.specific[d](own), shared[:, slice_]]), last.gates[d](own))
            return cast(Tensor, self.towers[d](mixed))

        return by_scenario(x, offsets, scenario).view(-1)
