"""The engines that run a model on this machine, by name, for tests that hold for all of them."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any, Literal

import pytest

from llm4msr.knowledge.engines.local import LocalEngine

Kind = Literal["transformers", "openvino"]
_NO_OPENVINO = pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="OpenVINO is not installed")
KINDS = ["transformers", pytest.param("openvino", marks=_NO_OPENVINO)]


def make_local(kind: Kind, folder: Path, **settings: Any) -> LocalEngine:
    """The engine of that name, in float32 on the CPU."""
    if kind == "openvino":
        from llm4msr.knowledge.engines.openvino import OpenVINOEngine

        return OpenVINOEngine(folder, dtype="float32", threads=1, **settings)
    from llm4msr.knowledge.engines.transformers import TransformersEngine

    return TransformersEngine(folder, dtype="float32", device="cpu", **settings)
