"""Data sets that lie beside the repository on some machines only."""

from __future__ import annotations

from pathlib import Path

import pytest

SHARED = Path(__file__).parents[2].parent / "shared" / "data"


def needs(name: str) -> pytest.MarkDecorator:
    """Skips a test where the folder `name` is not there."""
    return pytest.mark.skipif(not (SHARED / name).is_dir(), reason=f"there is no {SHARED / name}")
