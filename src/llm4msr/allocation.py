"""How freed memory is kept, so that it need not be asked for again."""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_LARGEST_MMAP_THRESHOLD = 32 * 2**20
_KEPT = 2**31 - 1


def keep_freed_memory() -> bool:
    """Have glibc keep what is freed, and say whether it will.

    It gives arrays of some MB back to the system as soon as they are freed, and the next step's array of the same size
    is made of new pages, each of which is a fault: a seventh of the speed of a model with many experts. Elsewhere than
    on Linux with glibc nothing is changed.
    """
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD) and mallopt(_TRIM_THRESHOLD, _KEPT))
