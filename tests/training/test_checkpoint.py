from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from llm4msr.training.checkpoint import read_tensors, write_tensors


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_tensors_may_be_read_by_whom_the_umask_lets(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        write_tensors(tmp_path / "a.safetensors", {"x": torch.arange(3.0)}, {"of": "me"})
    finally:
        os.umask(before)
    assert (tmp_path / "a.safetensors").stat().st_mode & 0o777 == 0o666 & ~umask
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]
    tensors, metadata = read_tensors(tmp_path / "a.safetensors")
    assert tensors["x"].tolist() == [0, 1, 2]
    assert metadata == {"of": "me"}
