"""LLM4MSR: hierarchical meta layers made of an LLM's knowledge, around any backbone (equations 4 to 9).

User-level meta layers transform the embeddings below the backbone; scenario-level ones give a logit beside it:

    h = backbone(h_u),   logit = alpha * h_s + (1 - alpha) * h          (equations 8 and 9)

Beyond the paper there are the candidate's vector as a field, match features (product and dot of the projected user
state and candidate), both beside the embeddings or added to them, and a gate that can close the user's layers.
`llm4msr` has them on, `llm4msr_paper` is the paper's model.
"""

from __future__ import annotations

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
"""Factor on the initial weights of what is added to the embeddings."""

_Product = tuple[Tensor, Tensor]
"""Two factors `(B, n)`, `(n, E)` of what is added to the embeddings."""


class _Users(NamedTuple):
    """What is made of the users' states (`layers`, `gate`, `match`), and each row's place in it (see `UserStates`)."""

    made: dict[str, Any]
    inverse: Tensor | None


class _Level(NamedTuple):
    """The meta layers of a level: what generated them, each row's place in it, and what is penalised of it."""

    layers: MetaLayers
    placement: Placement
    generated: list[Tensor]
    of_rows: Tensor | None
    penalised: list[Tensor]
    gate: Tensor | None = None


