"""Which engine runs the language model: by name, or the fastest that is installed here."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from llm4msr.knowledge.engines.base import Engine
from llm4msr.knowledge.engines.local import DType

EngineName = Literal["auto", "transformers", "openvino"]


def choose(name: EngineName) -> tuple[Literal["transformers", "openvino"], str]:
    """The engine to take and, for `auto`, why."""
    if name != "auto":
        return name, ""
    import torch

    if torch.cuda.is_available():
        return "transformers", "there is a GPU"
    if importlib.util.find_spec("openvino") is not None:
        return "openvino", "there is no GPU, and OpenVINO is the fastest on a CPU"
    return "transformers", "there is no GPU, and OpenVINO is not installed (pip install 'llm4msr[openvino]')"


def make_engine(
    name: EngineName, model: Path | None, dtype: DType, report: Callable[[str], None] = lambda message: None
) -> Engine:
    """The engine with the model of a folder, or with the embedded one. Raises `InputError` where it cannot be made."""
    from llm4msr.knowledge.engines.embedded import embedded_model

    chosen, why = choose(name)
    if why:
        report(f"engine: {chosen}, since {why}")
    folder = model if model is not None else embedded_model(report)
    if chosen == "openvino":
        from llm4msr.knowledge.engines.openvino import OpenVINOEngine

        return OpenVINOEngine(folder, dtype=dtype)
    from llm4msr.knowledge.engines.transformers import TransformersEngine

    return TransformersEngine(folder, dtype=dtype)
