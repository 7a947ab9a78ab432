from __future__ import annotations

import torch

from llm4msr.models.batch import EmbeddingShape
from llm4msr.models.enhancers.dynamic_network import DynamicNetwork, DynamicNetworkConfig
from tests.models.test_meta import SumOfInputs
from tests.models.zoo import WIDTHS, make_rows


def make(config: DynamicNetworkConfig) -> DynamicNetwork:
    torch.manual_seed(0)
    return DynamicNetwork(config, EmbeddingShape(fields=3, dim=2), 3, WIDTHS)


def test_attention_and_tower_by_a_plain_loop_over_rows_and_fields() -> None:
    enhancer = make(DynamicNetworkConfig(scenario_dim=4, attention_hidden=3, hidden=5, weights="full"))
    e, batch = torch.randn(4, 6), make_rows([2, 0, 2])
    expected = []
    for row, d in zip(e, [0, 0, 2, 2], strict=True):
        s = enhancer.scenario.weight[d]

        def layer(h: torch.Tensor, generated: torch.Tensor, inside: int, outside: int) -> torch.Tensor:
            weight, bias = generated[: inside * outside].view(inside, outside), generated[inside * outside :]
            return h @ weight + bias

        scores = []
        for f in range(3):
            token = row[2 * f : 2 * f + 2] + enhancer.field[f]
            hidden = torch.relu(layer(token, enhancer.attention.generators[0](s), 2, 3))
            scores.append(layer(hidden, enhancer.attention.generators[1](s), 3, 1))
        share = 3 * torch.softmax(torch.cat(scores), 0)
        attended = torch.cat([share[f] * row[2 * f : 2 * f + 2] for f in range(3)])
        hidden = torch.relu(layer(attended, enhancer.tower.generators[0](s), 6, 5))
        expected.append(attended.sum() + layer(hidden, enhancer.tower.generators[1](s), 5, 1)[0])
    torch.testing.assert_close(enhancer(e, batch, SumOfInputs())[0], torch.stack(expected))


def test_low_rank_weights_by_a_plain_loop() -> None:
    enhancer = make(DynamicNetworkConfig(scenario_dim=4, layers=1, rank=2))
    x, d = torch.randn(3, 6), torch.tensor([0, 1, 1])
    out = enhancer.tower(x, enhancer.tower.generate(enhancer.scenario.weight), d)
    for row, scenario, found in zip(x, d, out, strict=True):
        generated = enhancer.tower.generators[0](enhancer.scenario.weight[scenario])
        core, shift = torch.eye(2) + generated[:4].view(2, 2), generated[4:]
        left, right, bias = enhancer.tower.left[0], enhancer.tower.right[0], enhancer.tower.bias[0]
        torch.testing.assert_close(found, (row @ left @ core + shift) @ right + bias)


def test_equal_scores_leave_the_embedding_as_it_is() -> None:
    enhancer = make(DynamicNetworkConfig(layers=1))
    with torch.no_grad():
        for part in (*enhancer.attention.right, *enhancer.tower.right):
            part.zero_()
    e = torch.randn(3, 6)
    torch.testing.assert_close(enhancer(e, make_rows([1, 1, 1]), SumOfInputs())[0], e.sum(1))