@ENHANCERS.register("llm4msr", LLM4MSRConfig, replayable=True)
class LLM4MSR(Enhancer):
    """The paper's enhancer, and ours beyond it."""

    scenario_vectors: Tensor

    def __init__(
        self, config: LLM4MSRConfig, shape: EmbeddingShape, scenarios: int, knowledge: KnowledgeWidths
    ) -> None:
        super().__init__()
        self.config = config
        width = shape.width
        if "item" in config.needs:
            given(knowledge.item, "item vectors")
        of_one = config.match_dim + 1
        if config.candidate:
            self.candidate = nn.Linear(knowledge.item, of_one)
        if config.features == "beside":
            width += of_one * config.candidate
        elif config.candidate or config.match:
            start = nn.init.xavier_uniform_(torch.empty(of_one * (config.candidate + config.match), width))
            self.feature_map = nn.Parameter(start * _SMALL)
        self._width = width
        user_width = given(sum(knowledge.users), "user states") if config.user_sources else 0
        self.user_layers = self._layers(config.user, user_width, width)
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
        """Not where layers are made for many rows at once, which are grouped by value, or are too large a row each."""
        weights = self.config.weights
        return super().replays() and (weights == "factored" or (weights == "low_rank" and not self.reads_scenarios))

    def _dropped(self, vectors: Tensor) -> Tensor:
        if not self.config.dropout:
            return vectors
        return functional.dropout(vectors, self.config.dropout, self.training)

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
        """`E`, and the widths of candidate and match features where they are on."""
        beside = self.config.match and self.config.features == "beside"
        return self._width + (self.config.match_dim + 1 if beside else 0)

    @torch.no_grad()
    def freeze(self) -> None:
        """Make constants of the scenarios' meta layers, and of those of the mean scenario as one more."""
        if self.scenario_layers is not None:
            mean = self.scenario_vectors.mean(0, keepdim=True)
            self.scenario_layers.fix(torch.cat([self.scenario_vectors, mean]))
            del self.scenario_vectors

    @torch.no_grad()
    def blur_scenarios(self) -> None:
        """Give every scenario the layers of the mean scenario; the model must be frozen."""
        if self.scenario_layers is not None:
            for part in self.scenario_layers.fixed():
                part.copy_(part[-1:].clone().expand_as(part))

    def forward(self, e: Tensor, batch: Batch, backbone: Backbone) -> tuple[Tensor, Tensor | None]:
        """Logits `(B,)` and, while training, the mean square of the generated weights."""
        logit, beside, penalty = self.branches(e, batch, backbone)
        if self.alpha is None:
            return logit, penalty
        return self.alpha @ torch.stack(beside) + (1 - self.alpha.sum()) * logit, penalty

    def branches(self, e: Tensor, batch: Batch, backbone: Backbone) -> tuple[Tensor, list[Tensor], Tensor | None]:
        """The backbone's logits `(B,)`, those of each level beside it (user, scenario), and the penalty."""
        users = self._read_users(batch)
        x, added = self._with_features(e, users, batch)
        below, beside = x, []
        levels = [*self._user_level(users, batch), *self._scenario_level(batch)]
        for level in levels:
            if level.placement == "bottom":  # the scenario's layers take what the user's gave
                below, added = self._bottom(level, below, added), None
            else:  # beside the backbone each takes what the lowest ones take
                beside.append(level.layers(x[:, : self._width], level.generated, level.of_rows)[:, 0])
        if added is not None:
            below = torch.addmm(below, *added)
        logit = backbone(below, batch.offsets)
        penalty = None
        if self.training:
            penalty = sum((level.layers.penalty(level.penalised) for level in levels), e.new_zeros(()))
        return logit, beside, penalty

    def _read_users(self, batch: Batch) -> _Users:
        """What is made of the batch's user states, all by one product where the layers' weights are few."""
        c, layers = self.config, self.user_layers
        if not c.user_sources:
            return _Users({}, None)
        states = user_states(batch)
        z = self._dropped(states.vectors)
        small = {"gate": self.gate} if c.gated else {}
        small |= {"match": self.match_user} if c.match else {}
        if layers is None or layers.weights == "full":
            made: dict[str, Any] = {name: layer(z) for name, layer in small.items()}
            return _Users(made if layers is None else made | {"layers": layers.generate(z)}, states.inverse)
        generators = [cast(nn.Linear, generator) for generator in layers.generators]
        read = together(z, [*generators, *small.values()])
        made = {"layers": read[: len(generators)], **dict(zip(small, read[len(generators) :], strict=True))}
        return _Users(made, states.inverse)

    def _with_features(self, e: Tensor, users: _Users, batch: Batch) -> tuple[Tensor, _Product | None]:
        """The embeddings with the features of candidate and match beside them; or with what is to be added to them."""
        c = self.config
        if "item" not in c.needs:
            return e, None
        item = self._dropped(given(batch.item, "item vectors"))
        readers = ([self.candidate] if c.candidate else []) + ([self.match_item] if c.match else [])
        read = together(item, readers)
        features = read[: len(read) - c.match]
        if c.match:
            product = of_rows(users.made["match"], users.inverse) * read[-1]
            features += [product, product.sum(1, keepdim=True)]
        if c.features == "beside":
            return torch.cat([e, *features], 1), None
        return e, (torch.cat(features, 1), self.feature_map)

    def _user_level(self, users: _Users, batch: Batch) -> list[_Level]:
        """The user's layers, where there are any."""
        if self.user_layers is None:
            return []
        made, inverse, gate = users.made["layers"], users.inverse, None
        if self.config.gated:
            opened, ids = torch.sigmoid(users.made["gate"]), batch.scenario_ids()
            gate = opened.gather(1, ids[:, None]) if inverse is None else opened[inverse, ids][:, None]
        return [_Level(self.user_layers, self.config.user, made, inverse, made, gate)]

    def _scenario_level(self, batch: Batch) -> list[_Level]:
        """The scenario's layers, where there are any."""
        layers = self.scenario_layers
        if layers is None:
            return []
        frozen = not hasattr(layers, "generators")
        made = layers.fixed() if frozen else layers.generate(self.scenario_vectors)
        seen, ids = of_scenarios(made, batch.offsets, batch.rows.device)
        return [_Level(layers, self.config.scenario, seen, ids, made)]

    def _bottom(self, level: _Level, x: Tensor, added: _Product | None) -> Tensor:
        """`x` after layers below the backbone, plus the product `added`; match features pass the layers by."""
        layers, made, of_rows = level.layers, level.generated, level.of_rows
        if self.config.residual:
            return layers.added(x, made, of_rows, level.gate, added)
        out = torch.cat([layers(x[:, : self._width], made, of_rows), x[:, self._width :]], 1)
        return out if added is None else torch.addmm(out, *added)


@ENHANCERS.register("llm4msr_paper", PaperConfig, replayable=True)
class LLM4MSRPaper(LLM4MSR):
    """The paper's enhancer: prompted knowledge, user layers at the bottom, scenario layers beside, full weights."""
