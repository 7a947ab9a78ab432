"""LLM4MSR: hierarchical meta layers generated from an LLM's knowledge, around any backbone (equations 4 to 9).

User-level meta layers transform the embeddings below the backbone. Scenario-level ones give a logit parallel to it:

    h = backbone(h_u),   logit = alpha * h_s + (1 - alpha) * h          (equations 8 and 9)

Additions to the paper: the candidate's vector as a field; match features (product and dot product of the projected
user state and candidate); a gate that can close the user's layers below the backbone. The features are concatenated
with the embeddings, or read by the user's parallel layers alone. By default `llm4msr` has the additions on;
`llm4msr_paper` is the paper's model.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from llm4msr.models.batch import Batch, EmbeddingShape, KnowledgeWidths
from llm4msr.models.enhancers.llm4msr_config import LLM4MSRConfig, PaperConfig, Placement
from llm4msr.models.meta import MetaLayers
from llm4msr.models.readers import given, of_rows, of_scenarios, scenario_vectors, together, user_states
from llm4msr.models.registry import ENHANCERS, Backbone, Enhancer

_SMALL = 0.1
"""Factor on the initial weights of layers whose output is added to the embeddings."""


class _Users(NamedTuple):
    """What the networks give for the user states (`layers`, `gate`, `match`), and each row's state (`UserStates`)."""

    made: dict[str, Any]
    inverse: Tensor | None


class _Level(NamedTuple):
    """The meta layers of a level.

    `generated` are the tensors generated for them, `of_rows` each row's index into these (None: row b has number b),
    `penalised` the tensors that the penalty counts, `gate` `(B, 1)` the factor on the layers' output, `features`
    `(B, n)` what they read beside the embeddings.
    """

    layers: MetaLayers
    placement: Placement
    generated: list[Tensor]
    of_rows: Tensor | None
    penalised: list[Tensor]
    gate: Tensor | None = None
    features: Tensor | None = None


def _flags(widths: Sequence[int]) -> Tensor:
    """Which numbers of vectors side by side, `(sum of widths,)`, are flags: the last one of each."""
    found = torch.zeros(sum(widths), dtype=torch.bool)
    ends = [end - 1 for end in accumulate(widths) if end]
    found[ends] = True
    return found


