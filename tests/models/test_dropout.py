"""Dropout of knowledge vectors: while training alone, and never of the flags that say that nothing is known."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from llm4msr.models.batch import Batch, EmbeddingShape, UserStates
from llm4msr.models.dropout import VectorDropout
from llm4msr.models.registry import ENHANCERS
from tests.models.test_meta import SumOfInputs
from tests.models.zoo import DIM, LAYOUT, SCENARIOS, WIDTHS, make_rows


@pytest.mark.parametrize(("widths", "flags"), [((6, 6), [5, 11]), ((6,), [5]), ((0, 3), [2])])
def test_flags_are_never_dropped(widths: tuple[int, ...], flags: list[int]) -> None:
    found = VectorDropout(widths, 0.5).train()(torch.ones(200, sum(widths)))
    others = [n for n in range(sum(widths)) if n not in flags]
    assert (found[:, flags] == 1).all()
    assert set(found[:, others].unique().tolist()) == {0.0, 2.0}


def test_nothing_is_dropped_after_training() -> None:
    vectors = torch.randn(5, 12)
    assert torch.equal(VectorDropout((6, 6), 0.5).eval()(vectors), vectors)
    assert torch.equal(VectorDropout((6, 6), 0.0).train()(vectors), vectors)


@pytest.mark.parametrize("name", ["llm4msr", "llm4msr_light"])
def test_vectors_of_users_and_of_items_are_dropped(name: str) -> None:
    """If all of their numbers are dropped, it makes no difference what they are."""
    config, shape = ENHANCERS.config(name, {"dropout": 0.9999}), EmbeddingShape(LAYOUT.fields, DIM)
    enhancer = ENHANCERS.get(name)(config, shape, SCENARIOS, WIDTHS)
    for parameter in enhancer.parameters():
        torch.nn.init.normal_(parameter)
    e, batch = torch.randn(7, shape.width), make_rows([3, 4, 0])
    assert batch.users is not None
    assert batch.item is not None
    users = batch.users.vectors.clone()
    users[:, :5] = users[:, 6:11] = 0
    item = batch.item.clone()
    item[:, :5] = 0
    without = [replace(batch, users=UserStates(users, batch.users.inverse)), replace(batch, item=item)]

    def logits(given: Batch) -> Tensor:
        torch.manual_seed(1)
        found: Tensor = enhancer(e, given, SumOfInputs())[0]
        return found

    for other in without:
        enhancer.train()
        assert torch.equal(logits(other), logits(batch))
        enhancer.eval()
        assert not torch.allclose(logits(other), logits(batch))
