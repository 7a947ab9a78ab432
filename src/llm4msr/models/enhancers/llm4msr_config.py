"""The settings of LLM4MSR. They cover level, placement and source of the knowledge, so all variants of Figure 3."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from llm4msr.models.meta import Weights
from llm4msr.models.readers import USER_TABLES, UserSource, UserTable
from llm4msr.models.registry import ModelPartConfig

Placement = Literal["bottom", "parallel", "none"]


class LLM4MSRConfig(ModelPartConfig):
    """Settings of the enhancer. The defaults were chosen on validation data (docs/results/defaults.md).

    - `source`: where the user's vector comes from: prompts at each snapshot, items composed up to the row, or both.
    - `user`, `scenario`: the placement of each level's meta layers: below the backbone ("bottom"), beside it
      ("parallel"), or "none".
    - `layers` (K), `hidden`: number and hidden width of the meta layers; `weights`, `rank`, `factors`: see
      `MetaLayers`.
    - `residual`: the output of bottom layers is added to their input, `e + f(e)`; their last layer has no activation.
    - `gate`: a learned factor between 0 and 1, for each user state and scenario, on the output of the user's residual
      bottom layers: `e + sigmoid(G z + g)_d f(e)`. It can close the layers where they do not help. `g` starts at
      `gate_start`. Other layers have no gate.
    - `alpha`: initial value of the mixing weight of each parallel level; the weights are learned.
    - `candidate`, `match`: features beyond the paper, of `match_dim + 1` numbers each, which are concatenated with the
      embeddings: the backbone reads them, and the meta layers read the candidate's. Both need item vectors.
    - `dropout`: share of the numbers of user and item vectors that is dropped in training.
    """

    source: UserSource = "composed"
    user: Placement = "bottom"
    scenario: Placement = "none"
    layers: int = Field(default=2, ge=1, le=8)
    hidden: int = Field(default=64, ge=1)
    weights: Weights = "factored"
    rank: int = Field(default=16, ge=1)
    factors: int = Field(default=32, ge=1)
    residual: bool = True
    gate: bool = True
    gate_start: float = -4.0
    alpha: float = 0.2
    candidate: bool = True
    match: bool = True
    match_dim: int = Field(default=15, ge=1)
    dropout: float = Field(default=0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _does_something(self) -> LLM4MSRConfig:
        if self.user == "none" and self.scenario == "none" and not (self.candidate or self.match):
            raise ValueError("user, scenario, candidate and match are all off: take the enhancer 'none' instead")
        return self

    @property
    def gated(self) -> bool:
        """Whether the model has a gate: it is on, and there are residual bottom layers of the user."""
        return self.gate and self.user == "bottom" and self.residual

    @property
    def user_sources(self) -> tuple[UserTable, ...]:
        """The user-level tables that the model reads, in the order in which their vectors are concatenated."""
        if self.user == "none" and not self.match:
            return ()
        return USER_TABLES[self.source]

    @property
    def needs(self) -> frozenset[str]:
        """All kinds of knowledge that the model reads."""
        item = {"item"} if self.candidate or self.match else set()
        scenario = {"scenario"} if self.scenario != "none" else set()
        return frozenset({*self.user_sources, *item, *scenario})


class PaperConfig(LLM4MSRConfig):
    """The same settings, with the paper's as defaults."""

    source: UserSource = "prompted"
    scenario: Placement = "parallel"
    weights: Weights = "full"
    residual: bool = False
    gate: bool = False
    candidate: bool = False
    match: bool = False
