"""Why a row has its score: the effect of knowledge, and the contribution of each field.

Contributions are integrated gradients (Sundararajan et al., ICML 2017; Captum) of the logit, from the population's
mean row in the row's own scenario to the row itself. The mean row's logit, all contributions and a remainder add up to
the row's logit. The remainder is the error of the integral's finite number of steps, and any jump of the logit on the
way, because a jump has no gradient (AdaSparse's logit jumps when a unit is pruned).
"""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import cached_property

import torch
from captum.attr import IntegratedGradients
from pydantic import BaseModel
from torch import Tensor

from llm4msr.models.batch import Batch, UserStates
from llm4msr.models.enhancers.mixed import Mixed
from llm4msr.serving.bundle import Bundle
from llm4msr.serving.fields import places
from llm4msr.serving.requests import ExplainRequest, ScoreRequest
from llm4msr.serving.scorer import Scorer

_STEPS = (64, 512)
_CLOSE = 1e-3


class Contribution(BaseModel):
    """How much a field, or knowledge, adds to the mean row's logit."""

    name: str
    kind: str
    contribution: float


class Branches(BaseModel):
    """The two sides of `logit = alpha * beside + (1 - alpha) * backbone` (equation 9), and each side's part of it."""

    alpha: float
    beside: float
    backbone: float


class ExplainAnswer(BaseModel):
    """A score taken apart. Scores are probabilities; `alpha` is a weight; all other numbers are logits."""

    bundle: str
    score: float
    score_with_mean_user: float | None
    score_with_mean_scenario: float | None
    branches: Branches | None
    logit: float
    mean_logit: float
    contributions: list[Contribution]
    remainder: float


class Explainer:
    """Explains rows of one bundle."""

    def __init__(self, scorer: Scorer) -> None:
        self._scorer = scorer
        self._bundle: Bundle = scorer.bundle

    def explain(self, request: ExplainRequest) -> ExplainAnswer:
        """Explain the score of one row. Raises `RequestError` if it cannot be scored."""
        asked = ScoreRequest(
            user=request.user, scenario=request.scenario, items=[request.item], features=request.features
        )
        batch, _ = self._scorer.batch([self._scorer.rows(asked)])
        model, means = self._bundle.model, self._bundle.means
        with torch.no_grad():
            e = model.embedding(batch)
            logit = float(self._logits(batch, e, batch))
            mean_user = None
            if batch.users is not None:
                blurred = replace(batch, users=UserStates(means["users"], batch.users.inverse))
                mean_user = float(torch.sigmoid(self._logits(blurred, e, batch)))
            mean_scenario = None
            if self._blurred is not None:
                mean_scenario = float(torch.sigmoid(self._blurred(e, batch, model.backbone)[0]))
        mean_logit, contributions = self._contributions(batch, e)
        added = sum(c.contribution for c in contributions)
        return ExplainAnswer(
            bundle=self._bundle.fingerprint,
            score=float(torch.sigmoid(torch.tensor(logit))),
            score_with_mean_user=mean_user,
            score_with_mean_scenario=mean_scenario,
            branches=self._branches(batch, e),
            logit=logit,
            mean_logit=mean_logit,
            contributions=sorted(contributions, key=lambda c: -abs(c.contribution)),
            remainder=logit - mean_logit - added,
        )

    @cached_property
    def _blurred(self) -> torch.nn.Module | None:
        """A copy of the enhancer that gives every scenario the mean scenario's knowledge; None if it reads none."""
        if not self._bundle.model.enhancer.reads_scenarios:
            return None
        enhancer = copy.deepcopy(self._bundle.model.enhancer)
        enhancer.blur_scenarios()
        return enhancer

    def _logits(self, batch: Batch, e: Tensor, one: Batch) -> Tensor:
        """The logits of rows `e` `(B, E)`, all in the scenario of the one-row batch `one`."""
        count = e.shape[0]
        offsets = tuple(count if o else 0 for o in one.offsets)
        rows = replace(batch, offsets=offsets, rows=torch.arange(count))
        logits: Tensor = self._bundle.model.enhancer(e, rows, self._bundle.model.backbone)[0]
        return logits

    def _contributions(self, batch: Batch, e: Tensor) -> tuple[float, list[Contribution]]:
        means = self._bundle.means
        inputs, baselines = [e], [means["embedding"]]
        if batch.users is not None:
            inputs.append(batch.users.vectors)
            baselines.append(means["users"])
        if batch.item is not None:
            inputs.append(batch.item)
            baselines.append(means["item"])
        reads_users = batch.users is not None

        def logits(e: Tensor, *rest: Tensor) -> Tensor:
            users = UserStates(rest[0], None) if reads_users else None
            item = rest[-1] if batch.item is not None else None
            return self._logits(replace(batch, users=users, item=item), e, batch)

        with torch.no_grad():
            start, end = float(logits(*baselines)), float(logits(*inputs))
        for steps in _STEPS:
            parts = IntegratedGradients(logits, multiply_by_inputs=True).attribute(
                tuple(x.clone() for x in inputs), tuple(baselines), n_steps=steps, method="gausslegendre"
            )
            if abs(end - start - sum(float(part.sum()) for part in parts)) < _CLOSE:
                break
        return start, self._named([part.detach()[0] for part in parts], batch)

    def _named(self, parts: list[Tensor], batch: Batch) -> list[Contribution]:
        dim = self._bundle.model.embedding.dim
        names = list(places(self._bundle.schema))
        sizes = parts[0].split(dim)
        found = [
            Contribution(name=name, kind="field", contribution=float(size.sum()))
            for name, size in zip(names, sizes, strict=True)
        ]
        if batch.users is not None:
            sources = self._bundle.sources
            widths = sources.widths(self._bundle.rule, len(self._bundle.schema.scenarios)).users
            for source, part in zip(sources.users, parts[1].split(list(widths)), strict=True):
                found.append(Contribution(name=source, kind="user knowledge", contribution=float(part.sum())))
        if batch.item is not None:
            found.append(Contribution(name="item", kind="item knowledge", contribution=float(parts[-1].sum())))
        return found

    @torch.no_grad()
    def _branches(self, batch: Batch, e: Tensor) -> Branches | None:
        enhancer = self._bundle.model.enhancer
        if not isinstance(enhancer, Mixed) or enhancer.alpha is None:
            return None
        logit, beside, _ = enhancer.branches(e, batch, self._bundle.model.backbone)
        alpha = enhancer.alpha
        return Branches(
            alpha=float(alpha.sum()),
            beside=float(alpha @ torch.stack(beside)[:, 0]),
            backbone=float((1 - alpha.sum()) * logit[0]),
        )
