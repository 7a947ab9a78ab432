"""What is compiled: every shape, of every model of a process."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch._dynamo.exc import TorchDynamoException

from llm4msr.errors import InputError
from llm4msr.models.batch import PaddedOffsets
from llm4msr.training.compiled import compiled, compiling
from tests.models.zoo import make_model, make_rows


def test_every_shape_of_every_model_is_compiled() -> None:
    for backbone in ("shared_bottom", "mmoe"):
        graphs: list[object] = []

        def backend(graph: Any, _: Any, graphs: list[object] = graphs) -> Any:
            graphs.append(graph)
            return graph.forward

        model = make_model(backbone, "none").train()
        made = compiled(model, backend)
        with compiling(10):
            for number in range(10):
                sizes = [8 + number, 4, 4]
                batch = make_rows(sizes)
                batch = replace(batch, offsets=PaddedOffsets.of(batch.offsets, torch.tensor(sizes)))
                made(batch)
        assert len(graphs) >= 10


def test_a_model_that_cannot_be_compiled_is_named() -> None:
    def backend(*_: Any) -> Any:
        raise TorchDynamoException("no compiler is installed")

    made = compiled(make_model("shared_bottom", "none"), backend)
    with pytest.raises(InputError, match="no compiler is installed"), compiling(1):
        made(make_rows([3, 2, 1]))
