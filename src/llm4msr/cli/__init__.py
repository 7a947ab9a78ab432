"""The command line: thin, over the rooms. Errors of input are one message and exit code 2."""

from llm4msr.cli import reasoning, rooms, store, studies
from llm4msr.cli.base import app, main

__all__ = ["app", "main", "reasoning", "rooms", "store", "studies"]
