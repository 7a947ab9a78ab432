"""A researcher's own backbone, in a file of her own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from llm4msr.errors import InputError
from llm4msr.models.own import VARIABLE, load_models
from llm4msr.models.registry import BACKBONES

DOCS = Path(__file__).parents[2] / "docs" / "train.md"


def test_the_documented_backbone_and_enhancer_are_found_by_name_and_run(tmp_path: Path) -> None:
    examples = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.S)
    (tmp_path / "my_models.py").write_text("\n".join(examples))
    script = (
        "import torch; from llm4msr.models.model import ModelConfig, PartChoice, build_model\n"
        "from tests.models.zoo import LAYOUT, WIDTHS, make_rows\n"
        "backbone, enhancer = PartChoice(name='one_tower', settings={'hidden': 8}), PartChoice(name='item_bias')\n"
        "model = build_model(ModelConfig(backbone=backbone, enhancer=enhancer), LAYOUT, 3, WIDTHS, 0)\n"
        "print(model(make_rows([1, 2, 0]))[0].shape)\n"
    )
    environment = {**os.environ, VARIABLE: "my_models", "PYTHONPATH": f"{tmp_path}{os.pathsep}{DOCS.parents[1]}"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == "torch.Size([3])\n", done.stderr


def test_a_module_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "json, no_such_models")
    with pytest.raises(InputError, match="LLM4MSR_MODELS: the module 'no_such_models' cannot be imported"):
        load_models()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def (", "cannot be imported (SyntaxError"),
        ("1 / 0", "cannot be imported (ZeroDivisionError"),
        (
            "from llm4msr.models.registry import BACKBONES, ModelPartConfig\n"
            "@BACKBONES.register('star', ModelPartConfig)\nclass Star: pass\n",
            "there is a backbone 'star' already (llm4msr.models.backbones.star.STAR); give own_star.Star another name",
        ),
    ],
)
def test_a_module_that_fails_is_named_with_its_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, message: str
) -> None:
    (tmp_path / "own_star.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv(VARIABLE, "own_star")
    monkeypatch.delitem(sys.modules, "own_star", raising=False)
    with pytest.raises(InputError, match="LLM4MSR_MODELS: the module .own_star." + ".*" + re.escape(message)):
        BACKBONES.get("star")
