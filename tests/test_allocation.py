from __future__ import annotations

import platform
import sys

from llm4msr.allocation import keep_freed_memory


def test_it_says_whether_freed_memory_is_kept() -> None:
    glibc = sys.platform == "linux" and platform.libc_ver()[0] == "glibc"
    assert keep_freed_memory() == glibc
    assert keep_freed_memory() == glibc  # as often as one likes
