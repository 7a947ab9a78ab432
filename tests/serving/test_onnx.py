"""The exported graph gives PyTorch's probabilities; `write_onnx` compares them and refuses otherwise."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llm4msr.errors import InputError
from llm4msr.serving import onnx
from tests.models.zoo import BACKBONES, LAYOUT, SCENARIOS, WIDTHS, make_model

pytest.importorskip("onnxruntime")
FAST = [("star", "llm4msr"), ("shared_bottom", "llm4msr-paper"), ("shared_bottom", "llm4msr-light")]
ENHANCERS = ["none", "dynamic-network-full", "epnet", "knowledge-added", "llm4msr-paper", "llm4msr-full"]
SLOW = [*((b, "llm4msr") for b in BACKBONES if b != "star"), *(("star", e) for e in ENHANCERS)]
PAIRS = [*FAST, *(pytest.param(*pair, marks=pytest.mark.slow) for pair in SLOW)]


@pytest.mark.parametrize(("backbone", "enhancer"), PAIRS)
def test_a_model_is_written_and_agrees(tmp_path: Path, backbone: str, enhancer: str) -> None:
    model = make_model(backbone, enhancer).freeze()
    onnx.write_onnx(model, WIDTHS, LAYOUT, SCENARIOS, tmp_path / "onnx")
    assert (tmp_path / "onnx" / onnx.FILE).stat().st_size > 1000
    assert set(json.loads((tmp_path / "onnx" / "inputs.json").read_text())) >= {"scenario", "categorical"}


def test_a_graph_that_does_not_agree_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx, "TOLERANCE", -1.0)
    with pytest.raises(InputError, match="from PyTorch"):
        onnx.write_onnx(make_model("shared_bottom", "none").freeze(), WIDTHS, LAYOUT, SCENARIOS, tmp_path / "onnx")
