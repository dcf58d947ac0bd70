"""One process is a world of its own; two average what they have."""

from __future__ import annotations

import os
import socket
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
    """Started as torchrun starts them, without its own process; tests/e2e/test_finetune.py has that."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", TWO],
            env={**os.environ, **place, "RANK": rank, "LOCAL_RANK": rank},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in ("0", "1")
    ]
    said = [process.communicate(timeout=120) for process in started]
    assert [process.returncode for process in started] == [0, 0], said
    first, second = (out.strip() for out, _ in said)
    shared = "[0.5, 0.5, 0.5, 0.5] [0.0, 1.5, 3.0] [5.0, 5.0]"
    assert first == f"0 {shared} [(0, 0), (0, 2), (0, 4)] [(9, 9)] (True, False)"
    assert second == f"1 {shared} [(0, 1), (0, 3)] [(9, 9)] (True, False)"  # too few to share: all of it
