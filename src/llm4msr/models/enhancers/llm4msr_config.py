"""The settings of LLM4MSR: level, placement and source of the knowledge, so that each variant of Figure 3 is one."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from llm4msr.models.meta import Weights
from llm4msr.models.readers import USER_TABLES, UserSource, UserTable
from llm4msr.models.registry import ModelPartConfig

Placement = Literal["bottom", "parallel", "none"]


class LLM4MSRConfig(ModelPartConfig):
    """Settings of the enhancer. The defaults are those that validation data chose (docs/results/defaults.md).

    - `source`: what the user's vector is made from: prompts a snapshot, items composed up to the row, or both.
    - `user`, `scenario`: where each level's meta layers are placed; "none" leaves the level out.
    - `layers` (K), `hidden`: number and hidden width of the meta layers; `weights`, `rank`, `factors`: see there.
    - `residual`: bottom layers are added to their input, `e + f(e)`, and their last layer has no activation.
    - `gate`: what the user's bottom layers add is scaled, for each state and scenario, by a learned number between 0
      and 1, so that they can be closed where they do not help: `e + sigmoid(G z + g)_d f(e)`, where `g` starts at
      `gate_start`. Other layers have no gate.
    - `alpha`: where the mixing weight starts; it is learned.
    - `candidate`, `match`: features beyond the paper, of `match_dim + 1` numbers each; both need item vectors.
    - `features`: they stand "beside" the embeddings, where the user's layers read the candidate's too; or they are
      "added" by a learned projection to what the layers at the bottom give, which makes the backbone no wider.
    - `dropout`: share of the numbers of users' and items' vectors that is dropped while training.
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
    features: Literal["beside", "added"] = "beside"
    dropout: float = Field(default=0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _does_something(self) -> LLM4MSRConfig:
        if self.user == "none" and self.scenario == "none" and not (self.candidate or self.match):
            raise ValueError("user, scenario, candidate and match are all off: take the enhancer 'none' instead")
        return self

    @property
    def gated(self) -> bool:
        """Whether there is something that the gate scales."""
        return self.gate and self.user == "bottom" and self.residual

    @property
    def user_sources(self) -> tuple[UserTable, ...]:
        """The user-level tables that the model reads, in the order in which their vectors stand side by side."""
        if self.user == "none" and not self.match:
            return ()
        return USER_TABLES[self.source]

    @property
    def needs(self) -> frozenset[str]:
        """Every kind of knowledge that the model reads."""
        item = {"item"} if self.candidate or self.match else set()
        scenario = {"scenario"} if self.scenario != "none" else set()
        return frozenset({*self.user_sources, *item, *scenario})


class PaperConfig(LLM4MSRConfig):
    """The same settings, by default the paper's."""

    source: UserSource = "prompted"
    scenario: Placement = "parallel"
    weights: Weights = "full"
    residual: bool = False
    gate: bool = False
    candidate: bool = False
    match: bool = False
