"""Adam for large tables: the cost of a step depends on the rows that it looked up, not on the table's size."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

_BETAS, _EPSILON = (0.9, 0.999), 1e-8
"""Adam's constants, those of PyTorch."""


class RowAdam:
    """Adam (Kingma and Ba, 2014) over the looked-up rows of a table.

    A row's value and moments are updated, and its decay applied, only in steps that look the row up. The bias
    correction counts all steps, as in `torch.optim.SparseAdam`. If every step looks up every row, it is exact Adam.

    Args:
        table: `(V, k)`; its gradient is sparse, as from `FeatureEmbedding`, and may have several entries for a row.
        learning_rate: Adam's learning rate.
        decay: L2, added to the gradient of the rows.
    """

    def __init__(self, table: Tensor, *, learning_rate: float, decay: float) -> None:
        self._table = table
        self._rate, self._decay = learning_rate, decay
        self._moments = torch.zeros_like(table.data), torch.zeros_like(table.data)
        self._steps = torch.zeros((), dtype=torch.float32, device=table.device)
        self._place: np.ndarray[tuple[int], np.dtype[np.int32]] | None = None

    def zero_grad(self) -> None:
        """Clear the gradient."""
        self._table.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Update the rows that have a gradient."""
        if self._table.grad is None:
            return
        rows, gradient = self._summed(self._table.grad)
        self._steps += 1
        tables = (self._table.data, *self._moments)
        value, first, second = (table.index_select(0, rows) for table in tables)
        torch._fused_adam_(
            [value],
            [gradient],
            [first],
            [second],
            [],
            [self._steps],
            lr=self._rate,
            beta1=_BETAS[0],
            beta2=_BETAS[1],
            weight_decay=self._decay,
            eps=_EPSILON,
            amsgrad=False,
            maximize=False,
        )
        for table, changed in zip(tables, (value, first, second), strict=True):
            table.index_copy_(0, rows, changed)

    def _summed(self, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """The different rows `(U,)` and the sum of the gradients of each, `(U, k)`."""
        ids, values = gradient._indices()[0], gradient._values()
        if gradient.is_cuda:
            return summed_in_place(ids, values)
        rows, inverse = self._different(ids)
        return rows, values.new_zeros(len(rows), values.shape[1]).index_add_(0, inverse, values)

    def _different(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """The different ids and each id's index into them. It does not sort: it marks ids in an array of length `V`."""
        if self._place is None:
            self._place = np.empty(len(self._table), dtype=np.int32)
        place, asked = self._place, ids.numpy()
        numbers = np.arange(len(asked), dtype=np.int32)
        place[asked] = numbers
        rows = asked[place[asked] == numbers]  # of equal ids, keep the last one
        place[rows] = numbers[: len(rows)]
        return torch.from_numpy(rows), torch.from_numpy(place[asked])

    def state(self) -> dict[str, Tensor]:
        """Moments and step count, by name."""
        return {"first": self._moments[0], "second": self._moments[1], "step": self._steps}

    def load(self, state: dict[str, Tensor]) -> None:
        """Restore the output of `state`."""
        for mine, theirs in zip(
            (*self._moments, self._steps), (state["first"], state["second"], state["step"]), strict=True
        ):
            mine.copy_(theirs)


def summed_in_place(ids: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Rows `(n,)` and the sum of each row's values, `(n, k)`; the number of different rows is not read on the host.

    The different ids come first, sorted. The rest of the `n` places repeats the first id with its sum, so that writing
    all places writes the same values to that row several times. The GPU is not synchronised.

    >>> rows, sums = summed_in_place(torch.tensor([7, 3, 7]), torch.tensor([[1.0], [2.0], [4.0]]))
    >>> rows.tolist(), sums[:, 0].tolist()
    ([3, 7, 3], [2.0, 5.0, 2.0])
    """
    ids, order = torch.sort(ids, stable=True)
    new = torch.ones_like(ids)
    new[1:] = ids[1:] != ids[:-1]
    place = torch.cumsum(new, 0) - 1
    rows = ids[:1].repeat(len(ids)).scatter_(0, place, ids)
    summed = torch.zeros_like(values).index_add_(0, place, values.index_select(0, order))
    used = torch.arange(len(ids), device=ids.device) <= place[-1]
    return rows, torch.where(used[:, None], summed, summed[:1])
