"""`python -m llm4msr`: the same as the command `llm4msr`."""

from llm4msr.cli import main

main()
