"""The model as ONNX, for other servers, checked against PyTorch.

The inputs are the content of a `Batch`: `scenario` `(B,)`; `categorical` `(B, Fc)`, `multi` `(B, sum of lengths)` and
`numeric` `(B, Fn)` if the data has such fields; `users` `(B, d)` and `item` `(B, d)` if the model reads such knowledge.
The output is `probability` `(B,)`. Every scenario's tower runs on every row; each row keeps its own scenario's result.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import warnings
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from llm4msr.errors import InputError
from llm4msr.models.batch import Batch, FieldLayout, KnowledgeWidths, UserStates
from llm4msr.models.model import MultiScenarioModel

TOLERANCE = 1e-5
FILE = "model.onnx"


class _Rows(nn.Module):
    """The model as a function whose arguments are all tensors."""

    def __init__(self, model: MultiScenarioModel, scenarios: int) -> None:
        super().__init__()
        self._model, self._scenarios = model, scenarios

    def forward(
        self,
        scenario: Tensor,
        categorical: Tensor | None = None,
        multi: Tensor | None = None,
        numeric: Tensor | None = None,
        users: Tensor | None = None,
        item: Tensor | None = None,
    ) -> Tensor:
        """Probabilities `(B,)`."""
        count = scenario.shape[0]
        logits = []
        for d in range(self._scenarios):
            batch = Batch(
                categorical=scenario.new_zeros((count, 0)) if categorical is None else categorical,
                multi=scenario.new_zeros((count, 0)) if multi is None else multi,
                numeric=torch.zeros((count, 0)) if numeric is None else numeric,
                offsets=(*[0] * (d + 1), *[count] * (self._scenarios - d)),
                label=torch.zeros(0),
                rows=scenario,
                users=None if users is None else UserStates(users, None),
                item=item,
            )
            logits.append(self._model(batch)[0])
        return torch.sigmoid(torch.stack(logits, 1).gather(1, scenario[:, None])[:, 0])


def check_packages() -> None:
    """Raise `InputError` unless all packages that write and check ONNX are installed."""
    for name in ("onnx", "onnxscript", "onnxruntime"):
        if importlib.util.find_spec(name) is None:
            raise InputError("ONNX needs further packages; install them with: pip install 'llm4msr[onnx]'")


def write_onnx(
    model: MultiScenarioModel, widths: KnowledgeWidths, layout: FieldLayout, scenarios: int, folder: Path
) -> None:
    """Write `model.onnx` and `inputs.json` into `folder`.

    Raises `InputError` if onnxruntime's probabilities differ from PyTorch's by more than 1e-5.
    """
    import onnxruntime

    inputs = _example(layout, widths, scenarios, 7)
    rows = torch.export.Dim("rows", min=2, max=1 << 20)
    folder.mkdir(parents=True)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(
            _Rows(model, scenarios),
            (),
            kwargs=inputs,
            dynamo=True,
            input_names=list(inputs),
            output_names=["probability"],
            dynamic_shapes={name: {0: rows} for name in inputs},
            verbose=False,
        )
        assert program is not None
        program.save(folder / FILE, external_data=True)
    session = onnxruntime.InferenceSession(folder / FILE, providers=["CPUExecutionProvider"])
    asked = {i.name for i in session.get_inputs()}
    for count in (1, 2, 100):
        given = _example(layout, widths, scenarios, count)
        with torch.inference_mode():
            expected = _Rows(model, scenarios)(**given).numpy()
        (found,) = session.run(None, {name: value.numpy() for name, value in given.items() if name in asked})
        if not np.abs(found - expected).max() <= TOLERANCE:
            far = float(np.abs(found - expected).max())
            raise InputError(f"{folder / FILE}: ONNX gives probabilities that are {far:.2g} from PyTorch's")
    record = {name: {"type": str(value.dtype), "width": _width(value.shape[1:])} for name, value in inputs.items()}
    (folder / "inputs.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _width(shape: Iterable[int]) -> int | None:
    return next(iter(shape), None)


def _example(layout: FieldLayout, widths: KnowledgeWidths, scenarios: int, count: int) -> dict[str, Tensor]:
    """Random inputs with the model's shapes and ranges of ids."""
    random = np.random.default_rng(count)
    found = {"scenario": torch.from_numpy(random.integers(0, scenarios, count))}
    if layout.categorical:
        columns = [random.integers(0, size, count) for size in layout.categorical]
        found["categorical"] = torch.from_numpy(np.stack(columns, 1))
    if layout.multi:
        columns = [random.integers(-1, size, (count, most)) for size, most in layout.multi]
        found["multi"] = torch.from_numpy(np.concatenate(columns, 1))
    if layout.numeric:
        found["numeric"] = torch.from_numpy(random.standard_normal((count, layout.numeric)).astype(np.float32))
    if widths.users:
        found["users"] = torch.from_numpy(random.standard_normal((count, sum(widths.users))).astype(np.float32))
    if widths.item:
        found["item"] = torch.from_numpy(random.standard_normal((count, widths.item)).astype(np.float32))
    return found
