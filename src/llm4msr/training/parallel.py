"""Training by several processes that divide each batch, started by `torchrun`.

    torchrun --nproc-per-node 2 -m llm4msr train SETTINGS.toml --out RUN

Every process holds the whole model and reads its share of each batch's rows. The gradients are summed before each
step, so that all processes make the step that one process would make on the whole batch.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

from llm4msr.errors import InputError


@dataclass(frozen=True)
class Group:
    """The processes that train together; `rank` is this process's number. The first one (rank 0) writes files."""

    rank: int = 0
    size: int = 1

    @property
    def writes(self) -> bool:
        """Whether this process writes files."""
        return self.rank == 0

    def share(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """This process's rows of a batch; all rows if they are fewer than the processes, so that no share is empty."""
        if len(rows) < self.size:
            return rows
        first, last = (len(rows) * rank // self.size for rank in (self.rank, self.rank + 1))
        return rows[first:last]

    def wait(self) -> None:
        """Wait until all processes get here."""
        if self.size > 1:
            dist.barrier()

    def sum_gradients(self, model: nn.Module, sparse: Tensor | None) -> None:
        """Sum the gradients over all processes; the parameter `sparse`, if given, has a sparse gradient."""
        if self.size == 1:
            return
        dense = [p for p in model.parameters() if p.requires_grad and p is not sparse]
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in dense]
        has = torch.tensor([float(p.grad is not None) for p in dense], device=gradients[0].device)
        flat = torch.cat([has, *(g.reshape(-1) for g in gradients)])
        dist.all_reduce(flat)
        place = len(dense)
        for number, (parameter, gradient) in enumerate(zip(dense, gradients, strict=True)):
            part = flat[place : place + gradient.numel()].view_as(gradient)
            parameter.grad = part.clone() if flat[number] > 0 else None
            place += gradient.numel()
        if sparse is not None:
            sparse.grad = self._gathered(sparse)

    def _gathered(self, table: Tensor) -> Tensor:
        """The entries of all processes' sparse gradients, concatenated."""
        assert table.grad is not None
        ids, values = table.grad._indices()[0], table.grad._values()
        count = torch.tensor([len(ids)], device=ids.device)
        counts = [torch.zeros_like(count) for _ in range(self.size)]
        dist.all_gather(counts, count)
        most = int(max(int(c) for c in counts))
        found = []
        for tensor in (ids[:, None], values):
            padded = tensor.new_zeros(most, tensor.shape[1])
            padded[: len(tensor)] = tensor
            parts = [torch.empty_like(padded) for _ in range(self.size)]
            dist.all_gather(parts, padded)
            found.append(torch.cat([part[: int(c)] for part, c in zip(parts, counts, strict=True)]))
        return torch.sparse_coo_tensor(found[0].T, found[1], table.shape, check_invariants=False)

    def sum(self, values: Tensor) -> Tensor:
        """The sum over the processes, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values


ALONE = Group()


@contextmanager
def joined(device: str = "auto") -> Iterator[Group]:
    """The group of processes that `torchrun` started, or a group of this process alone.

    GPUs are used if there are any and `device` is not "cpu". Each process then takes its own; raises `InputError` if
    there are too few.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1 or dist.is_initialized():
        yield ALONE if size == 1 else Group(dist.get_rank(), dist.get_world_size())
        return
    cuda = device != "cpu" and torch.cuda.is_available()
    if cuda:
        number, there = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        if number >= there:
            raise InputError(
                f"--nproc-per-node: more processes than GPUs, of which there are {there}; start fewer, or train with "
                "device = 'cpu'"
            )
        torch.cuda.set_device(number)
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo")
    try:
        yield Group(dist.get_rank(), size)
        dist.barrier()  # leave only when all are done: others may still communicate with this process
    finally:
        dist.destroy_process_group()
