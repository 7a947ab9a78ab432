"""Memory-mapped files whose rows are read at random: the system is advised not to read ahead."""

from __future__ import annotations

import ctypes
import mmap
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from llm4msr.errors import InputError

_LARGE = 1 << 24


def mapped_array(path: Path) -> NDArray[Any]:
    """A mapped `.npy` file as a plain array, faster to index than `np.memmap`. Raises `InputError` if it is not one."""
    try:
        array = np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
    except (ValueError, OSError) as error:
        raise InputError(f"{path}: cannot be read as a .npy array: {error}") from error
    _at_random(array.ctypes.data, array.nbytes)
    return array


def mapped_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, memory-mapped. Raises `InputError` if it is not one."""
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: cannot be read as safetensors: {error}") from error
    for tensor in tensors.values():
        _at_random(tensor.data_ptr(), tensor.nbytes)
    return tensors


def _at_random(address: int, length: int) -> None:
    """Tell the system that a large mapping is read at random; do nothing on a system without that advice."""
    advice = getattr(mmap, "MADV_RANDOM", None)
    if advice is None or length < _LARGE:
        return
    page = mmap.PAGESIZE
    first = -(-address // page) * page
    size = ctypes.c_size_t((address + length) // page * page - first)
    ctypes.CDLL(None).madvise(ctypes.c_void_p(first), size, ctypes.c_int(advice))
