"""The zoo: backbones and enhancers by name.

A new one needs one file, its import in the package's `__init__`, and a line in the zoo's test.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, Generic, Literal, TypeVar

from pydantic import Field
from torch import Tensor, nn

from llm4msr.errors import InputError, nearest
from llm4msr.models.batch import Batch
from llm4msr.models.own import load_models
from llm4msr.models.readers import given
from llm4msr.validation import Settings

Width = Annotated[int, Field(ge=1, le=65536)]
"""The width of a layer."""


class ModelPartConfig(Settings):
    """Settings of a backbone or an enhancer; unknown keys are refused."""

    @property
    def needs(self) -> frozenset[str]:
        """The kinds of knowledge that the part reads, out of scenario, prompted, own, others and item."""
        return frozenset()


class ModelPart(nn.Module, ABC):
    """A backbone or an enhancer."""

    config_type: ClassVar[type[ModelPartConfig]]

    replayable: ClassVar[bool] = False
    """Whether a GPU may replay its steps; set by `Registry.register`."""

    def replays(self) -> bool:
        """Whether padding rows leave the other rows unchanged, and the operations do not depend on values."""
        return self.replayable

    def freeze(self) -> None:
        """After training: turn everything that depends on the scenarios alone into constants. Default: nothing."""


class Backbone(ModelPart):
    """A multi-scenario model on embeddings: `forward(x (B, E), offsets) -> logits (B,)`.

    A subclass's constructor takes `(config, width E, scenarios D)`. Rows are sorted by scenario.
    """

    @abstractmethod
    def forward(self, x: Tensor, offsets: tuple[int, ...]) -> Tensor:
        """Logits `(B,)`."""


class Enhancer(ModelPart):
    """A wrapper around a backbone: `forward(e (B, E), batch, backbone) -> (logits (B,), penalty)`.

    A subclass's constructor takes `(config, shape of the embedding, scenarios D, knowledge widths)`. `penalty` is a
    scalar made of the mean squares of the generated weights, or None.
    """

    reads_scenarios = False
    """Whether the enhancer reads the scenarios' knowledge."""

    @property
    @abstractmethod
    def backbone_width(self) -> int:
        """The width of the backbone's input."""

    reads_items = False
    """Whether it reads candidates through `items` alone: batches that are only scored then have no `item`."""

    def read_items(self, vectors: Tensor) -> Tensor:
        """What the enhancer computes of items' vectors `(n, d)` alone, `(n, k)`: by default the vectors themselves.

        Where many rows are scored, it is computed once for each item (`Batch.item_read`).
        """
        return vectors

    def items(self, batch: Batch) -> Tensor:
        """What it reads of the candidates, `(B, k)`; raises `ValueError` if the batch has no items' vectors."""
        return self.read_items(given(batch.item, "item vectors")) if batch.item_read is None else batch.item_read

    @abstractmethod
    def forward(self, e: Tensor, batch: Batch, backbone: Backbone) -> tuple[Tensor, Tensor | None]:
        """Logits `(B,)` and the penalty."""

    def blur_scenarios(self) -> None:
        """Give every scenario the mean of all scenarios' knowledge. No effect if the enhancer reads none."""


Part = TypeVar("Part", Backbone, Enhancer)


class Registry(Generic[Part]):
    """Classes by name; the error for an unknown name suggests the nearest ones."""

    def __init__(self, what: Literal["backbone", "enhancer"]) -> None:
        self._what = what
        self._types: dict[str, type[Part]] = {}

    def register(
        self, name: str, config_type: type[ModelPartConfig], *, replayable: bool = False
    ) -> Callable[[type[Part]], type[Part]]:
        """Decorate a class to register it under `name`, with the type of its settings.

        Set `replayable` if padding rows do not change the results of other rows and the class runs the same operations
        whatever the values are. A GPU may then replay its steps (`llm4msr.training.recorded`). A subclass that is
        registered must set it for itself. Raises `InputError` if another class has that name.
        """

        def remember(kind: type[Part]) -> type[Part]:
            before = self._types.get(name, kind)
            if (before.__module__, before.__qualname__) != (kind.__module__, kind.__qualname__):
                raise InputError(
                    f"there is a {self._what} {name!r} already ({before.__module__}.{before.__qualname__}); give "
                    f"{kind.__module__}.{kind.__qualname__} another name"
                )
            kind.config_type, kind.replayable = config_type, replayable
            self._types[name] = kind
            return kind

        return remember

    def names(self) -> list[str]:
        """All names, sorted."""
        load_models()
        return sorted(self._types)

    def get(self, name: str) -> type[Part]:
        """The class of a name; raises `InputError` for an unknown name."""
        load_models()
        if name not in self._types:
            raise InputError(f"there is no {self._what} {name!r}; {nearest(name, self.names())}")
        return self._types[name]

    def config(self, name: str, settings: Mapping[str, Any]) -> Any:
        """The settings of `name`, checked; raises an `InputError` that says what is wrong with them."""
        return self.get(name).config_type.checked(dict(settings), f"{self._what} {name}")


BACKBONES: Registry[Backbone] = Registry("backbone")
ENHANCERS: Registry[Enhancer] = Registry("enhancer")
