"""LLM4MSR light against its formula, and the ways of computing it against each other."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from llm4msr.models.batch import Batch, EmbeddingShape, KnowledgeWidths, UserStates
from llm4msr.models.enhancers.llm4msr_light import LightConfig, LLM4MSRLight
from llm4msr.models.layers import plus_product_first
from tests.models.test_meta import SumOfInputs
from tests.models.zoo import SCENARIOS, WIDTHS, make_rows

RANK, MATCH = 3, 4


def light() -> LLM4MSRLight:
    """With random weights, so that nothing is zero."""
    made = LLM4MSRLight(LightConfig(rank=RANK, match_dim=MATCH), EmbeddingShape(1, 2), SCENARIOS, WIDTHS)
    torch.manual_seed(3)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter)
    return made


def expected(made: LLM4MSRLight, e: Tensor, batch: Batch) -> Tensor:
    """The module's formula, row by row."""
    assert batch.users is not None
    assert batch.item is not None
    z = batch.users.vectors if batch.users.inverse is None else batch.users.vectors[batch.users.inverse]
    logits = []
    for row in range(len(batch)):
        s, user, c = made.user(z[row]).split([RANK, MATCH, 1])
        from_item, item, one = made.item(batch.item[row]).split([RANK, MATCH, 1])
        h = e[row] @ made.of_embedding + from_item + (user * item) @ made.of_match
        beside = (h * (1 + s) * made.out).sum() + c * one
        logits.append(made.alpha * beside + (1 - made.alpha) * e[row].sum())
    return torch.cat(logits)


@pytest.mark.parametrize("own_states", [False, True])
def test_it_is_the_formula_with_and_without_gradients(own_states: bool) -> None:
    made, batch, e = light(), make_rows([3, 0, 4]), torch.randn(7, 2)
    assert batch.users is not None
    assert batch.users.inverse is not None
    if own_states:
        batch = replace(batch, users=UserStates(batch.users.vectors[batch.users.inverse], None))
    plain = expected(made, e, batch)
    before = [t.clone() for t in (e, given_item(batch))]
    torch.testing.assert_close(made(e, batch, SumOfInputs())[0], plain)
    with torch.inference_mode():
        torch.testing.assert_close(made(e, batch, SumOfInputs())[0], plain)
    assert all(torch.equal(a, b) for a, b in zip(before, (e, given_item(batch)), strict=True))


def test_rows_of_a_single_state_are_scored_like_those_of_many() -> None:
    made, batch, e = light(), make_rows([0, 5, 0]), torch.randn(5, 2)
    assert batch.users is not None
    for inverse in (torch.zeros(5, dtype=torch.int64), None):
        rows = batch if inverse is not None else make_rows([0, 1, 0])
        alone = replace(rows, users=UserStates(batch.users.vectors[:1], inverse))
        torch.testing.assert_close(made(e[: len(rows)], alone, SumOfInputs())[0], expected(made, e[: len(rows)], alone))


def test_gradients_are_those_of_the_formula() -> None:
    made, batch, e = light(), make_rows([3, 2, 2]), torch.randn(7, 2, requires_grad=True)
    weights = [e, *made.parameters()]
    found = torch.autograd.grad(made(e, batch, SumOfInputs())[0].square().sum(), weights)
    plain = torch.autograd.grad(expected(made, e, batch).square().sum(), weights)
    for one, other in zip(found, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_a_new_model_starts_near_one_layer_for_all_states() -> None:
    """The generated part is small at first, and what the shift is multiplied by is 1."""
    made = LLM4MSRLight(LightConfig(), EmbeddingShape(4, 4), SCENARIOS, WIDTHS)
    batch = make_rows([20, 20, 20])
    assert batch.users is not None
    scale, _, shift = made.user(batch.users.vectors).split([16, 15, 1], 1)
    assert scale.abs().max() < 0.5
    assert shift.abs().max() < 0.5
    assert torch.equal(made.item(given_item(batch))[:, -1], torch.ones(60))
    assert made.backbone_width == 16


def test_the_penalty_is_the_mean_square_of_what_is_generated() -> None:
    made, batch, e = light(), make_rows([3, 0, 4]), torch.randn(7, 2)
    assert batch.users is not None
    assert made.eval()(e, batch, SumOfInputs())[1] is None
    generated = made.user(batch.users.vectors)[:, [0, 1, 2, 7]]
    torch.testing.assert_close(made.train()(e, batch, SumOfInputs())[1], generated.square().mean())


def test_it_needs_the_states_of_users_and_the_vectors_of_items() -> None:
    assert LightConfig().needs == {"own", "others", "item"}
    assert LightConfig(source="prompted").needs == {"prompted", "item"}
    for widths in (KnowledgeWidths(users=(6,)), KnowledgeWidths(item=6)):
        with pytest.raises(ValueError, match="need"):
            LLM4MSRLight(LightConfig(), EmbeddingShape(1, 2), SCENARIOS, widths)


def test_a_product_is_added_to_the_first_columns_alone() -> None:
    x, left, right = torch.randn(5, 6), torch.randn(5, 3), torch.randn(3, 4)
    plain = torch.cat([x[:, :4] + left @ right, x[:, 4:]], 1)
    torch.testing.assert_close(plus_product_first(x, left, right), plain)
    with torch.inference_mode():
        torch.testing.assert_close(plus_product_first(x.clone(), left, right), plain)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        torch.testing.assert_close(plus_product_first(x.clone(), left, right), plain, rtol=0.05, atol=0.05)


def given_item(batch: Batch) -> Tensor:
    assert batch.item is not None
    return batch.item
