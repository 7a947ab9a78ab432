"""The one error that is shown to a user without a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_MOST = 20
"""The most names that are listed if none is close."""


class InputError(Exception):
    """The user's input cannot be used. The message says what was found, where, what was expected and what to do.

    The command line prints the message and exits with code 2.
    """


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint that lists the names closest to a misspelt one, or the first 20 known names if none is close.

    Upper and lower case are one.

    >>> nearest("labl", ["label", "time"])
    "did you mean 'label'?"
    """
    names = list(known)
    folded = {known.casefold(): known for known in names}
    close = difflib.get_close_matches(name.casefold(), folded, n=3, cutoff=0.6)
    if close:
        return f"did you mean {' or '.join(repr(folded[c]) for c in close)}?"
    if not names:
        return "none is known"
    more = f" and {len(names) - _MOST} more" if len(names) > _MOST else ""
    return f"known: {', '.join(names[:_MOST])}{more}"
