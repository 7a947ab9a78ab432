"""OMoE, MMoE, PLE and AITM by hand, each against its publication's formula written out row by row."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from llm4msr.models.backbones.aitm import AITM, AITMConfig, Transfer
from llm4msr.models.backbones.moe import MixtureConfig, MMoE, OMoE
from llm4msr.models.backbones.ple import PLE, PLEConfig
from llm4msr.models.experts import Experts, mix


def _expert(experts: Experts, k: int, x: Tensor) -> Tensor:
    for weight, bias in zip(experts.weight, experts.bias, strict=True):
        x = functional.relu(x @ weight[k] + bias[k, 0])
    return x


def test_experts_equal_each_network_alone() -> None:
    torch.manual_seed(0)
    experts, x = Experts(3, (4, 5, 2)), torch.randn(6, 4)
    torch.testing.assert_close(experts(x), torch.stack([_expert(experts, k, x) for k in range(3)]))
    each = torch.randn(3, 6, 4)
    torch.testing.assert_close(experts(each), torch.stack([_expert(experts, k, each[k]) for k in range(3)]))


def test_a_gate_mixes_experts_by_softmax() -> None:
    experts = torch.tensor([[[1.0, 10.0]], [[3.0, 20.0]]])
    scores = torch.tensor([[0.0, math.log(3.0)]])
    torch.testing.assert_close(mix(experts, scores), torch.tensor([[0.25 * 1 + 0.75 * 3, 0.25 * 10 + 0.75 * 20]]))


def test_mmoe_has_a_gate_for_each_scenario_and_omoe_one_for_all() -> None:
    torch.manual_seed(0)
    config = MixtureConfig(experts=3, hidden=(5, 4))
    x = torch.randn(4, 6)
    for model, gate in ((MMoE(config, 6, 2), 1), (OMoE(config, 6, 2), 0)):
        rows = []
        for row in x:
            weights = functional.softmax(model.gates[gate](row), dim=0)
            mixed = sum(weights[k] * _expert(model.experts, k, row) for k in range(3))
            rows.append(model.towers[1](mixed)[0])
        torch.testing.assert_close(model(x, (0, 0, 4)), torch.stack(rows))
    assert len(MMoE(config, 6, 2).gates) == 2
    assert len(OMoE(config, 6, 2).gates) == 1


def test_ple_extracts_level_by_level_and_its_shared_gate_sees_all_experts() -> None:
    torch.manual_seed(0)
    config = PLEConfig(levels=2, shared_experts=1, specific_experts=2, hidden=(5, 4))
    model = PLE(config, 6, 2)
    x = torch.randn(3, 6)
    first, second = model.levels
    logits = []
    for row in x:
        specific = [torch.stack([_expert(e, k, row) for k in range(2)]) for e in first.specific]  # type: ignore[union-attr]
        shared = torch.stack([_expert(first.shared, 0, row)])  # type: ignore[arg-type]
        own = functional.softmax(first.gates[1](row), 0) @ torch.cat([specific[1], shared])  # type: ignore[index,operator]
        everything = torch.cat([specific[0], specific[1], shared])
        assert everything.shape[0] == 2 * 2 + 1
        common = functional.softmax(first.shared_gate(row), 0) @ everything  # type: ignore[operator]
        seen = torch.stack([_expert(second.specific[1], k, own) for k in range(2)])  # type: ignore[index,arg-type]
        seen = torch.cat([seen, torch.stack([_expert(second.shared, 0, common)])])  # type: ignore[arg-type]
        mixed = functional.softmax(second.gates[1](own), 0) @ seen  # type: ignore[index,operator]
        logits.append(model.towers[1](mixed)[0])
    torch.testing.assert_close(model(x, (0, 0, 3)), torch.stack(logits))


def test_ple_counts_shared_and_specific_experts_by_their_own_numbers() -> None:
    model = PLE(PLEConfig(levels=1, shared_experts=3, specific_experts=2, hidden=(5, 4)), 6, 4)
    (level,) = model.levels
    assert level.shared.count == 3  # type: ignore[union-attr]
    assert [experts.count for experts in level.specific] == [2] * 4  # type: ignore[union-attr]
    assert level.shared_gate is None


def test_the_transfer_attends_to_what_is_passed_on_and_to_its_own() -> None:
    transfer = Transfer(2)
    with torch.no_grad():
        for linear in (transfer.key, transfer.query, transfer.value):
            linear.weight.copy_(torch.eye(2))
            linear.bias.zero_()
        transfer.value.weight.mul_(10)
    p, q = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    scores = torch.tensor([1.0, 4.0]) / math.sqrt(2)
    weights = functional.softmax(scores, dim=0)
    torch.testing.assert_close(transfer(p, q), 10 * (weights[0] * p + weights[1] * q))


def test_aitm_passes_from_tower_to_tower_in_the_declared_order() -> None:
    torch.manual_seed(0)
    model = AITM(AITMConfig(hidden=(5, 4)), 6, 3)
    x = torch.randn(3, 6)
    z = model.towers[0](x)
    expected = [model.heads[0](z)[0, 0]]
    for t in (1, 2):
        z = model.transfers[t - 1](model.passes[t - 1](z), model.towers[t](x))
        expected.append(model.heads[t](z)[t, 0])
    torch.testing.assert_close(model(x, (0, 1, 2, 3)), torch.stack(expected))


def test_a_row_of_aitm_needs_no_later_tower() -> None:
    model = AITM(AITMConfig(hidden=(3,)), 2, 3)
    model(torch.randn(2, 2), (0, 1, 2, 2)).sum().backward()
    assert all(p.grad is None for p in [*model.towers[2].parameters(), *model.transfers[1].parameters()])