@ENHANCERS.register("llm4msr", LLM4MSRConfig, replayable=True)
class LLM4MSR(Enhancer):
    """The paper's enhancer with our additions (see the module)."""

    scenario_vectors: Tensor
    user_flags: Tensor
    item_flags: Tensor

    def __init__(
        self, config: LLM4MSRConfig, shape: EmbeddingShape, scenarios: int, knowledge: KnowledgeWidths
    ) -> None:
        super().__init__()
        self.config = config
        if "item" in config.needs:
            given(knowledge.item, "item vectors")
        of_one = config.match_dim + 1
        if config.candidate:
            self.candidate = nn.Linear(knowledge.item, of_one)
        width = self._width = shape.width + of_one * (config.widens and config.candidate)
        beside = 0 if config.widens else of_one * (config.candidate + config.match)
        user_width = given(sum(knowledge.users), "user states") if config.user_sources else 0
        self.register_buffer("user_flags", _flags(knowledge.users), persistent=False)
        self.register_buffer("item_flags", _flags((knowledge.item,)), persistent=False)
        self.user_layers = self._layers(config.user, user_width, width + beside)
        if config.gated:
            self.gate = nn.Linear(user_width, scenarios)
            nn.init.zeros_(self.gate.weight)
            nn.init.constant_(self.gate.bias, config.gate_start)
        self.reads_scenarios = config.scenario != "none"
        if self.reads_scenarios:
            self.register_buffer("scenario_vectors", scenario_vectors(knowledge))
        scenario_width = 0 if knowledge.scenario is None else knowledge.scenario.shape[1]
        self.scenario_layers = self._layers(config.scenario, scenario_width, width)
        if config.match:
            self.match_user = nn.Linear(user_width, config.match_dim)
            self.match_item = nn.Linear(knowledge.item, config.match_dim)
        parallel = [level for level in (config.user, config.scenario) if level == "parallel"]
        self.alpha = nn.Parameter(torch.full((len(parallel),), config.alpha)) if parallel else None

    def replays(self) -> bool:
        """False if rows must be grouped by scenario to apply the layers, or if each row's own layers are too large."""
        weights = self.config.weights
        return super().replays() and (weights == "factored" or (weights == "low_rank" and not self.reads_scenarios))

    def _dropped(self, vectors: Tensor, flags: Tensor) -> Tensor:
        """The vectors `(n, d)` with dropout while training, except the flags of unknown vectors."""
        if not (self.config.dropout and self.training):
            return vectors
        return torch.where(flags, vectors, functional.dropout(vectors, self.config.dropout))

    def _layers(self, placement: Placement, knowledge: int, width: int) -> MetaLayers | None:
        if placement == "none":
            return None
        c = self.config
        outside = width if placement == "bottom" else 1
        return MetaLayers(
            knowledge,
            (width, *[c.hidden] * (c.layers - 1), outside),
            weights=c.weights,
            rank=c.rank,
            factors=c.factors,
            activate_last=placement == "bottom" and not c.residual,
            last_scale=_SMALL if placement == "bottom" and c.residual else 1.0,
        )

    @property
    def backbone_width(self) -> int:
        """`E`, plus the widths of the candidate and match features that are concatenated with the embeddings."""
        return self._width + (self.config.match_dim + 1) * (self.config.widens and self.config.match)

    @torch.no_grad()
    def freeze(self) -> None:
        """Store the scenarios' meta layers as constants, and after them those of the mean scenario."""
        if self.scenario_layers is not None:
            mean = self.scenario_vectors.mean(0, keepdim=True)
            self.scenario_layers.fix(torch.cat([self.scenario_vectors, mean]))
            del self.scenario_vectors

    @torch.no_grad()
    def blur_scenarios(self) -> None:
        """Give every scenario the meta layers of the mean scenario; the model must be frozen."""
        if self.scenario_layers is not None:
            for part in self.scenario_layers.fixed():
                part.copy_(part[-1:].clone().expand_as(part))

    def forward(self, e: Tensor, batch: Batch, backbone: Backbone) -> tuple[Tensor, Tensor | None]:
        """Logits `(B,)` and, in training, the mean squares of each level's generated weights, added up."""
        logit, beside, penalty = self.branches(e, batch, backbone)
        if self.alpha is None:
            return logit, penalty
        return self.alpha @ torch.stack(beside) + (1 - self.alpha.sum()) * logit, penalty

    def branches(self, e: Tensor, batch: Batch, backbone: Backbone) -> tuple[Tensor, list[Tensor], Tensor | None]:
        """The backbone's logits `(B,)`, the logits of each parallel level (user, scenario), and the penalty."""
        users = self._read_users(batch)
        features = self._features(users, batch)
        x = torch.cat([e, *features], 1) if self.config.widens else e
        below, beside = x, []
        levels = [*self._user_level(users, features, batch), *self._scenario_level(batch)]
        for level in levels:
            if level.placement == "bottom":  # the scenario's layers read the output of the user's
                below = self._bottom(level, below)
            else:  # each parallel level reads the input of the first bottom level
                inside = x[:, : self._width]
                beside.append(level.layers(inside, level.generated, level.of_rows, level.features)[:, 0])
        logit = backbone(below, batch.offsets)
        penalty = None
        if self.training:
            penalty = sum((level.layers.penalty(level.penalised) for level in levels), e.new_zeros(()))
        return logit, beside, penalty

    def _read_users(self, batch: Batch) -> _Users:
        """Apply the networks to the batch's user states, in one product for `low_rank` and `factored` layers."""
        c, layers = self.config, self.user_layers
        if not c.user_sources:
            return _Users({}, None)
        states = user_states(batch)
        z = self._dropped(states.vectors, self.user_flags)
        small = {"gate": self.gate} if c.gated else {}
        small |= {"match": self.match_user} if c.match else {}
        if layers is None or layers.weights == "full":
            made: dict[str, Any] = {name: layer(z) for name, layer in small.items()}
            return _Users(made if layers is None else made | {"layers": layers.generate(z)}, states.inverse)
        generators = [cast(nn.Linear, generator) for generator in layers.generators]
        read = together(z, [*generators, *small.values()])
        made = {"layers": read[: len(generators)], **dict(zip(small, read[len(generators) :], strict=True))}
        return _Users(made, states.inverse)

    def _features(self, users: _Users, batch: Batch) -> list[Tensor]:
        """The candidate's features and the match features, each `(B, n)`; none if the model has neither."""
        c = self.config
        if "item" not in c.needs:
            return []
        item = self._dropped(given(batch.item, "item vectors"), self.item_flags)
        readers = ([self.candidate] if c.candidate else []) + ([self.match_item] if c.match else [])
        read = together(item, readers)
        features = read[: len(read) - c.match]
        if c.match:
            product = of_rows(users.made["match"], users.inverse) * read[-1]
            features += [product, product.sum(1, keepdim=True)]
        return features

    def _user_level(self, users: _Users, features: list[Tensor], batch: Batch) -> list[_Level]:
        """The user level, if there is one."""
        if self.user_layers is None:
            return []
        made, inverse, gate = users.made["layers"], users.inverse, None
        if self.config.gated:
            opened, ids = torch.sigmoid(users.made["gate"]), batch.scenario_ids()
            gate = opened.gather(1, ids[:, None]) if inverse is None else opened[inverse, ids][:, None]
        beside = torch.cat(features, 1) if features and not self.config.widens else None
        return [_Level(self.user_layers, self.config.user, made, inverse, made, gate, beside)]

    def _scenario_level(self, batch: Batch) -> list[_Level]:
        """The scenario level, if there is one."""
        layers = self.scenario_layers
        if layers is None:
            return []
        frozen = not hasattr(layers, "generators")
        made = layers.fixed() if frozen else layers.generate(self.scenario_vectors)
        seen, ids = of_scenarios(made, batch.offsets, batch.rows.device)
        return [_Level(layers, self.config.scenario, seen, ids, made)]

    def _bottom(self, level: _Level, x: Tensor) -> Tensor:
        """`x` after the layers of a bottom level. Match features bypass the layers."""
        layers, made, of_rows = level.layers, level.generated, level.of_rows
        if self.config.residual:
            return layers.added(x, made, of_rows, level.gate)
        return torch.cat([layers(x[:, : self._width], made, of_rows), x[:, self._width :]], 1)


@ENHANCERS.register("llm4msr_paper", PaperConfig, replayable=True)
class LLM4MSRPaper(LLM4MSR):
    """The paper's enhancer: prompted knowledge, user layers at the bottom, scenario layers beside, full weights."""
