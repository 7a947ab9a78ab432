"""The zoo: backbones and enhancers by name. A new one is one file, and a line in the zoo's test."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn

from llm4msr.errors import InputError, nearest
from llm4msr.models.batch import Batch, KnowledgeWidths
from llm4msr.models.own import load_own_models
from llm4msr.validation import explain_validation

Width = Annotated[int, Field(ge=1, le=65536)]
"""The width of a layer."""


class ModelPartConfig(BaseModel):
    """Settings of a backbone or an enhancer; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @property
    def needs(self) -> frozenset[str]:
        """The kinds of knowledge that the part reads: of scenario, prompted, own, others, item."""
        return frozenset()


class Backbone(nn.Module, ABC):
    """A multi-scenario model of embeddings: `forward(x (B, E), offsets) -> logits (B,)`.

    A subclass takes `(config, width E, scenarios D)`. Rows come sorted by scenario.
    """

    config_type: ClassVar[type[ModelPartConfig]]

    replayable: ClassVar[bool] = False
    """What it was registered with: whether a GPU may replay its steps."""

    def replays(self) -> bool:
        """Whether rows of padding change nothing for the others, and no value decides what is run."""
        return self.replayable

    @abstractmethod
    def forward(self, x: Tensor, offsets: tuple[int, ...]) -> Tensor:
        """Logits `(B,)`."""

    def freeze(self) -> None:
        """Training is over: make constants of what depends on the scenarios alone. By default there is nothing."""


class Enhancer(nn.Module, ABC):
    """What is put around a backbone: `forward(e (B, E), batch, backbone) -> (logits (B,), penalty)`.

    A subclass takes `(config, shape of the embedding, scenarios D, knowledge widths)`. `penalty` is a scalar, the
    mean square of the weights that were generated for the batch, or None where none are.
    """

    config_type: ClassVar[type[ModelPartConfig]]

    reads_scenarios = False
    """Whether the scenarios' knowledge is read."""

    replayable: ClassVar[bool] = False
    """What it was registered with: whether a GPU may replay its steps."""

    def replays(self) -> bool:
        """Whether rows of padding change nothing for the others, and no value decides what is run."""
        return self.replayable

    @property
    @abstractmethod
    def backbone_width(self) -> int:
        """The width of what the backbone is given."""

    @abstractmethod
    def forward(self, e: Tensor, batch: Batch, backbone: Backbone) -> tuple[Tensor, Tensor | None]:
        """Logits `(B,)` and the penalty."""

    def freeze(self) -> None:
        """Training is over: make constants of what depends on the scenarios alone. By default there is nothing."""

    def blur_scenarios(self) -> None:
        """Give every scenario the mean of all scenarios' knowledge; where none is read, nothing changes."""


Part = TypeVar("Part", Backbone, Enhancer)


class Registry(Generic[Part]):
    """Classes by name; an unknown name is answered with the nearest ones."""

    def __init__(self, what: Literal["backbone", "enhancer"]) -> None:
        self._what = what
        self._types: dict[str, type[Part]] = {}

    def register(
        self, name: str, config_type: type[ModelPartConfig], *, replayable: bool = False
    ) -> Callable[[type[Part]], type[Part]]:
        """Decorate a class to make it known under `name`, with the type of its settings.

        A `replayable` one may be given rows of padding and runs the same operations whatever the values are, so that a
        GPU replays its steps (`llm4msr.training.recorded`); a subclass has to say so for itself. Raises `InputError`
        where another class has that name.
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
        load_own_models()
        return sorted(self._types)

    def get(self, name: str) -> type[Part]:
        """The class of a name; raises `InputError` for one that is not known."""
        load_own_models()
        if name not in self._types:
            raise InputError(f"there is no {self._what} {name!r}; {nearest(name, self.names())}")
        return self._types[name]

    def config(self, name: str, settings: Mapping[str, Any]) -> Any:
        """The settings of `name`, checked; raises `InputError` that names what is wrong with them."""
        try:
            return self.get(name).config_type.model_validate(dict(settings))
        except ValidationError as error:
            raise InputError(f"{self._what} {name}: {explain_validation(error, self.get(name).config_type)}") from error


BACKBONES: Registry[Backbone] = Registry("backbone")
ENHANCERS: Registry[Enhancer] = Registry("enhancer")

__all__ = ["BACKBONES", "ENHANCERS", "Backbone", "Enhancer", "KnowledgeWidths", "ModelPartConfig", "Registry", "Width"]
