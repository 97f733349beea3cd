"""Memory of a computation without doing it: tensors that have shapes and no values, and a count of what is alive.

torch's fake tensors run the real code (layers, autograd, checkpointing, optimizer) on shapes alone; every storage that
comes up is counted while anything holds it. What an allocator rounds up, a kernel's own workspace and the GPU's context
(some 0.3 to 0.6 GB) come on top.
"""

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only


class CountedMemory(TorchDispatchMode):
    """Within the block counts the bytes of all storages that operations return.

    Use inside `torch._subclasses.FakeTensorMode`, outermost last, so that nothing is computed.

    Attributes:
        live: bytes alive now; peak: the most that was.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live, self.peak = 0, 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        tree_map_only(Tensor, self.count, out)
        return out

    def count(self, tensor: Tensor) -> Tensor:
        """Counts a tensor's storage, once, until it is gone."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._known:
            self._known.add(key)
            size = storage.nbytes()
            self.live += size
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._gone, key, size)
        return tensor

    def _gone(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


def counted_step(parameters: list[Tensor], optimizer: torch.optim.Optimizer, loss: Any) -> int:
    """Bytes at the peak of two optimizer steps (the second has the optimizer's moments), all on fake tensors.

    Args:
        parameters: everything that is in memory before, the frozen ones too.
        optimizer: of what trains.
        loss: called without arguments, returns the scalar to minimise.
    """
    with CountedMemory() as counted:
        for parameter in parameters:
            counted.count(parameter)
        for _ in range(2):
            optimizer.zero_grad()
            loss().backward()
            optimizer.step()
    return counted.peak
