"""One process is a world of its own; two average what they have."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from onnxprune.finetune.world import World

TWO = """
import os, sys, torch
import numpy as np
from onnxprune.finetune.world import World
with World() as world:
    a = [torch.full((2, 2), float(world.rank)), torch.arange(3.0) * (1 + world.rank)]
    world.average(a)
    b = torch.full((2,), float(world.rank + 5), requires_grad=True)
    c = torch.full((1, 2, 3, 3), float(world.rank)).contiguous(memory_format=torch.channels_last)
    world.from_first([b, c])
    assert not c.any() and c.is_contiguous(memory_format=torch.channels_last)
    with World():  # the group is there already: not this one's to end
        pass
    assert world.agreed(world.rank + 0.1) == 0.1
    half = world.array_from_first(np.full((2, 2), world.rank, np.float16))
    assert half.dtype == np.float16 and not half.any()
    world.average([])
    share = world.share([(0, k) for k in range(5)])
    rest = f"{world.share([(9, 9)])} {(world.everyone(True), world.everyone(world.rank == 0))}"
    sys.stdout.write(f"{world.rank} {a[0].flatten().tolist()} {a[1].tolist()} {b.tolist()} {share} {rest}\\n")
"""


def test_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with World() as world:
        values = [torch.arange(4.0)]
        world.average(values)
        world.from_first(values)
        assert torch.equal(values[0], torch.arange(4.0))
        assert world.share([(0, 1), (0, 2)]) == [(0, 1), (0, 2)]
        assert world.agreed(0.1) == 0.1
        assert world.array_from_first(np.ones(2)).tolist() == [1, 1]
        assert world.everyone(True) and not world.everyone(False)
        assert (world.rank, world.size) == (0, 1)


def test_two_processes() -> None:
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--standalone",
        "--no-python",
    ]
    done = subprocess.run([*command, sys.executable, "-c", TWO], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    first, second = sorted(done.stdout.splitlines())
    shared = "[0.5, 0.5, 0.5, 0.5] [0.0, 1.5, 3.0] [5.0, 5.0]"
    assert first == f"0 {shared} [(0, 0), (0, 2), (0, 4)] [(9, 9)] (True, False)"
    assert second == f"1 {shared} [(0, 1), (0, 3)] [(9, 9)] (True, False)"  # too few to share: all of it
