"""The commands that maintain a knowledge store: stats, verify, compact, export, gc."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.table import Table

from llm4msr.cli.base import app, console, say
from llm4msr.errors import InputError

store = typer.Typer(help="Look after a folder of knowledge.", no_args_is_help=True)
app.add_typer(store, name="store")

FolderArgument = Annotated[Path, typer.Argument(help="A folder that `reason` wrote.")]


@store.command()
def stats(knowledge: FolderArgument) -> None:
    """Show what the folder holds: prompts, tokens, how texts ended, and vectors far from all others."""
    from llm4msr.knowledge.upkeep import stats as look

    found = look(knowledge)
    for name, answers, size in found.files:
        say(f"{name}: {answers} answers, {size / 2**20:.1f} MiB")
    table = Table("level", "prompts", "different", "set aside", "read", "written", "endings", "far", box=box.SIMPLE)
    for level in found.levels:
        endings = ", ".join(f"{name} {count}" for name, count in sorted(level.endings.items()))
        numbers = (level.prompts, level.distinct, level.rejected)
        tokens = (f"{level.prompt_tokens:.0f}", f"{level.generated_tokens:.0f}")
        table.add_row(level.level, *map(str, numbers), *tokens, endings, str(len(level.far)))
    console.print(table)
    for level in found.levels:
        if level.far:
            shown = ", ".join(map(str, level.far[:10]))
            say(f"{level.level}: the vectors of these subjects (codes) are far from all others: {shown}")


@store.command()
def verify(
    knowledge: FolderArgument,
    remove: Annotated[bool, typer.Option("--remove", help="Remove altered answers, to be asked again.")] = False,
) -> None:
    """Check the checksum of every answer."""
    from llm4msr.knowledge.upkeep import altered

    found = altered(knowledge, remove=remove)
    for name, count in found.items():
        say(f"{name}: {count} altered answers{' removed' if remove and count else ''}")
    if any(found.values()) and not remove:
        raise InputError(f"{knowledge}: answers were altered on disk; --remove removes them, and `reason` asks again")


@store.command()
def compact(
    knowledge: FolderArgument,
    int8: Annotated[bool, typer.Option("--int8", help="Keep vectors in 8 bits a number, in place of 16.")] = False,
) -> None:
    """Merge the store files of several workers into one, and make it smaller."""
    from llm4msr.knowledge.upkeep import compact as merge

    say(f"{merge(knowledge, int8=int8)} answers in one file")


@store.command()
def export(
    knowledge: FolderArgument, parquet: Annotated[Path, typer.Option(help="The Parquet file to write.")]
) -> None:
    """Write the answers, and the subjects they are about, as Parquet."""
    from llm4msr.knowledge.upkeep import export as write

    say(f"{write(knowledge, parquet)} rows in {parquet}")


@store.command()
def gc(knowledge: FolderArgument) -> None:
    """Remove answers to prompts that are no longer asked."""
    from llm4msr.knowledge.upkeep import collect_garbage

    say(f"{collect_garbage(knowledge)} answers removed")
