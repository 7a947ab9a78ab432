from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from llm4msr.models.backbones.adasparse import AdaSparse, AdaSparseConfig
from llm4msr.models.backbones.apg import APG, APGConfig
from llm4msr.models.backbones.pepnet import PEPNet, PEPNetConfig, PPNet, PPNetConfig
from llm4msr.models.batch import EmbeddingShape
from llm4msr.models.enhancers.epnet import EPNet, EPNetConfig
from tests.models.zoo import WIDTHS, make_rows

OFFSETS = (0, 2, 2, 3)


def test_ppnet_scales_the_hidden_units_of_the_scenarios_tower() -> None:
    torch.manual_seed(0)
    backbone = PPNet(PPNetConfig(hidden=(4, 3), gate_hidden=2), 5, 3)
    x = torch.randn(3, 5)
    towers: Any = backbone.towers
    expected = []
    for row, d in zip(x, [0, 0, 2], strict=True):
        layers, gates = towers[d].layers, towers[d].gates
        h = 2 * torch.sigmoid(gates[0](row)) * torch.relu(layers[0](row))
        h = 2 * torch.sigmoid(gates[1](row)) * torch.relu(layers[1](h))
        expected.append(layers[2](h)[0])
    torch.testing.assert_close(backbone(x, OFFSETS), torch.stack(expected))


def test_ppnets_gates_do_not_train_what_they_read() -> None:
    torch.manual_seed(0)
    backbone = PPNet(PPNetConfig(hidden=(4,), gate_hidden=2), 5, 1)
    towers: Any = backbone.towers
    with torch.no_grad():
        for parameter in towers[0].layers[0].parameters():
            parameter.zero_()
    x = torch.randn(2, 5, requires_grad=True)
    backbone(x, (0, 2)).sum().backward()
    assert x.grad is not None
    assert not x.grad.any()


def test_pepnet_is_ppnet_in_epnet() -> None:
    torch.manual_seed(0)
    whole = PEPNet(PEPNetConfig(hidden=(4, 3), gate_hidden=2, scenario_dim=2), 6, 3)
    inner = PPNet(PPNetConfig(hidden=(4, 3), gate_hidden=2), 6, 3)
    inner.load_state_dict({k: v for k, v in whole.state_dict().items() if k.startswith("towers")})
    outer = EPNet(EPNetConfig(scenario_dim=2, hidden=2), EmbeddingShape(3, 2), 3, WIDTHS)
    outer.gate.load_state_dict(whole.gate.state_dict())
    e, batch = torch.randn(3, 6), make_rows([2, 0, 1])
    assert torch.equal(whole(e, batch.offsets), outer(e, batch, inner)[0])


def test_apg_by_a_plain_loop() -> None:
    torch.manual_seed(0)
    backbone = APG(APGConfig(hidden=(4,), rank=2, scenario_dim=3), 5, 3)
    x = torch.randn(3, 5)
    expected = []
    for row, d in zip(x, [0, 0, 2], strict=True):
        h = row
        for place in range(2):
            generated = backbone.layers.generators[place](backbone.scenario.weight[d])
            core, shift = torch.eye(2) + generated[:4].view(2, 2), generated[4:]
            h = (h @ backbone.layers.left[place] @ core + shift) @ backbone.layers.right[place]
            h = h + backbone.layers.bias[place]
            h = torch.relu(h) if place == 0 else h
        expected.append(h[0])
    torch.testing.assert_close(backbone(x, OFFSETS), torch.stack(expected))


def test_adasparse_scales_and_prunes_units_by_scenario() -> None:
    torch.manual_seed(0)
    backbone = AdaSparse(AdaSparseConfig(hidden=(4,), scenario_dim=3, slope=6.0, threshold=0.9), 5, 3)
    x = torch.randn(3, 5)
    layers: Any = backbone.layers
    pruners: Any = backbone.pruners
    expected, pruned = [], 0
    for row, d in zip(x, [0, 0, 2], strict=True):
        h = row
        for place in range(2):
            h = torch.relu(h) if place else h
            v = 2 / (1 + torch.exp(-6 * pruners[place](torch.cat([backbone.scenario.weight[d], h]))))
            pruned += int((v <= 0.9).sum())
            h = layers[place](torch.where(v > 0.9, v, torch.zeros_like(v)) * h)
        expected.append(h[0])
    assert 0 < pruned < 3 * 9
    torch.testing.assert_close(backbone(x, OFFSETS), torch.stack(expected))


def test_adasparse_keeps_a_unit_above_the_threshold_alone() -> None:
    backbone = AdaSparse(AdaSparseConfig(hidden=(2,), scale=2.0, threshold=1.0), 3, 1)
    assert backbone.factors(torch.tensor([-1.0, 0.0, 1.0])).tolist() == pytest.approx([0, 0, 2 / (1 + np.exp(-1))])
