"""The embedding of values that training never saw."""

from __future__ import annotations

import torch
from torch import Tensor

from llm4msr.data.prepared import PreparedData
from llm4msr.models.embedding import FeatureEmbedding


class UnknownValues:
    """Gives unknown values of a field the mean embedding of the known ones, weighted by their training rows.

    This concerns the fields of which no training row has an unknown value (id 0), as with `min_count = 1`: nothing
    would be learned for it, and all new items would share a random vector. In other fields it is learned from the rare
    values.

    Args:
        data: the prepared data that the model is trained on.
        embedding: the model's embedding.
    """

    def __init__(self, data: PreparedData, embedding: FeatureEmbedding) -> None:
        specs = [*data.fields_of("categorical"), *data.fields_of("multi")]
        device = embedding.table.weight.device
        self._fields: list[tuple[int, Tensor]] = []
        for spec, start in zip(specs, embedding.offsets.tolist(), strict=True):
            shares = data.records[spec.name].unknown_share
            if shares is not None and shares["train"] == 0:
                counts = torch.from_numpy(data.value_counts(spec.name))
                if len(counts):
                    self._fields.append((start, (counts / counts.sum()).to(device, torch.float32)))

    @torch.no_grad()
    def give(self, embedding: FeatureEmbedding) -> None:
        """Set their rows in the table. No training row looks them up, so training does not depend on them."""
        table = embedding.table.weight
        for row, weights in self._fields:
            table[row] = weights @ table[row + 1 : row + 1 + len(weights)]
