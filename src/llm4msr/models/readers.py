"""How enhancers read the knowledge of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from llm4msr.models.batch import Batch, KnowledgeWidths, UserStates, only_scenario, scenario_of_rows

T = TypeVar("T")
UserSource = Literal["prompted", "composed", "both"]
UserTable = Literal["prompted", "own", "others"]

USER_TABLES: dict[UserSource, tuple[UserTable, ...]] = {
    "prompted": ("prompted",),
    "composed": ("own", "others"),
    "both": ("prompted", "own", "others"),
}
"""The user-level tables of each source, in the order in which their vectors are concatenated."""


def user_states(batch: Batch) -> UserStates:
    """The batch's user states; raises `ValueError` if it has none."""
    return given(batch.users, "user states")


def of_rows(values: Tensor, inverse: Tensor | None) -> Tensor:
    """The values of each row, `(B, ...)`, from the values of each state, `(S, ...)`."""
    return values if inverse is None else values.index_select(0, inverse)


def mean_state(users: UserStates, widths: Sequence[int]) -> Tensor:
    """The population's mean state `(1, d)`. Each source (`widths`) is averaged over the rows whose user it knows."""
    means = []
    for part in of_rows(users.vectors, users.inverse).split(list(widths), 1):
        known = 1 - part[:, -1]  # each source's last number is 1 if it knows nothing
        means.append((part * known[:, None]).sum(0) / known.sum().clamp(min=1))
    return torch.cat(means)[None]


def of_scenarios(
    generated: Sequence[Tensor], offsets: Sequence[int], device: torch.device
) -> tuple[list[Tensor], Tensor]:
    """Generated tensors by scenario, and each row's index into them. If the batch has one scenario, only its slice."""
    only = only_scenario(offsets)
    if only is None:
        return list(generated), scenario_of_rows(offsets, device)
    return [part[only : only + 1] for part in generated], torch.zeros(offsets[-1], dtype=torch.int64, device=device)


def together(x: Tensor, layers: Sequence[nn.Linear]) -> list[Tensor]:
    """The output of each layer for `x`, computed in one matrix product."""
    return apart(side_by_side(x, layers), layers)


def side_by_side(x: Tensor, layers: Sequence[nn.Linear]) -> Tensor:
    """The outputs of the layers for `x`, concatenated, in one matrix product.

    Zeros fill its columns up to a multiple of 16: a CPU takes up to twice as long for 31 columns as for 32.
    """
    missing = -sum(layer.out_features for layer in layers) % 16
    weights: list[Tensor] = [layer.weight for layer in layers]
    biases: list[Tensor] = [layer.bias for layer in layers]
    if missing:
        weights.append(weights[0].new_zeros(missing, x.shape[1]))
        biases.append(biases[0].new_zeros(missing))
    return functional.linear(x, torch.cat(weights), torch.cat(biases))


def apart(outputs: Tensor, layers: Sequence[nn.Linear]) -> list[Tensor]:
    """The output of each layer, of outputs that are `side_by_side`."""
    widths = [layer.out_features for layer in layers]
    return list(outputs[:, : sum(widths)].split(widths, 1))


def scenario_vectors(knowledge: KnowledgeWidths) -> Tensor:
    """The scenarios' vectors `(D, width)`: constants of the model."""
    return torch.from_numpy(np.ascontiguousarray(given(knowledge.scenario, "scenario vectors")))


def given(value: T | None, what: str) -> T:
    """The value; raises a `ValueError` that names `what` if the value is missing (None or 0)."""
    if value is None or (isinstance(value, int) and value == 0):
        raise ValueError(f"the enhancer's settings need {what}, and none were given")
    return value
