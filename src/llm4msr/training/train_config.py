"""How a model is trained."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field

from llm4msr.errors import InputError
from llm4msr.models.model import MultiScenarioModel
from llm4msr.training.optim import EmbeddingUpdates, Optimizers
from llm4msr.training.order import Drawing
from llm4msr.validation import Settings


class TrainConfig(Settings):
    """How a model is trained.

    `embedding_decay` is L2 on the embedding table. It is part of the gradient that Adam normalises, so between 1e-7
    and 1e-4 it changes little, and above 1e-2 nothing is learnt. `embedding_updates`: whether a step updates only
    the rows that it looked up, or all rows exactly (see `Optimizers`). `weight_decay` is L2 on the other
    parameters, `generated_decay` on the generated weights. Validation runs `validations_per_epoch` times in an
    epoch. Training stops after `patience` validations without a better mean AUC over the scenarios (see
    `Position.validated`); in any case the best weights are restored. Up to `rows_together` rows that see the same
    user states are kept together in a batch, so that each state is processed less often. With `cuda_graphs`, a GPU
    records a step and replays it if the model allows it. With `compile`, `torch.compile` compiles the model of
    replayed steps, once for each shape of batches; other steps are not compiled, as that gains nothing.
    """

    epochs: int = Field(default=10, ge=1)
    batch_size: int = Field(default=4096, ge=1)
    learning_rate: float = Field(default=1e-3, gt=0)
    embedding_decay: float = Field(default=1e-5, ge=0)
    weight_decay: float = Field(default=0.0, ge=0)
    generated_decay: float = Field(default=0.0, ge=0)
    embedding_updates: EmbeddingUpdates = "auto"
    validations_per_epoch: int = Field(default=4, ge=1)
    patience: int = Field(default=4, ge=1)
    seed: int = Field(default=0, ge=0, lt=2**63)
    precision: Literal["float32", "bfloat16"] = "float32"
    shuffle_window: int | None = Field(default=None, ge=1)
    rows_together: int = Field(default=16, ge=1)
    # Not part of a run's identity: a run can be opened on any machine, and results differ only by rounding or dropout.
    cuda_graphs: bool = Field(default=True, exclude=True)
    compile: bool = Field(default=False, exclude=True)
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", exclude=True)

    @property
    def drawing(self) -> Drawing:
        """How batches are drawn."""
        return Drawing(self.batch_size, self.seed, self.shuffle_window, self.rows_together)

    def optimizers(self, model: MultiScenarioModel) -> Optimizers:
        """The optimizers of a model, with these settings."""
        return Optimizers(
            model,
            learning_rate=self.learning_rate,
            embedding_decay=self.embedding_decay,
            weight_decay=self.weight_decay,
            embedding_updates=self.embedding_updates,
        )

    def torch_device(self) -> torch.device:
        """The device to train on. A GPU is named by its number, since each thread has its own current GPU."""
        if self.device == "cpu" or (self.device == "auto" and not torch.cuda.is_available()):
            return torch.device("cpu")
        if not torch.cuda.is_available():
            raise InputError("device = 'cuda', but PyTorch finds no GPU here; take 'auto' or 'cpu'")
        return torch.device("cuda", torch.cuda.current_device())
