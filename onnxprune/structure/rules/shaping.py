"""Operators that move positions: Reshape and its kin, Transpose, Expand, Tile, DepthToSpace.

Where a Reshape splits an axis with labels, what is left must be rectangular: one of the new axes carries the
removal, and the positions that share an index there go together (attention heads, groups of a channel
shuffle). :mod:`onnxprune.structure.rules.carrier` chooses it by what happens to the axes afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxprune.attributes import attribute, ints, number
from onnxprune.structure.groups import Axis
from onnxprune.structure.labels import SINGLE, Labels
from onnxprune.structure.rules.carrier import choose
from onnxprune.structure.rules.grid import Shape, blocks, only_axis, rows, unfold

Pick = Callable[[list[int], NDArray[np.int64]], int]


def regroup(graph: Labels, axes: Sequence[Axis], old: Shape, new: Shape, pick: Pick) -> list[Axis]:
    """Return the axes of a value of shape ``old`` after it is reshaped to ``new``.

    Args:
        graph: where positions are joined.
        axes: of the value.
        old: its shape.
        new: the other shape.
        pick: chooses which axis carries the removal, given axes of ``new`` and the labels on them.
    """
    done: list[Axis] = [SINGLE] * len(new)
    for left, right in blocks(old, new):
        labelled = [axis for axis in left if not isinstance(axes[axis], str)]
        if len(labelled) > 1:  # positions would go by row and by column
            strong = [axis for axis in labelled if not graph.is_weak(axes[axis])] or labelled
            for axis in labelled:
                if axis != strong[0]:
                    graph.pin(axes[axis], "merged with another axis that can shrink")
            labelled = strong[:1]
        if not labelled:
            for axis in right:
                done[axis] = axes[left[0]]
            continue
        labels = axes[labelled[0]]
        assert not isinstance(labels, str)
        full = unfold(
            labels, left.index(labelled[0]), [old[axis] for axis in left], [new[axis] for axis in right]
        )
        for axis, found in zip(right, _spread(graph, full, right, pick), strict=True):
            done[axis] = found
    return done


def _spread(graph: Labels, full: NDArray[np.int64], right: list[int], pick: Pick) -> list[Axis]:
    """Return the axes of a block whose positions have the labels ``full``."""
    exact = only_axis(full)
    chosen = pick(right, full) if exact is None else exact
    found: list[Axis] = ["it lies beside an axis that carries the units"] * full.ndim
    found[chosen] = graph.tie(rows(full, chosen)) if exact is None else rows(full, chosen)[:, 0].copy()
    return found


def reshape(graph: Labels, node: onnx.NodeProto) -> None:
    """``Reshape``, ``Flatten``, ``Unsqueeze``, ``Squeeze``: the same elements in another shape."""
    source, target = node.input[0], node.output[0]
    graph.write(
        target,
        regroup(
            graph,
            graph.read(source),
            graph.shape(source),
            graph.shape(target),
            lambda axes, full: choose(graph, target, axes, full),
        ),
    )


def transpose(graph: Labels, node: onnx.NodeProto) -> None:
    """``Transpose``: axes change places."""
    axes = graph.read(node.input[0])
    perm = ints(node, "perm", tuple(range(len(axes)))[::-1])
    graph.write(node.output[0], [axes[axis] for axis in perm])


def expand(graph: Labels, node: onnx.NodeProto) -> None:
    """``Expand``: new positions can go if what they are joined with lets them."""
    shape = graph.shape(node.output[0])
    own = graph.shape(node.input[0])
    pad = len(shape) - len(own)
    old = [*[1] * pad, *own]
    axes = [*[SINGLE] * pad, *graph.read(node.input[0])]
    graph.write(
        node.output[0],
        [graph.fresh_weak(n) if m == 1 and n > 1 else a for m, n, a in zip(old, shape, axes, strict=True)],
    )


def constant_of_shape(graph: Labels, node: onnx.NodeProto) -> None:
    """``ConstantOfShape``: all positions are equal, so any can go."""
    graph.write(node.output[0], [graph.fresh_weak(size) for size in graph.shape(node.output[0])])


def tile(graph: Labels, node: onnx.NodeProto) -> None:
    """``Tile``: copies go together."""
    old, new = graph.shape(node.input[0]), graph.shape(node.output[0])
    axes: list[Axis] = []
    for m, n, axis in zip(old, new, graph.read(node.input[0]), strict=True):
        if isinstance(axis, str):
            axes.append(axis if m > 1 or n == 1 else "copies that Tile makes")
        else:
            axes.append(np.tile(axis, n // m))
    graph.write(node.output[0], axes)


def depth_to_space(graph: Labels, node: onnx.NodeProto) -> None:
    """``DepthToSpace``: the channels that become the pixels of one channel go together."""
    x, shape = graph.read(node.input[0]), graph.shape(node.input[0])
    size = int(number(node, "blocksize", 1)) ** 2
    for axis in x[2:]:
        graph.pin(axis, "pixels")
    channels = x[1]
    if not isinstance(channels, str):
        if attribute(node, "mode", "DCR") == "DCR":
            pixels = channels.reshape(size, shape[1] // size).T
        else:
            pixels = channels.reshape(shape[1] // size, size)
        channels = graph.tie(pixels)
    graph.write(node.output[0], [x[0], channels, "pixels", "pixels"])


def space_to_depth(graph: Labels, node: onnx.NodeProto) -> None:
    """``SpaceToDepth``: each channel becomes several, block by block."""
    x = graph.read(node.input[0])
    for axis in x[2:]:
        graph.pin(axis, "pixels")
    size = int(number(node, "blocksize", 1)) ** 2
    channels = x[1] if isinstance(x[1], str) else np.tile(x[1], size)
    graph.write(node.output[0], [x[0], channels, "pixels", "pixels"])
