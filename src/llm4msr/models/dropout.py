"""Dropout of knowledge vectors."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor, nn
from torch.nn import functional


class VectorDropout(nn.Module):
    """Dropout of vectors `(n, d)` while training, but never of the flags that say that a vector is unknown.

    Args:
        widths: the widths of the vectors that stand side by side, `d` together; the last number of each is its flag.
        share: the share of the other numbers that is dropped.
    """

    flags: Tensor

    def __init__(self, widths: Sequence[int], share: float) -> None:
        super().__init__()
        self.share = share
        flags = torch.zeros(sum(widths), dtype=torch.bool)
        flags[[end - 1 for end in accumulate(widths) if end]] = True
        self.register_buffer("flags", flags, persistent=False)

    def forward(self, vectors: Tensor) -> Tensor:
        """Vectors `(n, d)` to vectors `(n, d)`."""
        if not (self.share and self.training):
            return vectors
        return torch.where(self.flags, vectors, functional.dropout(vectors, self.share))
