"""From requests to click probabilities: one pass through the model for all requests of a call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from llm4msr.errors import nearest
from llm4msr.models.batch import Batch, UserStates
from llm4msr.serving.bundle import Bundle, as_tensor
from llm4msr.serving.fields import Columns
from llm4msr.serving.live import Live
from llm4msr.serving.requests import RequestError, ScoreRequest

_NO_LABEL = torch.zeros(0)


@dataclass(frozen=True)
class Scored:
    """Probabilities `(n,)` in the order of the items; which items are unknown; whether user and knowledge are known."""

    scores: NDArray[np.float32]
    unknown_items: list[str]
    user_known: bool
    knowledge_known: bool


@dataclass(frozen=True)
class Rows:
    """A request's rows: the scenario, codes of the items, encoded fields, and the user's state `(1, d)` if any."""

    scenario: int
    codes: NDArray[np.int32]
    fields: Columns
    state: NDArray[np.float32] | None
    user_known: bool
    knowledge_known: bool


class Scorer:
    """Scores requests with a bundle and the live states of its users.

    Args:
        bundle: the bundle to score with.
        live: the users' states now, and the items that are new since the export.
    """

    def __init__(self, bundle: Bundle, live: Live) -> None:
        self.bundle = bundle
        self.live = live
        widths = bundle.sources.widths(bundle.rule, len(bundle.schema.scenarios)).users
        self._flags = np.cumsum(widths).astype(np.intp) - 1  # the positions of the flags: 1 if a source knows nothing

    def score(self, requests: Sequence[ScoreRequest]) -> list[Scored]:
        """The probabilities of each request's items. Raises `RequestError` if one cannot be answered."""
        return self.scored(requests, [self.rows(request) for request in requests])

    def scored(self, requests: Sequence[ScoreRequest], rows: Sequence[Rows]) -> list[Scored]:
        """The probabilities of each request's items, from its `rows`."""
        probabilities = self.probabilities(rows)
        return [
            Scored(p, self._unknown(request.items, row.codes), row.user_known, row.knowledge_known)
            for request, row, p in zip(requests, rows, probabilities, strict=True)
        ]

    def rows(self, request: ScoreRequest) -> Rows:
        """Look up and encode a request's rows. Raises `RequestError` if it cannot be answered."""
        bundle = self.bundle
        scenario = self.scenario(request.scenario)
        user = bundle.lookup.number("user", request.user)
        codes = bundle.lookup.numbers("item", request.items)
        fields = bundle.fields.rows(user, codes, scenario)
        if codes.min() < 0:
            new = self.live.new_items(self._unknown(request.items, codes))
            for place in np.flatnonzero(codes < 0).tolist():
                bundle.fields.give_kept_item(fields, new.get(request.items[place], {}), place)
        if request.features:
            bundle.fields.give(fields, request.features, slice(None))
        if request.item_features is not None:
            if len(request.item_features) != len(request.items):
                raise RequestError(
                    422,
                    "wrong_length",
                    f"item_features has {len(request.item_features)} entries for {len(request.items)} items",
                )
            for place, features in enumerate(request.item_features):
                if features:
                    bundle.fields.give(fields, features, place)
        state = self.state(request.user, user, scenario)
        known = state is not None and bool((state[0, self._flags] == 0).any())
        if state is not None and request.knowledge == "mean":
            state = bundle.means["users"].numpy()
        return Rows(scenario, codes, fields, state, user >= 0, known)

    def scenario(self, name: str) -> int:
        """A scenario's index. Raises `RequestError` that lists the known ones."""
        index = self.bundle.scenario_index
        if name not in index:
            known = nearest(name[:80], [s.value for s in self.bundle.schema.scenarios])
            raise RequestError(404, "unknown_scenario", f"there is no scenario {name[:80]!r}; {known}")
        return index[name]

    def state(self, name: str, user: int, scenario: int) -> NDArray[np.float32] | None:
        """The state `(1, d)` of a user, given by id and code: the sources side by side, each with its flag."""
        bundle, rule = self.bundle, self.bundle.rule
        if not bundle.sources.users:
            return None
        composed = rule.state_width + 1
        prompted = bundle.sources.prompted + 1 if bundle.sources.prompted else 0
        out = np.empty((1, prompted + composed * len(rule.sources)), np.float32)
        if prompted:
            out[0, :prompted] = bundle.arrays["users/prompted"][user]
        if rule.sources:
            sums = self.live.sums(name, user)
            for place, source in enumerate(rule.sources):
                start = prompted + place * composed
                sums.state(scenario, source, rule, out[0, start : start + composed])
        return out

    def probabilities(self, rows: Sequence[Rows]) -> list[NDArray[np.float32]]:
        """The model's probabilities for the rows of each request."""
        batch, order = self.batch(rows)
        with torch.inference_mode():
            found = torch.sigmoid(self.bundle.model(batch)[0]).numpy()
        if order is not None:
            back = np.empty_like(found)
            back[order] = found
            found = back
        return np.split(found, np.cumsum([len(r.codes) for r in rows])[:-1])

    def batch(self, rows: Sequence[Rows]) -> tuple[Batch, NDArray[np.intp] | None]:
        """One batch of all rows, sorted by scenario, and the order that sorted them; None if they were not moved."""
        bundle = self.bundle
        sizes = [len(r.codes) for r in rows]
        scenario = np.repeat([r.scenario for r in rows], sizes)
        codes = np.concatenate([r.codes for r in rows]) if len(rows) > 1 else rows[0].codes
        owner = np.repeat(np.arange(len(rows)), sizes)
        columns = rows[0].fields
        order = None
        if len(rows) > 1:
            columns = {kind: np.concatenate([r.fields[kind] for r in rows]) for kind in columns}
            order = np.argsort(scenario, kind="stable")
            scenario, codes, owner = scenario[order], codes[order], owner[order]
            columns = {kind: values[order] for kind, values in columns.items()}
        offsets = np.searchsorted(scenario, np.arange(len(bundle.schema.scenarios) + 1))
        users = None
        if rows[0].state is not None:
            states = [r.state for r in rows if r.state is not None]
            users = UserStates(as_tensor(np.concatenate(states)), as_tensor(owner))
        return Batch(
            categorical=as_tensor(columns["categorical"]),
            multi=as_tensor(columns["multi"]),
            numeric=as_tensor(columns["numeric"]),
            offsets=tuple(offsets.tolist()),
            label=_NO_LABEL,
            rows=torch.arange(len(codes)),
            users=users,
            item=as_tensor(bundle.vectors[codes]) if bundle.sources.item else None,
        ), order

    @staticmethod
    def _unknown(items: Sequence[str], codes: NDArray[np.int32]) -> list[str]:
        return list(dict.fromkeys(items[place] for place in np.flatnonzero(codes < 0).tolist()))
