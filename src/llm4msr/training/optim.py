"""Optimizers: Adam for all, with decays of their own for embeddings and for the rest."""

from __future__ import annotations

import torch
from torch import Tensor

from llm4msr.models.model import MultiScenarioModel


class Optimizers:
    """Adam over a model's parameters (Kingma and Ba, 2014), as one object.

    Dense tables: exact Adam over every row. Sparse tables: `SparseAdam`, whose moments and decay are applied to a
    row only in the steps that look it up, so that a step's cost does not grow with the table.

    Args:
        model: the model.
        learning_rate: for all parameters.
        embedding_decay: L2 on the embedding table, added to its gradient.
        weight_decay: L2 towards zero on all other parameters, those that start at one included.
    """

    def __init__(
        self, model: MultiScenarioModel, *, learning_rate: float, embedding_decay: float, weight_decay: float
    ) -> None:
        self._table = model.embedding.table.weight
        self._sparse = model.embedding.table.sparse
        self._embedding_decay = embedding_decay
        rest = [p for p in model.parameters() if p is not self._table]
        groups = [{"params": rest, "weight_decay": weight_decay}]
        if not self._sparse:
            groups.append({"params": [self._table], "weight_decay": embedding_decay})
        self._all: list[torch.optim.Optimizer] = [torch.optim.Adam(groups, lr=learning_rate, fused=True)]
        if self._sparse:
            self._all.append(torch.optim.SparseAdam([self._table], lr=learning_rate))

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for optimizer in self._all:
            optimizer.zero_grad(set_to_none=True)

    def step(self) -> None:
        """Update the parameters."""
        if self._sparse and self._table.grad is not None:
            gradient = self._table.grad.coalesce()
            if self._embedding_decay:
                rows = gradient.indices()[0]
                values = gradient.values() + self._embedding_decay * self._table.detach()[rows]
                gradient = torch.sparse_coo_tensor(
                    gradient.indices(), values, gradient.shape, is_coalesced=True, check_invariants=False
                )
            self._table.grad = gradient
        for optimizer in self._all:
            optimizer.step()

    def state(self) -> dict[str, Tensor]:
        """All moments and step counts, by name."""
        found: dict[str, Tensor] = {}
        for place, optimizer in enumerate(self._all):
            for parameter, values in optimizer.state_dict()["state"].items():
                for key, value in values.items():
                    found[f"{place}/{parameter}/{key}"] = torch.as_tensor(value).detach()
        return found

    def load(self, state: dict[str, Tensor]) -> None:
        """Take over what `state` gave."""
        for place, optimizer in enumerate(self._all):
            whole = optimizer.state_dict()
            loaded: dict[int, dict[str, Tensor | int]] = {}
            for name, value in state.items():
                owner, parameter, key = name.split("/")
                if int(owner) == place:
                    sparse_step = key == "step" and isinstance(optimizer, torch.optim.SparseAdam)
                    loaded.setdefault(int(parameter), {})[key] = int(value) if sparse_step else value.clone()
            optimizer.load_state_dict({"state": loaded, "param_groups": whole["param_groups"]})
