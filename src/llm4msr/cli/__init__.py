"""The command line, a thin layer over the other packages. An `InputError` becomes one message and exit code 2."""

from typer.models import CommandInfo

from llm4msr.cli import paper, preparing, reasoning, serving, store, studies, training
from llm4msr.cli.base import app, main

__all__ = ["app", "main", "paper", "preparing", "reasoning", "serving", "store", "studies", "training"]

_WALK = (
    "prepare",
    "reason",
    "audit",
    "train",
    "evaluate",
    "explain",
    "case-study",
    "export",
    "score",
    "serve",
    "events",
    "demo",
)
"""The order in which a user meets the commands; `--help` lists the others after them."""


def _place(command: CommandInfo) -> int:
    name = command.name or getattr(command.callback, "__name__", "")
    return _WALK.index(name) if name in _WALK else len(_WALK)


app.registered_commands.sort(key=_place)
