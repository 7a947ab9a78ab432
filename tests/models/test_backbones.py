"""Published formulas by hand, and towers on slices against a plain masked reference."""

from __future__ import annotations

import torch
from torch.nn import functional

from llm4msr.models.backbones.shared_bottom import SharedBottom, SharedBottomConfig
from llm4msr.models.backbones.star import STAR, PartitionedNorm, STARConfig, StarLayer


def test_star_layer_multiplies_shared_and_scenario_weights() -> None:
    layer = StarLayer(2, 1, scenarios=2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[2.0, 3.0]]))
        layer.bias.fill_(0.5)
        layer.scenario_weight.copy_(torch.tensor([[[1.0, 1.0]], [[10.0, -1.0]]]))
        layer.scenario_bias.copy_(torch.tensor([[0.0], [4.0]]))
    x = torch.tensor([[1.0, 2.0]])
    first, second = (functional.linear(x, *weights).item() for weights in layer.of_scenarios())
    assert first == 2 * 1 + 3 * 2 + 0.5
    assert second == (2 * 10) * 1 + (3 * -1) * 2 + 0.5 + 4.0


def test_partitioned_norm_uses_the_statistics_of_its_scenario() -> None:
    norm = PartitionedNorm(1, scenarios=2, momentum=0.5, epsilon=1e-12)
    with torch.no_grad():
        norm.scale.fill_(2.0)
        norm.scenario_scale[1] = 3.0
        norm.shift.fill_(1.0)
        norm.scenario_shift[1] = 0.5
    z = torch.tensor([[1.0], [3.0]])  # mean 2, biased variance 1
    torch.testing.assert_close(norm(z, (0, 0, 2)), torch.tensor([[-6.0 + 1.5], [6.0 + 1.5]]))
    assert norm.mean.tolist() == [[0.0], [2.0]]  # scenario 0 is untouched; the first update forgets the start
    torch.testing.assert_close(norm.variance, torch.tensor([[1.0], [1.0]]))
    norm(torch.tensor([[4.0], [8.0]]), (0, 0, 2))  # from the second on half-way
    assert norm.mean[1].tolist() == [4.0]
    torch.testing.assert_close(norm.variance[1], torch.tensor([6.5]))  # that of 1, 3, 4 and 8 together
    norm.eval()
    expected = 6.0 * (9.0 - 4.0) / 6.5**0.5 + 1.5
    torch.testing.assert_close(norm(torch.tensor([[9.0]]), (0, 0, 1)), torch.tensor([[expected]]))


def test_star_normalises_each_slice_by_itself_while_training_forward_and_backward() -> None:
    torch.manual_seed(0)
    norm = PartitionedNorm(4, scenarios=2).double()
    x = torch.randn(9, 4, dtype=torch.float64, requires_grad=True)
    offsets = (0, 6, 9)
    found = norm(x, offsets)
    (found**3).sum().backward()
    gradient = x.grad
    assert gradient is not None
    x.grad = None
    expected = torch.cat([functional.batch_norm(part, None, None, training=True) for part in (x[:6], x[6:])])
    (expected**3).sum().backward()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradient, x.grad)


def test_after_a_few_steps_evaluation_agrees_with_training() -> None:
    torch.manual_seed(0)
    norm = PartitionedNorm(8, scenarios=1)
    for _ in range(5):
        norm(0.01 * torch.randn(500, 8) + 0.3, (0, 500))  # as small as fresh embeddings
    x = 0.01 * torch.randn(500, 8) + 0.3
    trained, evaluated = norm(x, (0, 500)), norm.eval()(x, (0, 500))
    assert float((trained - evaluated).detach().abs().mean()) < 0.1


def test_partitioned_norm_of_a_single_row_falls_back_to_kept_statistics() -> None:
    norm = PartitionedNorm(2, scenarios=1, epsilon=0.0)
    row = torch.tensor([[3.0, -1.0]])
    assert torch.equal(norm.train()(row, (0, 1)), row)
    assert norm.mean.tolist() == [[0.0, 0.0]]


def test_star_adds_the_auxiliary_network_to_the_star_network() -> None:
    model = STAR(STARConfig(hidden=(2,), auxiliary_hidden=(2,), scenario_dim=1, partitioned_norm=False), 2, 2)
    x = torch.tensor([[1.0, -1.0]])
    first, last = model.layers
    h = functional.relu(functional.linear(x, first.weight * first.scenario_weight[1], first.bias))  # type: ignore[operator,arg-type,index]
    star = functional.linear(h, last.weight * last.scenario_weight[1], last.bias)  # type: ignore[operator,arg-type,index]
    auxiliary = model.auxiliary(torch.cat([model.scenario.weight[1:2], x], 1))
    torch.testing.assert_close(model(x, (0, 0, 1)), (star + auxiliary).view(-1))


def test_all_scenarios_of_star_start_as_the_shared_centre() -> None:
    model = STAR(STARConfig(partitioned_norm=False), 4, 3)
    x = torch.randn(1, 4)
    with torch.no_grad():
        model.scenario.weight.zero_()
        scores = [model(x, offsets).item() for offsets in ((0, 1, 1, 1), (0, 0, 1, 1), (0, 0, 0, 1))]
    assert scores[0] == scores[1] == scores[2]


def test_shared_bottom_by_hand() -> None:
    model = SharedBottom(SharedBottomConfig(hidden=(1, 1)), 2, 2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.bottom[0].weight.copy_(torch.tensor([[1.0, 2.0]]))  # type: ignore[operator]
        for d, factor in enumerate((3.0, -4.0)):
            tower = model.towers[d]
            tower[0].weight.fill_(1.0)  # type: ignore[index]
            tower[2].weight.fill_(factor)  # type: ignore[index]
    x = torch.tensor([[1.0, 1.0], [2.0, 0.5]])
    assert model(x, (0, 1, 2)).tolist() == [9.0, -12.0]
