"""The one error that is shown to a user without a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(Exception):
    """What the user gave cannot be used: says what was found, where, what was expected and what to do.

    The command line prints its message and exits with code 2.
    """


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint that lists the names closest to a misspelt one, or all known ones when none is close.

    >>> nearest("labl", ["label", "time"])
    "did you mean 'label'?"
    """
    names = list(known)
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.6)
    if close:
        return f"did you mean {' or '.join(repr(c) for c in close)}?"
    return f"known: {', '.join(names)}" if names else "none is known"
