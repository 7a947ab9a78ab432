"""The objective that a training step minimises."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from llm4msr.models.batch import Batch, PaddedOffsets
from llm4msr.models.model import MultiScenarioModel


def losses(model: MultiScenarioModel, batch: Batch, precision: str) -> tuple[Tensor, Tensor | None]:
    """The mean log loss of the rows, and the model's penalty on generated weights or None.

    The model runs in `precision` ("float32" or "bfloat16"); the loss is always computed in float32. Padding rows do not
    count in it.
    """
    with torch.autocast(batch.label.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
        logits, penalty = model(batch)
    if isinstance(batch.offsets, PaddedOffsets):
        weights = batch.offsets.real() / batch.offsets.counts.sum()
        summed = functional.binary_cross_entropy_with_logits(logits.float(), batch.label, weights, reduction="sum")
        return summed, penalty
    return functional.binary_cross_entropy_with_logits(logits.float(), batch.label), penalty


def objective(loss: Tensor, penalty: Tensor | None, generated_decay: float) -> Tensor:
    """`loss + generated_decay * penalty`."""
    return loss if penalty is None or not generated_decay else loss + generated_decay * penalty
