"""Compiles a model with `torch.compile`, once for each shape of its batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch

from llm4msr.errors import InputError
from llm4msr.models.model import MultiScenarioModel


def compiled(model: MultiScenarioModel, backend: str | Callable[..., Any] = "inductor") -> MultiScenarioModel:
    """The model, to be compiled when it is first called with a shape; call it within `compiling`.

    PyTorch forgets what it compiled before: it counts the shapes of all models of a process together, and stops
    compiling after some of them.
    """
    torch.compiler.reset()
    return cast(MultiScenarioModel, torch.compile(model, dynamic=False, backend=backend))


@contextmanager
def compiling(shapes: int) -> Iterator[None]:
    """Compile for up to so many shapes. Raises `InputError` if the model cannot be compiled."""
    from torch._dynamo import config  # importing it with the module would cost every command a second
    from torch._dynamo.exc import TorchDynamoException

    try:
        with config.patch(recompile_limit=max(shapes, config.recompile_limit)):
            yield
    except TorchDynamoException as error:
        raise InputError(f"train.compile: PyTorch cannot compile this model here; leave it out: {error}") from error
