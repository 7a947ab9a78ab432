"""Shared parts of the commands: the console, common options, and the handling of errors."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape

from llm4msr import __version__
from llm4msr.errors import InputError
from llm4msr.knowledge.engines import DType, EngineName
from llm4msr.report.terminal import say as say_to

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from llm4msr.report.sheets import Sheet

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
console = Console(emoji=False)

DataArgument = Annotated[Path, typer.Argument(help="A folder that `prepare` wrote.")]
MovedDataOption = Annotated[
    Path | None,
    typer.Option("--data", help="Where the prepared data lie now.", show_default="where the run found them"),
]
MovedKnowledgeOption = Annotated[
    Path | None,
    typer.Option("--knowledge", help="Where the knowledge lies now.", show_default="where the run found it"),
]
KnowledgeOption = Annotated[Path, typer.Option("--knowledge", help="The folder of knowledge.")]
ModelOption = Annotated[
    Path | None,
    typer.Option("--model", help="Folder of a causal LM (safetensors).", show_default="the embedded SmolLM2"),
]
EngineOption = Annotated[
    EngineName,
    typer.Option(help="What runs the LLM; auto takes the fastest that is installed."),
]
CommandOption = Annotated[str, typer.Option(help="The program of --engine command; see docs/knowledge.md.")]
DTypeOption = Annotated[DType, typer.Option(help="Number format of the LLM.")]


_INTERRUPTED = 130
"""Typer's exit code after Ctrl-C. Typer itself prints nothing then."""


def _version(asked: bool) -> None:
    if asked:
        say(f"llm4msr {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", is_eager=True, callback=_version)
    ] = False,
) -> None:
    """Multi-scenario click-through-rate prediction, helped by what a frozen LLM knows."""


def main() -> None:
    """Run the command line; an `InputError` or `OSError` is printed without a traceback and ends with exit code 2."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a log may be in ASCII, and a scenario's name need not be
    try:
        app()
    except InputError as error:
        _fail(str(error), 2)
    except OSError as error:
        _fail(f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror or error), 2)
    except SystemExit as end:
        if end.code == _INTERRUPTED:
            say("stopped")
        raise


def _fail(message: str, code: int) -> NoReturn:
    Console(stderr=True, emoji=False).print(f"[bold red]error:[/] {escape(message)}", soft_wrap=True, highlight=False)
    sys.exit(code)


def say(message: str) -> None:
    """Print a line of progress."""
    say_to(console, message)


def whole_numbers(option: str, text: str) -> tuple[int, ...]:
    """Parse an option's value as whole numbers with commas between them; raises `InputError` for anything else."""
    try:
        return tuple(int(value) for value in text.split(","))
    except ValueError:
        raise InputError(f"{option} {text}: expected whole numbers with commas, as in 1,2,4") from None


def print_sheet(sheet: Sheet) -> None:
    """Print a table, in parts if the terminal is too narrow for it."""
    for part in sheet.parts(console.width):
        console.print(part.rich())


def make_engine(
    model: Path | None,
    dtype: DType,
    engine: EngineName,
    command: str = "",
    layers: int | None = None,
) -> Any:
    """Make the engine with the LLM of the folder `model`, or with the embedded one if it is None."""
    from transformers.utils import logging

    from llm4msr.knowledge.engines.choice import make_engine as make

    logging.set_verbosity_error()  # the terminal shows our own progress
    logging.disable_progress_bar()
    made = make(engine, model, dtype, say, command=command, layers=layers)
    say(f"the language model {made.model_name} is loaded")
    return made


def known_engine(model: Path | None, command: str) -> Callable[[Mapping[str, Any]], Any]:
    """What makes the engine of a knowledge folder again, given its identity.

    `model` and `command` are where the LLM lies and what runs it, if it is not the embedded one.
    """

    def again(identity: Mapping[str, Any]) -> Any:
        from llm4msr.knowledge.engines.choice import settings_of

        kind, dtype, layers = settings_of(identity, command)
        return make_engine(model, dtype, kind, command, layers)

    return again


def belongs(option: str, value: object, other: str, *, there: bool) -> None:
    """Raise `InputError` if an option is given without the other one that it belongs to."""
    if value is not None and not there:
        raise InputError(f"{option} {value}: goes with {other} only")
