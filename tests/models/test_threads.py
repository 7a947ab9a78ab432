"""The number of threads changes the order in which sums are made up, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from llm4msr.models.batch import Batch, UserStates
from tests.models.zoo import PAIRS, make_model, make_rows


@pytest.fixture(autouse=True)
def _threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def doubled(batch: Batch) -> Batch:
    assert batch.users is not None
    assert batch.item is not None
    users = UserStates(batch.users.vectors.double(), batch.users.inverse)
    return replace(
        batch,
        numeric=batch.numeric.double(),
        label=batch.label.double(),
        item=batch.item.double(),
        users=users,
    )


def trained(backbone: str, enhancer: str, threads: int) -> dict[str, Tensor]:
    """Logits of a batch that is large enough for several threads, and the gradient of every parameter."""
    torch.set_num_threads(threads)
    model, batch = make_model(backbone, enhancer).double().train(), doubled(make_rows([1500, 700, 1900]))
    logits, penalty = model(batch)
    loss = functional.binary_cross_entropy_with_logits(logits, batch.label)
    (loss if penalty is None else loss + penalty).backward()
    return {"logits": logits.detach()} | {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def scores(backbone: str, enhancer: str, threads: int) -> Tensor:
    torch.set_num_threads(threads)
    with torch.inference_mode():
        found: Tensor = make_model(backbone, enhancer).eval()(make_rows([1500, 700, 1900]))[0]
    return found


@pytest.mark.parametrize(("backbone", "enhancer"), PAIRS)
def test_scores_do_not_depend_on_the_number_of_threads(backbone: str, enhancer: str) -> None:
    one, four = (scores(backbone, enhancer, threads) for threads in (1, 4))
    torch.testing.assert_close(four, one, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("backbone", "enhancer"), PAIRS)
def test_training_does_not_depend_on_the_number_of_threads(backbone: str, enhancer: str) -> None:
    # In single precision STAR's normalisation enlarges the rounding of a feature that is constant within a scenario.
    one, four = (trained(backbone, enhancer, threads) for threads in (1, 4))
    assert one.keys() == four.keys()
    for name, expected in one.items():
        torch.testing.assert_close(four[name], expected, rtol=1e-7, atol=1e-9)
