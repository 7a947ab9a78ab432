"""Optimizers: Adam for all parameters, with separate decays for the embedding table and the rest."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from llm4msr.models.model import MultiScenarioModel
from llm4msr.training.row_adam import RowAdam

EmbeddingUpdates = Literal["auto", "rows", "exact"]
_LARGE = 2**22
"""`auto` updates rows in tables of more numbers than this. Up to it, exact Adam costs a few milliseconds at most."""


class Optimizers:
    """Adam over a model's parameters (Kingma and Ba, 2014), as one object.

    Args:
        model: the model.
        learning_rate: for all parameters.
        embedding_decay: L2 on the embedding table, added to its gradient.
        weight_decay: L2 towards zero on all other parameters, including those that start at one.
        embedding_updates: `exact` updates every row of the table in every step. `rows` updates those that the step
            looked up, so that its cost does not grow with the table (see `RowAdam`). `auto` is exact for tables of up
            to 4 M numbers: rows that a step does not look up then decay too, which sparse data need.
    """

    def __init__(
        self,
        model: MultiScenarioModel,
        *,
        learning_rate: float,
        embedding_decay: float,
        weight_decay: float,
        embedding_updates: EmbeddingUpdates = "auto",
    ) -> None:
        table = model.embedding.table.weight
        by_rows = embedding_updates == "rows" or (embedding_updates == "auto" and table.numel() > _LARGE)
        model.embedding.sparse_gradient = by_rows
        rest = [p for p in model.parameters() if p is not table]
        groups = [{"params": rest, "weight_decay": weight_decay}]
        self._rows: RowAdam | None = None
        if by_rows:
            self._rows = RowAdam(table, learning_rate=learning_rate, decay=embedding_decay)
        else:
            groups.append({"params": [table], "weight_decay": embedding_decay})
        self._adam = torch.optim.Adam(groups, lr=learning_rate, fused=True, capturable=table.is_cuda)

    @property
    def by_rows(self) -> bool:
        """Whether the table's gradient is sparse."""
        return self._rows is not None

    def zero_grad(self) -> None:
        """Clear the gradients."""
        self._adam.zero_grad(set_to_none=True)
        if self._rows is not None:
            self._rows.zero_grad()

    def step(self) -> None:
        """Update the parameters."""
        self._adam.step()
        if self._rows is not None:
            self._rows.step()

    def state(self) -> dict[str, Tensor]:
        """All moments and step counts, by name."""
        found = {
            f"adam/{parameter}/{key}": torch.as_tensor(value).detach()
            for parameter, values in self._adam.state_dict()["state"].items()
            for key, value in values.items()
        }
        if self._rows is not None:
            found |= {f"rows/{key}": value for key, value in self._rows.state().items()}
        return found

    def load(self, state: dict[str, Tensor]) -> None:
        """Restore the output of `state`."""
        loaded: dict[int, dict[str, Tensor]] = {}
        rows: dict[str, Tensor] = {}
        for name, value in state.items():
            owner, *rest = name.split("/")
            if owner == "rows":
                rows[rest[0]] = value
            else:
                loaded.setdefault(int(rest[0]), {})[rest[1]] = value.clone()
        self._adam.load_state_dict({"state": loaded, "param_groups": self._adam.state_dict()["param_groups"]})
        if self._rows is not None:
            self._rows.load(rows)
