"""A checkpoint: model, best weights, optimizer, position and random state, in one file, written atomically."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from llm4msr.errors import InputError
from llm4msr.folders import file_aside
from llm4msr.models.model import MultiScenarioModel
from llm4msr.training.metrics import Scores
from llm4msr.training.optim import Optimizers

_PATIENT_STEPS = 100
"""Early stopping never waits for fewer steps than this."""


@dataclass
class Position:
    """The progress of training: the next step, and the state of early stopping."""

    epoch: int = 0
    step: int = 0
    best: float = float("-inf")
    best_epoch: float = 0.0
    best_step: int = 0
    """The steps from the start of training to the best validation."""
    waited: int = 0
    done: bool = False
    lines: int = 0
    """The number of lines in the metrics file at this position."""
    seconds: float = field(default=0.0, compare=False)
    """The duration of training so far, without validation."""

    def validated(self, scores: Scores, steps: int, patience: int) -> bool:
        """Record a validation after `step` of an epoch's `steps`; returns whether it is the best so far.

        Training is done after `patience` validations in a row that were not, and at least 100 steps: with few steps
        between validations, the values are noisy. Validations count only once one was better than chance, since models
        of sparse ids often stay at chance for hundreds of steps before they improve. After an epoch's last step, the
        position moves to the next epoch.
        """
        selection = scores.selection
        better, total = selection > self.best, self.epoch * steps + self.step
        if better:
            self.best, self.best_epoch, self.best_step = selection, self.epoch + self.step / steps, total
        self.waited = 0 if better or self.best <= scores.chance else self.waited + 1
        self.done = self.waited >= patience and total - self.best_step >= _PATIENT_STEPS
        self.lines += 1
        if self.step == steps:
            self.epoch, self.step = self.epoch + 1, 0
        return better


def copy_of(model: MultiScenarioModel) -> dict[str, Tensor]:
    """A copy of the model's weights."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def save_checkpoint(
    path: Path, model: MultiScenarioModel, best: dict[str, Tensor], optimizers: Optimizers, position: Position
) -> None:
    """Replace the checkpoint atomically."""
    tensors = {f"model/{name}": tensor for name, tensor in model.state_dict().items()}
    tensors |= {f"best/{name}": tensor for name, tensor in best.items()}
    tensors |= {f"optimizer/{name}": tensor for name, tensor in optimizers.state().items()}
    tensors["random"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors["random_cuda"] = torch.cuda.get_rng_state()
    write_tensors(path, tensors, {"position": json.dumps(asdict(position))})


def load_checkpoint(
    path: Path, model: MultiScenarioModel, optimizers: Optimizers
) -> tuple[Position, dict[str, Tensor]]:
    """Restore everything; returns the position and the best weights so far. Raises `InputError` if it does not fit."""
    tensors, metadata = read_tensors(path)
    try:
        model.load_state_dict(_under(tensors, "model/"))
        optimizers.load(_under(tensors, "optimizer/"))
        torch.set_rng_state(tensors["random"])
        if torch.cuda.is_available() and "random_cuda" in tensors:
            torch.cuda.set_rng_state(tensors["random_cuda"])
        return Position(**json.loads(metadata["position"])), _under(tensors, "best/")
    except (RuntimeError, KeyError, ValueError, TypeError) as error:
        raise InputError(f"{path}: the checkpoint does not fit this run ({error}); remove it to start anew") from error


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write tensors as safetensors, atomically. Raises `OSError` if they cannot be written, as on a full disk."""
    with file_aside(path, "part") as aside:
        aside.touch()
        mode = aside.stat().st_mode  # by the user's umask; safetensors makes files only the owner can read
        try:
            save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, aside, metadata=metadata)
        except SafetensorError as error:
            raise OSError(str(error)) from error
        aside.chmod(mode)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read tensors and metadata; raises `InputError` if the file is truncated or not safetensors."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: cannot be read as safetensors: {error}") from error


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
