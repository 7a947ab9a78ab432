"""Updates of the looked-up rows alone, against PyTorch's own optimizers and a plain loop."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from llm4msr.models.embedding import look_up
from llm4msr.training.row_adam import RowAdam


def table(rows: int = 20) -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.randn(rows, 4, generator=torch.Generator().manual_seed(0)))


def loss_of(weight: Tensor, ids: Tensor, step: int, *, sparse: bool) -> Tensor:
    target = torch.randn(*ids.shape, 4, generator=torch.Generator().manual_seed(step))
    return (look_up(weight, ids, sparse) - target).square().sum()


def ids_of(step: int, rows: int = 20, count: int = 50) -> Tensor:
    return torch.randint(0, rows, (count // 5, 5), generator=torch.Generator().manual_seed(100 + step))


def test_a_row_that_was_not_looked_up_stays_and_the_others_move_as_sparse_adam_moves_them() -> None:
    ours, theirs = table(200), table(200)
    optimizer, reference = RowAdam(ours, learning_rate=0.05, decay=0.0), torch.optim.SparseAdam([theirs], lr=0.05)
    seen = torch.zeros(200, dtype=torch.bool)
    for step in range(8):
        ids = ids_of(step, rows=150, count=30)
        seen[ids.reshape(-1)] = True
        for parameter, one in ((ours, optimizer), (theirs, reference)):
            one.zero_grad()
            loss_of(parameter, ids, step, sparse=True).backward()
            one.step()
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)  # it adds epsilon elsewhere
    assert torch.equal(ours[~seen], table(200)[~seen])
    assert not torch.isclose(ours[seen], table(200)[seen]).all(1).any()


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_where_every_step_looks_up_every_row_it_is_exact_adam(decay: float) -> None:
    ours, theirs = table(), table()
    optimizer = RowAdam(ours, learning_rate=0.05, decay=decay)
    reference = torch.optim.Adam([theirs], lr=0.05, weight_decay=decay)
    for step in range(8):
        ids = torch.cat([torch.arange(20).view(4, 5), ids_of(step)])
        for parameter, one, sparse in ((ours, optimizer, True), (theirs, reference, False)):
            one.zero_grad()
            loss_of(parameter, ids, step, sparse=sparse).backward()
            one.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_the_gradient_of_a_look_up_is_pytorchs_own() -> None:
    ids = ids_of(0)
    found = []
    for kind in (True, False, None):
        weight = table()
        looked_up = torch.nn.functional.embedding(ids, weight) if kind is None else look_up(weight, ids, kind)
        looked_up.square().sum().backward()
        assert weight.grad is not None
        found.append(weight.grad.to_dense())
    torch.testing.assert_close(found[0], found[2])
    torch.testing.assert_close(found[1], found[2])


def test_state_goes_on_where_it_was() -> None:
    straight = table()
    optimizer = RowAdam(straight, learning_rate=0.05, decay=0.01)
    for step in range(4):
        if step == 2:
            weight = torch.nn.Parameter(straight.detach().clone())
            resumed = RowAdam(weight, learning_rate=0.05, decay=0.01)
            resumed.load({name: value.clone() for name, value in optimizer.state().items()})
            straight, optimizer = weight, resumed
        optimizer.zero_grad()
        loss_of(straight, ids_of(step), step, sparse=True).backward()
        optimizer.step()
    other = table()
    reference = RowAdam(other, learning_rate=0.05, decay=0.01)
    for step in range(4):
        reference.zero_grad()
        loss_of(other, ids_of(step), step, sparse=True).backward()
        reference.step()
    assert torch.equal(straight, other)


def test_without_a_gradient_nothing_happens() -> None:
    weight = table()
    optimizer = RowAdam(weight, learning_rate=0.05, decay=0.1)
    optimizer.step()
    assert torch.equal(weight, table())
