"""Tests of what a GPU computes, beside what a CPU does; run by `make test-gpu`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

GPU = torch.device("cuda")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark this folder's tests, and skip them where there is no GPU."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            if not torch.cuda.is_available():
                item.add_marker(pytest.mark.skip(reason="there is no GPU here"))
