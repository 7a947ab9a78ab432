"""What says that its step can be replayed reads no value on the host: it also runs on tensors that have no values."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from llm4msr.models.batch import PaddedOffsets
from tests.models.zoo import PAIRS, make_model, make_rows


def runs_without_values(backbone: str, enhancer: str) -> bool:
    """Whether a training step, forward and backward, runs on shapes alone."""
    model, batch = make_model(backbone, enhancer).train(), make_rows([9, 4, 20])
    batch = replace(batch, offsets=PaddedOffsets.of(batch.offsets, torch.tensor([8, 3, 20])))
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            model(batch)[0].sum().backward()
    except Exception:  # noqa: BLE001 - operations on values raise errors of several types
        return False
    return True


def replays(backbone: str, enhancer: str) -> bool:
    model = make_model(backbone, enhancer)
    return model.backbone.replays() and model.enhancer.replays()


@pytest.mark.parametrize(
    ("backbone", "enhancer"),
    [pair for pair in PAIRS if (pair[0] == "star" or pair[1] in ("none", "llm4msr")) and replays(*pair)],
)
def test_a_replayed_step_reads_no_value(backbone: str, enhancer: str) -> None:
    assert runs_without_values(backbone, enhancer)


def test_a_value_that_is_read_is_noticed() -> None:
    with FakeTensorMode() as fake, pytest.raises(Exception, match="_local_scalar_dense"):
        float(fake.from_tensor(torch.ones(3)).max())
