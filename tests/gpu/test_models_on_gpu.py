"""Every backbone with every enhancer gives on a GPU what it gives on a CPU."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from llm4msr.models.batch import Batch, UserStates
from llm4msr.training.objective import losses, objective
from llm4msr.training.optim import EmbeddingUpdates, Optimizers
from tests.gpu.conftest import GPU
from tests.models.zoo import BACKBONES, PAIRS, make_model, make_rows


def moved(batch: Batch) -> Batch:
    """The batch on the GPU."""

    def there(value: Tensor | None) -> Any:
        return None if value is None else value.to(GPU)

    users = batch.users
    if users is not None:
        users = UserStates(there(users.vectors), there(users.inverse))
    names = ("categorical", "multi", "numeric", "label", "rows", "item")
    return replace(batch, users=users, **{name: there(getattr(batch, name)) for name in names})


@pytest.mark.parametrize(("backbone", "enhancer"), PAIRS)
def test_scores_and_gradients_are_those_of_a_cpu(backbone: str, enhancer: str) -> None:
    here, there = make_model(backbone, enhancer).train(), make_model(backbone, enhancer).to(GPU).train()
    batch = make_rows([9, 1, 20])
    for model, rows in ((here, batch), (there, moved(batch))):
        loss, penalty = losses(model, rows, "float32")
        objective(loss, penalty, 0.1).backward()
    for (name, mine), theirs in zip(here.named_parameters(), there.parameters(), strict=True):
        assert (mine.grad is None) == (theirs.grad is None), name
        if mine.grad is not None and theirs.grad is not None:
            torch.testing.assert_close(theirs.grad.cpu(), mine.grad, rtol=1e-3, atol=1e-5, msg=name)
    for kept, kept_there in zip(here.buffers(), there.buffers(), strict=True):
        torch.testing.assert_close(kept_there.cpu(), kept, rtol=1e-4, atol=1e-5)
    with torch.inference_mode():
        one, other = here.eval()(batch)[0], there.eval()(moved(batch))[0]
    torch.testing.assert_close(other.cpu(), one, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_mixed_precision_is_near_float32_and_learns(backbone: str) -> None:
    batch = moved(make_rows([40, 1, 40]))
    model = make_model(backbone, "llm4msr").to(GPU).train()
    plain, _ = losses(model, batch, "float32")
    mixed, _ = losses(model, batch, "bfloat16")
    assert mixed.dtype == torch.float32
    torch.testing.assert_close(mixed, plain, rtol=0.02, atol=0.02)
    optimizers = Optimizers(model, learning_rate=0.01, embedding_decay=0.0, weight_decay=0.0)
    found = []
    for _ in range(30):
        optimizers.zero_grad()
        loss, penalty = losses(model, batch, "bfloat16")
        objective(loss, penalty, 0.0).backward()
        optimizers.step()
        found.append(float(loss.detach()))
    assert found[-1] < 0.8 * found[0]


@pytest.mark.parametrize("updates", ["rows", "exact"])
def test_steps_are_those_of_a_cpu(updates: EmbeddingUpdates) -> None:
    here, there = make_model("star", "llm4msr").train(), make_model("star", "llm4msr").to(GPU).train()
    for model, move in ((here, lambda batch: batch), (there, moved)):
        optimizers = Optimizers(
            model, learning_rate=0.01, embedding_decay=1e-3, weight_decay=1e-3, embedding_updates=updates
        )
        for seed in range(5):
            optimizers.zero_grad()
            losses(model, move(make_rows([30, 2, 30], seed)), "float32")[0].backward()
            optimizers.step()
        kept = {name: value.clone() for name, value in optimizers.state().items()}
        optimizers.load(kept)
        assert all(torch.equal(kept[name], value) for name, value in optimizers.state().items())
    for (name, mine), theirs in zip(here.named_parameters(), there.parameters(), strict=True):
        # Adam divides by the size of the gradient: where that is nearly zero, its rounding decides.
        far = (theirs.cpu() - mine).abs() > 1e-3
        assert float(far.float().mean()) < 0.02, name
