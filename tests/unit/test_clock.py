from __future__ import annotations

import time

import pytest

from onnxprune.clock import Clock


def test_stages_in_order() -> None:
    clock = Clock()
    with clock.stage("wait"):
        time.sleep(0.02)
    with clock.stage("work"):
        begin = time.process_time()
        while time.process_time() - begin < 0.02:
            pass
    (wait, slept, idle), (work, wall, cpu) = clock.timings
    assert (wait, work) == ("wait", "work")
    assert slept >= 0.02 > idle and wall >= 0.02 * 0.9 and cpu >= 0.02


def test_a_stage_that_fails_is_not_recorded() -> None:
    clock = Clock()
    with pytest.raises(ValueError, match="x"), clock.stage("broken"):
        raise ValueError("x")
    assert clock.timings == []
