"""Keep freed memory in the process, so that it can be reused without asking the system again."""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_LARGEST_MMAP_THRESHOLD = 32 * 2**20
_KEPT = 2**31 - 1


def keep_freed_memory() -> bool:
    """Make glibc keep freed memory, and return whether it will.

    By default glibc returns arrays of some MB to the system as soon as they are freed. The next step's array of the
    same size then consists of new pages, and each page costs a page fault. This costs a model with many experts a
    seventh of its speed. On any system but Linux with glibc, nothing is changed.
    """
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD) and mallopt(_TRIM_THRESHOLD, _KEPT))
