"""Logits beside the backbone's, mixed by learned weights (LLM4MSR, equation 9)."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn

from llm4msr.models.batch import Batch
from llm4msr.models.registry import Backbone, Enhancer


class Mixed(Enhancer):
    """`logit = sum_i alpha_i logit_i + (1 - sum_i alpha_i) backbone(...)`; without `alpha`, the backbone's logit."""

    alpha: nn.Parameter | None

    @abstractmethod
    def branches(self, e: Tensor, batch: Batch, backbone: Backbone) -> tuple[Tensor, list[Tensor], Tensor | None]:
        """The backbone's logits `(B,)`, the logits of each branch beside it, one for each alpha, and the penalty."""

    def forward(self, e: Tensor, batch: Batch, backbone: Backbone) -> tuple[Tensor, Tensor | None]:
        """Logits `(B,)` and, in training, the penalty on generated weights."""
        logit, beside, penalty = self.branches(e, batch, backbone)
        if self.alpha is None:
            return logit, penalty
        if len(beside) == 1:
            return logit + self.alpha * (beside[0] - logit), penalty
        return self.alpha @ torch.stack(beside) + (1 - self.alpha.sum()) * logit, penalty
