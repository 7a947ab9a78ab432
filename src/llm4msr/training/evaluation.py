"""Scoring the rows of a part with a model, and the metrics of the scores."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from llm4msr.data.prepared import PreparedData
from llm4msr.data.split import Part
from llm4msr.errors import InputError
from llm4msr.models.model import MultiScenarioModel
from llm4msr.training.batches import BatchSource
from llm4msr.training.metrics import Scores, score
from llm4msr.training.parallel import ALONE, Group


def predict(
    model: MultiScenarioModel, data: PreparedData, source: BatchSource, part: Part, group: Group = ALONE
) -> NDArray[np.float32]:
    """The logits of a part's rows, `(n,)`, in the order of the data; processes of a `group` divide the batches."""
    first, last = data.split.range(part)
    out = torch.zeros(last - first, device=source.device)
    model.eval()
    with torch.inference_mode():
        for batch in source.part(part, share=(group.rank, group.size), enhancer=model.enhancer):
            out[batch.rows - first] = model(batch)[0].float()
    return group.sum(out.cpu()).numpy()


def evaluate(
    model: MultiScenarioModel, data: PreparedData, source: BatchSource, part: Part, group: Group = ALONE
) -> Scores:
    """AUC and log loss of a part, overall and for each scenario."""
    return score_part(data, predict(model, data, source, part, group), part)


def score_part(data: PreparedData, logits: NDArray[np.float32], part: Part) -> Scores:
    """AUC and log loss of a part from its rows' logits; raises `InputError` if a logit is not finite."""
    first, last = data.split.range(part)
    if not np.isfinite(logits).all():
        raise InputError("the scores are not numbers; lower the learning rate, or check the numeric fields")
    label, scenario = np.asarray(data.label[first:last]), np.asarray(data.scenario[first:last])
    return score(label, logits, scenario, data.scenario_count)
