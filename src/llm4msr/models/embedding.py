"""All fields of a row as one vector `(B, E)`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from llm4msr.models.batch import Batch, FieldLayout

_SPREAD = 0.01
"""The standard deviation of the table's initial values."""


class FeatureEmbedding(nn.Module):
    """Embeds the fields. All categorical and multi-valued fields share one table with offsets, read in one look-up.

    A multi-valued field is the mean over its values (zero if there is none). A numeric field is `x * w + b` with its
    own vectors `w` and `b`, or a third learned vector if the number is missing. Every id is below its field's size,
    since the ids and the layout come from the same vocabulary.

    Args:
        layout: the fields.
        dim: length of a field's embedding.
        empty: allocate no memory for the table; its weights are assigned later.
    """

    offsets: Tensor

    def __init__(self, layout: FieldLayout, dim: int, *, empty: bool = False) -> None:
        super().__init__()
        self.layout = layout
        self.dim = dim
        sizes = list(layout.categorical) + [size for size, _ in layout.multi]
        starts = torch.cumsum(torch.tensor([0, *sizes], dtype=torch.int64), 0)
        self.register_buffer("offsets", starts[: len(sizes)], persistent=False)
        self.table = nn.Embedding(max(1, int(starts[-1])), dim, device="meta" if empty else None)
        self.sparse_gradient = False
        """Whether the table's gradient is sparse: it holds only the looked-up rows."""
        nn.init.normal_(self.table.weight, std=_SPREAD)
        self.numeric = nn.Parameter(torch.randn(3, layout.numeric, dim) * 0.01) if layout.numeric else None

    @torch.no_grad()
    def start_from(self, place: int, ids: Tensor, vectors: Tensor) -> None:
        """Initialise rows of the categorical field number `place` with the first `dim` numbers of vectors `(n, d)`.

        All of them are scaled by one factor to the standard deviation of random rows. If rows are longer than the
        vectors, their remaining numbers stay random.
        """
        width = min(self.dim, vectors.shape[1])
        chosen = vectors[:, :width]
        rows = ids + self.offsets[place]
        spread = chosen.std(correction=min(1, chosen.numel() - 1))  # a single number has none
        self.table.weight[rows, :width] = chosen * (_SPREAD / spread.clamp(min=1e-6))

    def forward(self, batch: Batch) -> Tensor:
        """Embeddings `(B, E)`: categorical, multi-valued, then numeric fields, each in the schema's order."""
        count = len(self.layout.categorical)
        rows = batch.rows.shape[0]
        parts: list[Tensor] = []
        ids = [batch.categorical + self.offsets[:count]] if count else []
        start = 0
        for place, (_, length) in enumerate(self.layout.multi):
            values = batch.multi[:, start : start + length]
            ids.append(values.clamp(min=0) + self.offsets[count + place])
            start += length
        if ids:
            looked_up = look_up(self.table.weight, torch.cat(ids, 1) if len(ids) > 1 else ids[0], self.sparse_gradient)
            parts.append(looked_up[:, :count].reshape(rows, count * self.dim))
            start = 0
            for _, length in self.layout.multi:
                inside = (batch.multi[:, start : start + length] >= 0).to(looked_up.dtype)[:, :, None]
                values = looked_up[:, count + start : count + start + length]
                parts.append((values * inside).sum(1) / inside.sum(1).clamp(min=1))
                start += length
        if self.numeric is not None:
            scale, shift, missing = self.numeric
            known = ~torch.isnan(batch.numeric)[:, :, None]
            number = torch.nan_to_num(batch.numeric)[:, :, None]
            parts.append(torch.where(known, number * scale + shift, missing).reshape(rows, -1))
        return torch.cat(parts, 1) if len(parts) > 1 else parts[0]


def look_up(table: Tensor, ids: Tensor, sparse: bool) -> Tensor:
    """`table[ids]`: `(V, k)` and `(...)` give `(..., k)`. A sparse gradient has one entry for each look-up."""
    if sparse or not table.is_cuda:
        found: Tensor = _LookUp.apply(table, ids, sparse)  # type: ignore[no-untyped-call]
        return found
    return functional.embedding(ids, table)


class _LookUp(torch.autograd.Function):
    """An embedding look-up. On a CPU, PyTorch's own takes several times as long to sum its gradient."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, ids: Tensor, sparse: bool) -> Tensor:
        flat = ids.reshape(-1)
        ctx.save_for_backward(flat)
        ctx.size, ctx.sparse = table.shape, sparse
        return table.index_select(0, flat).view(*ids.shape, table.shape[1])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (flat,) = ctx.saved_tensors
        values = gradient.reshape(len(flat), -1)
        if ctx.sparse:
            return torch.sparse_coo_tensor(flat[None], values, ctx.size, check_invariants=False), None, None
        return values.new_zeros(ctx.size).index_add_(0, flat, values), None, None
