"""The floor of a training step: its matrix products and look-ups alone, back to back.

A step runs once, and every product and look-up is recorded with its tensors. These operations alone then run again on
copies of the tensors. With the same libraries, no rearrangement of the rest of the step can be faster than that.
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
    """Record `step`; the returned function runs its products and look-ups again and returns the seconds they took."""
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
    """A copy of a tensor with the same strides, independent of the step's own tensor; other values as they are."""
    if not isinstance(value, torch.Tensor):
        return value
    return value.detach().clone(memory_format=torch.preserve_format)
