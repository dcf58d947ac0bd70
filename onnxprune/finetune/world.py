"""Training in several processes: each takes its share of every batch, gradients are averaged.

``torchrun --nproc-per-node 2 -m onnxprune model.onnx --finetune ...`` starts them. It is what
``DistributedDataParallel`` does, in one message per step: the models here are small.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch import distributed as dist


class World:
    """The processes of a run; a single one when torchrun did not start it.

    Attributes:
        rank: of this process.
        size: number of processes.
    """

    def __init__(self) -> None:
        self.size = int(os.environ.get("WORLD_SIZE", "1"))
        self.rank = int(os.environ.get("RANK", "0")) if self.size > 1 else 0
        self.local = int(os.environ.get("LOCAL_RANK", "0")) if self.size > 1 else 0
        self._joined = False

    def __enter__(self) -> World:
        if self.size > 1 and not dist.is_initialized():
            dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
            self._joined = True
        return self

    def __exit__(self, *exception: object) -> None:
        if self._joined:  # a group that was there before is not ours to end
            dist.destroy_process_group()
            self._joined = False

    @property
    def device(self) -> torch.device:
        """Where this process trains."""
        return torch.device("cuda", self.local) if torch.cuda.is_available() else torch.device("cpu")

    def share(self, items: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """Return this process's part of a batch; the whole batch when there is too little of it."""
        return items[self.rank :: self.size] or items

    def average(self, tensors: Iterable[Tensor]) -> None:
        """Replace the tensors by their mean over the processes."""
        if self.size == 1:
            return
        held = list(tensors)
        if not held:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in held])
        dist.all_reduce(flat)
        flat /= self.size
        for tensor, part in zip(held, torch.split(flat, [t.numel() for t in held]), strict=True):
            tensor.copy_(part.view_as(tensor))

    def everyone(self, flag: bool) -> bool:
        """Return whether ``flag`` holds in every process."""
        shared = [torch.tensor([float(flag)], device=self.device)]
        self.average(shared)
        return float(shared[0]) > 1 - 0.5 / self.size

    def from_first(self, tensors: Iterable[Tensor]) -> None:
        """Replace the tensors by those of the first process."""
        if self.size == 1:
            return
        for tensor in tensors:
            sent = tensor.detach().contiguous()  # detached: autograd lets nobody write into a weight
            dist.broadcast(sent, 0)
            tensor.detach().copy_(sent)

    def agreed(self, value: float) -> float:
        """Return the first process's value: decisions must be the same in all."""
        if self.size == 1:
            return value
        shared = torch.tensor([value], dtype=torch.float64, device=self.device)
        self.from_first([shared])
        return float(shared)

    def array_from_first(self, array: NDArray[Any]) -> NDArray[Any]:
        """Return the first process's array, of the same shape and element type in all."""
        if self.size == 1:
            return array
        data = torch.from_numpy(np.frombuffer(array.tobytes(), np.uint8).copy()).to(self.device)
        self.from_first([data])
        return np.frombuffer(data.cpu().numpy().tobytes(), array.dtype).reshape(array.shape)
