"""What every backbone with every enhancer must do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from llm4msr.models.registry import BACKBONES as REGISTERED_BACKBONES
from llm4msr.models.registry import ENHANCERS as REGISTERED_ENHANCERS
from llm4msr.training.checkpoint import read_tensors, write_tensors
from llm4msr.training.objective import losses, objective
from tests.models.zoo import BACKBONES, ENHANCERS, PAIRS, make_model, make_rows, pick

every_pair = pytest.mark.parametrize(("backbone", "enhancer"), PAIRS)


def test_the_zoo_knows_every_registered_model() -> None:
    assert sorted(BACKBONES) == REGISTERED_BACKBONES.names()
    assert sorted({name for name, _ in ENHANCERS.values()}) == REGISTERED_ENHANCERS.names()


@every_pair
def test_a_row_scores_the_same_alone_as_in_any_batch(backbone: str, enhancer: str) -> None:
    model = make_model(backbone, enhancer)
    batch = make_rows([5, 1, 4])
    model.train()
    model(batch)  # moves running statistics away from their start
    model.eval()
    with torch.no_grad():
        together = model(batch)[0]
        alone = torch.cat([model(pick(batch, [row]))[0] for row in range(len(batch))])
    torch.testing.assert_close(alone, together, rtol=1e-5, atol=1e-6)


@every_pair
def test_a_frozen_model_scores_the_same(backbone: str, enhancer: str) -> None:
    model = make_model(backbone, enhancer)
    with torch.no_grad():
        for parameter in model.parameters():  # away from a start at which all scenarios are the same
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)) / 10)
    batches = [make_rows([5, 1, 4]), make_rows([0, 3, 0])]
    model.eval()
    with torch.no_grad():
        before = [model(batch)[0] for batch in batches]
        model.freeze()
        after = [model(batch)[0] for batch in batches]
    torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-6)


@every_pair
def test_the_gradient_of_a_frozen_model_is_that_of_its_scores(backbone: str, enhancer: str) -> None:
    model = make_model(backbone, enhancer).freeze().double()
    batch = make_rows([3, 1, 2])
    assert batch.users is not None
    assert batch.item is not None
    states = batch.users
    inputs = [model.embedding(batch), states.vectors.double(), batch.item.double()]
    random = torch.Generator().manual_seed(0)
    way = [torch.randn(x.shape, generator=random, dtype=x.dtype) for x in inputs]

    def total(step: torch.Tensor) -> torch.Tensor:
        e, users, item = (x + step * d for x, d in zip(inputs, way, strict=True))
        moved = replace(batch, users=replace(states, vectors=users), item=item)
        logits: torch.Tensor = model.enhancer(e, moved, model.backbone)[0]
        return logits.sum()

    at = torch.zeros((), dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(total(at), at)
    with torch.no_grad():
        step = torch.tensor(1e-7, dtype=torch.float64)
        difference = (total(step) - total(-step)) / (2 * step)
    torch.testing.assert_close(slope, difference, rtol=1e-4, atol=1e-6)


@every_pair
def test_permuting_rows_permutes_their_scores(backbone: str, enhancer: str) -> None:
    model = make_model(backbone, enhancer).eval()
    batch = make_rows([4, 2, 3])
    order = [2, 0, 3, 1, 5, 4, 8, 7, 6]
    with torch.no_grad():
        torch.testing.assert_close(model(pick(batch, order))[0], model(batch)[0][order], rtol=1e-5, atol=1e-6)


@every_pair
def test_every_parameter_learns(backbone: str, enhancer: str) -> None:
    model = make_model(backbone, enhancer).train()
    touched: set[str] = set()
    for seed in range(3):
        logits, penalty = model(make_rows([20, 20, 20], seed))
        loss = functional.binary_cross_entropy_with_logits(logits, make_rows([20, 20, 20], seed).label)
        model.zero_grad()
        (loss if penalty is None else loss + penalty).backward()
        for name, parameter in model.named_parameters():
            if parameter.grad is not None and bool(parameter.grad.abs().sum() > 0):
                touched.add(name)
    assert touched == {name for name, _ in model.named_parameters()}


@every_pair
def test_bfloat16_is_near_float32_and_has_gradients(backbone: str, enhancer: str) -> None:
    model, batch = make_model(backbone, enhancer).train(), make_rows([8, 1, 8])
    plain, _ = losses(model, batch, "float32")
    mixed, penalty = losses(model, batch, "bfloat16")
    assert mixed.dtype == torch.float32
    torch.testing.assert_close(mixed, plain, rtol=0.05, atol=0.05)
    objective(mixed, penalty, 0.1).backward()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in model.parameters())


@every_pair
def test_every_used_row_of_the_embedding_table_gets_a_gradient(backbone: str, enhancer: str) -> None:
    model = make_model(backbone, enhancer).train()
    batch = make_rows([60, 60, 60])
    model(batch)[0].sum().backward()
    gradient = model.embedding.table.weight.grad
    assert gradient is not None
    assert bool((gradient.abs().sum(1) > 0).all())


@every_pair
def test_saved_weights_give_bit_identical_scores(backbone: str, enhancer: str, tmp_path: Path) -> None:
    model, other = make_model(backbone, enhancer, seed=0), make_model(backbone, enhancer, seed=1)
    batch = make_rows([3, 3, 3])
    model.train()
    model(batch)
    write_tensors(tmp_path / "model.safetensors", model.state_dict())
    other.load_state_dict(read_tensors(tmp_path / "model.safetensors")[0])
    with torch.no_grad():
        assert torch.equal(model.eval()(batch)[0], other.eval()(batch)[0])


@every_pair
def test_two_models_share_no_parameter(backbone: str, enhancer: str) -> None:
    one, other = make_model(backbone, enhancer), make_model(backbone, enhancer)
    assert not {p.data_ptr() for p in one.parameters()} & {p.data_ptr() for p in other.parameters()}
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


@every_pair
@pytest.mark.parametrize("sizes", [[1, 0, 0], [0, 0, 1], [5, 0, 0], [4, 1, 4], [1, 1, 1], [0, 3, 0]])
def test_any_sizes_of_scenarios_train_and_score(backbone: str, enhancer: str, sizes: list[int]) -> None:
    model = make_model(backbone, enhancer)
    batch = make_rows(sizes)
    logits, penalty = model.train()(batch)
    loss = functional.binary_cross_entropy_with_logits(logits, batch.label)
    (loss if penalty is None else loss + penalty).backward()
    assert logits.shape == (sum(sizes),)
    assert all(p.grad is None or bool(torch.isfinite(p.grad).all()) for p in model.parameters())
    with torch.no_grad():
        assert bool(torch.isfinite(model.eval()(batch)[0]).all())


@every_pair
def test_logits_take_both_signs(backbone: str, enhancer: str) -> None:
    model = make_model(backbone, enhancer)
    batch = make_rows([40, 40, 40])
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    for _ in range(30):
        optimizer.zero_grad()
        functional.binary_cross_entropy_with_logits(model.train()(batch)[0], batch.label).backward()
        optimizer.step()
    logits = model.eval()(batch)[0]
    assert bool((logits > 0).any())
    assert bool((logits < 0).any())


@every_pair
def test_evaluation_changes_no_state(backbone: str, enhancer: str) -> None:
    model = make_model(backbone, enhancer).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model(make_rows([4, 4, 4]))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
