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
    assert layer(0, x).item() == 2 * 1 + 3 * 2 + 0.5
    assert layer(1, x).item() == (2 * 10) * 1 + (3 * -1) * 2 + 0.5 + 4.0


def test_partitioned_norm_uses_the_statistics_of_its_scenario() -> None:
    norm = PartitionedNorm(1, scenarios=2, momentum=0.5, epsilon=0.0)
    with torch.no_grad():
        norm.scale.fill_(2.0)
        norm.scenario_scale[1] = 3.0
        norm.shift.fill_(1.0)
        norm.scenario_shift[1] = 0.5
    z = torch.tensor([[1.0], [3.0]])  # mean 2, biased variance 1
    torch.testing.assert_close(norm(1, z), torch.tensor([[-6.0 + 1.5], [6.0 + 1.5]]))
    assert norm.mean.tolist() == [[0.0], [1.0]]  # scenario 0 is untouched, scenario 1 moved half-way
    assert norm.variance.tolist() == [[1.0], [1.0]]
    norm.eval()
    torch.testing.assert_close(norm(1, torch.tensor([[2.0]])), torch.tensor([[6.0 * (2.0 - 1.0) + 1.5]]))


def test_partitioned_norm_of_a_single_row_falls_back_to_kept_statistics() -> None:
    norm = PartitionedNorm(2, scenarios=1, epsilon=0.0)
    row = torch.tensor([[3.0, -1.0]])
    assert torch.equal(norm.train()(0, row), row)
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
