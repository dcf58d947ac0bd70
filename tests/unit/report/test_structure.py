"""Groups on the terminal."""

from __future__ import annotations

import io

from rich.console import Console

from onnxprune.inspection import GroupInfo, StructureInfo
from onnxprune.report.structure import render_structure
from onnxprune.structure.groups import Pinned


def shown(found: StructureInfo) -> str:
    stream = io.StringIO()
    render_structure(Console(file=stream, width=100), found)
    return stream.getvalue()


def test_groups_and_what_is_pinned() -> None:
    groups = (
        GroupInfo("first", "channel", 8, 1234, ("w0", "b0", "w1")),
        GroupInfo("second", "head", 4, 99, ("w2",)),
    )
    text = shown(StructureInfo(groups, (Pinned("last", "neuron", 10, "it is an output"),), 2000, 1000))
    lines = text.splitlines()
    assert any("first" in line and "channel" in line and "w0 and 2 more" in line for line in lines)
    assert any("second" in line and line.rstrip().endswith("w2") for line in lines)
    assert any("last" in line and "10" in line and "it is an output" in line for line in lines)
    assert lines[-1] == "2 groups of units that can be removed hold 50.0 % of the weights"


def test_a_single_group() -> None:
    text = shown(StructureInfo((GroupInfo("only", "channel", 8, 10, ("w0",)),), (), 20, 10))
    assert text.splitlines()[-1] == "1 group of units that can be removed holds 50.0 % of the weights"


def test_nothing() -> None:
    assert (
        shown(StructureInfo((), (), 0, 0))
        == "0 groups of units that can be removed hold none of the weights\n"
    )
