"""Makes the engine that runs the language model: one by name, or the fastest that is installed here."""

from __future__ import annotations

import importlib.util
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, cast, get_args

from llm4msr.cores import usable_cores
from llm4msr.errors import InputError
from llm4msr.knowledge.engines import DType, EngineName
from llm4msr.knowledge.engines.base import Engine


def fastest() -> tuple[Literal["transformers", "openvino", "vllm"], str]:
    """The engine to use for a causal LM on this machine, and the reason."""
    import torch

    if torch.cuda.is_available():
        if importlib.util.find_spec("vllm") is not None:
            return "vllm", "there is a GPU, and vLLM is installed"
        return "transformers", "there is a GPU, and vLLM is not installed (pip install 'llm4msr[vllm]')"
    if importlib.util.find_spec("openvino") is not None:
        if usable_cores() == 1:
            return "transformers", "there is no GPU, and OpenVINO does not run on a single core"
        return "openvino", "there is no GPU, and OpenVINO is the fastest on a CPU"
    return "transformers", "there is no GPU, and OpenVINO is not installed (pip install 'llm4msr[openvino]')"


def settings_of(identity: Mapping[str, Any], command: str = "") -> tuple[EngineName, DType, int | None]:
    """The name, number format and layers of the engine with this identity, to make it again.

    Raises `InputError` if `command`, the program that answers prompts, is missing or not wanted.
    """
    name = cast(EngineName, identity["engine"] if identity["engine"] in get_args(EngineName) else "command")
    if name == "command" and not command:
        raise InputError("the knowledge was made by a program: give it again as --command")
    if name != "command" and command:
        raise InputError(f"--command {command}: the knowledge was made by the engine {name}, not by a program")
    if name == "command":  # the rest of the identity is the program's own
        return name, "bfloat16", None
    layers = identity.get("layers")
    return name, cast(DType, identity.get("dtype", "bfloat16")), None if layers is None else int(layers)


def make_engine(
    name: EngineName,
    model: Path | None,
    dtype: DType,
    report: Callable[[str], None] = lambda message: None,
    *,
    command: str = "",
    layers: int | None = None,
) -> Engine:
    """The engine for the model in a folder or, without a folder, for the embedded model.

    `command` is the program for the engine `command`. `layers` is how many of the model's layers are run; by default
    all.

    Raises `InputError` if it cannot be made.
    """
    if (name == "command") != bool(command):
        raise InputError("--engine command and --command go together: the program that answers prompts")
    if name == "auto":
        name, why = fastest()
        report(f"engine: {name}, since {why}")
    if layers is not None and name not in ("openvino", "transformers"):
        raise InputError(f"--layers goes with the engines openvino and transformers, not with {name}")
    if name == "command":
        if model is not None:
            raise InputError(f"--model {model}: the program of --command has its own model; leave --model out")
        from llm4msr.knowledge.engines.command import CommandEngine

        return CommandEngine(shlex.split(command))
    if name == "encoder":
        from llm4msr.knowledge.engines.encoder import EncoderEngine

        if model is None:
            raise InputError("--engine encoder needs --model: the folder of a text-embedding model")
        return EncoderEngine(model)
    from llm4msr.knowledge.engines.embedded import embedded_model

    folder = model if model is not None else embedded_model(report)
    if name == "openvino":
        from llm4msr.knowledge.engines.openvino import OpenVINOEngine

        return OpenVINOEngine(folder, dtype=dtype, layers=layers)
    if name == "vllm":
        from llm4msr.knowledge.engines.vllm import VLLMEngine

        return VLLMEngine(folder, dtype=dtype)
    from llm4msr.knowledge.engines.transformers import TransformersEngine

    return TransformersEngine(folder, dtype=dtype, layers=layers)
