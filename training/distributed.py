"""Several processes that train one network together, on one machine or many, started by torchrun.

Each process trains on a share of the rows; a `Group` adds up what they found, and hands around what only the first of them reads.
A process on its own is a group of one, for which nothing is sent. Knows nothing of networks or of files.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from service.errors import NocturneError

T = TypeVar("T")
LEAVE_S = 10.0  # for the other processes to come to their end


class CannotShare(NocturneError):
    """Work that several processes cannot do together, with the reason."""


@dataclass(frozen=True)
class Group:
    """The processes of a training. Every method that sends something must be called by all of them, in the same order.

    Attributes
    ----------
    rank : int
        Number of this process, from 0.
    size : int
        How many there are.
    local_rank : int
        Number of this process among those of its machine: which of its CUDA devices it takes.
    """

    rank: int
    size: int
    local_rank: int = 0

    @property
    def first(self) -> bool:
        """Whether this is the process that reads and writes the run's folder, and prints."""
        return self.rank == 0

    def rows(self, rows: int) -> slice:
        """Return which of all the rows are this process's own.

        Raises
        ------
        CannotShare
            If the processes cannot have equally many.
        """
        if rows % self.size:
            raise CannotShare(f"{rows} rows cannot be shared out evenly over {self.size} processes; choose another `--rows`")
        own = rows // self.size
        return slice(self.rank * own, (self.rank + 1) * own)

    def device(self, kind: torch.device) -> torch.device:
        """Return the device of this process: CUDA devices are shared out over the processes of a machine."""
        if self.size == 1 or kind.type != "cuda":
            return kind
        device = torch.device("cuda", self.local_rank)
        torch.cuda.set_device(device)
        return device

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors of one type and device by their sums over all processes, in one message."""
        if self.size == 1:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        dist.all_reduce(flat)
        for tensor, total in zip(tensors, torch.split(flat, [tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(total.view_as(tensor))

    def any(self, flag: bool) -> bool:
        """Return whether the flag of any process is set."""
        count = torch.tensor([float(flag)])
        self.add_up([count])
        return bool(count > 0)

    def join_rows(self, tensor: Tensor, axis: int) -> Tensor:
        """Return the rows of all processes, joined along an axis, to the first process; the others get their own back."""
        if self.size == 1:
            return tensor
        parts = [torch.empty_like(tensor) for _ in range(self.size)] if self.first else None
        dist.gather(tensor.contiguous(), parts)
        return torch.cat(parts, axis) if parts else tensor

    def from_first(self, make: Callable[[], T]) -> T:
        """Let the first process make something, from its files say, and return it to all; an error of ours is raised in all."""
        if self.size == 1:
            return make()
        box: list[Any] = [None, None]  # what was made, or the error
        if self.first:
            try:
                box[0] = make()
            except NocturneError as error:
                box[1] = error
        dist.broadcast_object_list(box)
        if box[1] is not None:
            raise box[1]
        made: T = box[0]
        return made

    def wait(self) -> None:
        """Wait until every process has come here."""
        if self.size > 1:
            dist.barrier()


ALONE = Group(rank=0, size=1)


@contextmanager
def join_group() -> Iterator[Group]:
    """Join the processes that torchrun started beside this one, and leave them at the end; without torchrun, be alone."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield ALONE
        return
    dist.init_process_group()  # for tensors of the CPU gloo, for those of CUDA devices NCCL
    try:
        yield Group(dist.get_rank(), dist.get_world_size(), int(os.environ["LOCAL_RANK"]))
    finally:
        leave_group()


def leave_group() -> None:
    """Leave the other processes, once they leave too or have gone.

    gloo's own threads let go of the tensors of the last message some time after it has arrived. If the interpreter ends before,
    they abort the process, though all its work is done; waiting here gives them the time.
    """
    if dist.get_backend() == dist.Backend.GLOO:
        with suppress(RuntimeError):  # the others have gone
            dist.monitored_barrier(timeout=timedelta(seconds=LEAVE_S))
    dist.destroy_process_group()
