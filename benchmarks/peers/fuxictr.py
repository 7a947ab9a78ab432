"""FuxiCTR: one network of our shape for all scenarios, from its base model, embeddings, MLP block and npz loader."""

from __future__ import annotations

import atexit
import importlib
import shutil
import tempfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.contender import DIM, HIDDEN, Contender, NotHereError, Task

NAME = "FuxiCTR"


def contenders(task: Task) -> dict[str, list[Contender]]:
    """Its contenders, by the name of our backbone. Raises `NotHereError` if the library is missing."""
    try:
        features = importlib.import_module("fuxictr.features")
        base = importlib.import_module("fuxictr.pytorch.models").BaseModel
        layers = importlib.import_module("fuxictr.pytorch.layers")
        loaders = importlib.import_module("fuxictr.pytorch.dataloaders.npz_dataloader")
    except ImportError as error:
        raise NotHereError(f"{error}; pip install fuxictr") from error
    data = task.data
    names = [f.name for f in data.fields_of("categorical")]
    folder = Path(tempfile.mkdtemp(prefix="fuxictr-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    known = features.FeatureMap("journey", str(folder))
    known.features = OrderedDict(
        (name, {"source": "", "type": "categorical", "vocab_size": data.vocabulary_size(name), "padding_idx": None})
        for name in names
    )
    known.labels = ["label"]
    known.num_fields, known.default_emb_dim, known.input_length = len(names), DIM, len(names)
    known.set_column_index()
    train = slice(0, data.split.valid)
    columns = {name: np.array(data.field(name)[train], np.int32) for name in names}
    columns["label"] = np.array(data.label[train]).astype(np.int32)
    np.savez(folder / "train.npz", **columns)  # type: ignore[arg-type]

    class DNN(base):  # type: ignore[misc, valid-type]
        """An embedding and an MLP, as in its model zoo."""

        def __init__(self) -> None:
            super().__init__(
                known,
                gpu=0 if task.device.type == "cuda" else -1,
                verbose=0,
                model_root=str(folder),
                metrics=["AUC"],
                embedding_regularizer=None,
            )
            self.embedding_layer = layers.FeatureEmbedding(known, DIM)
            self.mlp = layers.MLP_Block(
                input_dim=DIM * len(names),
                output_dim=1,
                hidden_units=list(HIDDEN),
                hidden_activations="ReLU",
                output_activation=self.output_activation,
            )
            self.compile("adam", "binary_crossentropy", 1e-3)
            self.reset_parameters()
            self.model_to_device()
            self._max_gradient_norm = 10.0

        def forward(self, inputs: Any) -> Any:
            return {"y_pred": self.mlp(self.embedding_layer(self.get_inputs(inputs), flatten_emb=True))}

    model = DNN()
    model.train()

    def batches() -> Iterator[Any]:
        return iter(loaders.NpzDataLoader(known, str(folder / "train"), task.batch, shuffle=True, num_workers=1))

    def step(batch: Any) -> None:
        model.train_step(batch).item()

    return {"shared_bottom": [Contender(f"{NAME} DNN", task.batch, batches, step)]}
