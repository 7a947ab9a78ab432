"""The program `llm4msr`, also as `python -m llm4msr`."""

import sys


def start() -> None:
    """Run the command line. Ctrl-C while it is being imported ends it without a traceback, too."""
    try:
        from llm4msr.cli import main
    except KeyboardInterrupt:
        sys.exit(130)
    main()


if __name__ == "__main__":
    start()
