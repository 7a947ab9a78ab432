from __future__ import annotations

import torch

from llm4msr.models.batch import EmbeddingShape
from llm4msr.models.enhancers.epnet import EPNet, EPNetConfig
from tests.models.test_meta import SumOfInputs
from tests.models.zoo import WIDTHS, make_rows


def test_the_gate_is_twice_a_sigmoid_of_scenario_and_embedding() -> None:
    torch.manual_seed(0)
    enhancer = EPNet(EPNetConfig(scenario_dim=2, hidden=3), EmbeddingShape(2, 2), 3, WIDTHS)
    e, batch = torch.randn(3, 4), make_rows([1, 0, 2])
    rows = []
    for row, d in zip(e, [0, 2, 2], strict=True):
        gate = 2 * torch.sigmoid(enhancer.gate.gate(torch.cat([enhancer.gate.scenario.weight[d], row])))
        rows.append((gate * row).sum())
    torch.testing.assert_close(enhancer(e, batch, SumOfInputs())[0], torch.stack(rows))


def test_the_gate_does_not_train_the_embedding_that_it_reads() -> None:
    enhancer = EPNet(EPNetConfig(scenario_dim=2, hidden=3), EmbeddingShape(2, 2), 3, WIDTHS)
    e, batch = torch.randn(2, 4, requires_grad=True), make_rows([2, 0, 0])
    enhancer(e, batch, SumOfInputs())[0].sum().backward()
    context = torch.cat([enhancer.gate.scenario.weight[:1].expand(2, -1), e.detach()], 1)
    assert e.grad is not None
    torch.testing.assert_close(e.grad, 2 * torch.sigmoid(enhancer.gate.gate(context)))


def test_a_gate_of_zero_weights_leaves_the_embedding_as_it_is() -> None:
    enhancer = EPNet(EPNetConfig(), EmbeddingShape(2, 2), 3, WIDTHS)
    with torch.no_grad():
        for parameter in enhancer.gate.parameters():
            parameter.zero_()
    e = torch.randn(3, 4)
    torch.testing.assert_close(enhancer(e, make_rows([1, 1, 1]), SumOfInputs())[0], e.sum(1))
