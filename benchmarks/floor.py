"""The floor of a training step: its matrix products and look-ups alone, back to back.

A step is run once while every product and look-up is written down, with its shapes; they are then run again on tensors
that are there already. No rearrangement of the rest of the step can be faster than that with the same libraries.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.contender import settled

_PRODUCTS = {"aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm"}
_LOOK_UPS = {"aten::index_select", "aten::index_add_", "aten::embedding", "aten::embedding_dense_backward"}


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        name = func._schema.name
        if name in _PRODUCTS or (name in _LOOK_UPS and args[0].dim() == 2):
            self.calls.append((func, args, kwargs or {}))
        return func(*args, **(kwargs or {}))


def floor_of(step: Callable[[], object]) -> Callable[[], float]:
    """Records `step`; the result runs its products and look-ups and says how many seconds they took."""
    with _Recorder() as recorder:
        step()
    calls = [(func, tuple(_copied(a) for a in args), kwargs) for func, args, kwargs in recorder.calls]

    def run() -> float:
        with torch.no_grad():
            began = settled()
            for func, args, kwargs in calls:
                func(*args, **kwargs)
            return settled() - began

    return run


def _copied(value: Any) -> Any:
    """A tensor with values of its own and the same strides, so that what the step did to it does not matter."""
    if not isinstance(value, torch.Tensor):
        return value
    return value.detach().clone(memory_format=torch.preserve_format)
