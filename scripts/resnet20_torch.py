"""CIFAR ResNet-20 as a plain torch module with the weights of its ONNX file, for tools that need one.

    scripts/compare_structured MODEL --torch scripts/resnet20_torch.py:make ...

Batch normalisation was folded into the convolutions when the file was exported, so it is not here either.
The shortcuts that halve the image (every second pixel, zeros as new channels) are convolutions of 1x1 with
these ones and zeros as weights: Torch-Pruning takes a padding for an elementwise operation.
"""

from __future__ import annotations

import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from torch.nn import functional as F

WIDTHS, BLOCKS = (16, 32, 64), 3
CLOSE = 1e-5  # of the largest answer


class Block(nn.Module):
    """Two convolutions and a shortcut around them."""

    def __init__(self, before: int, width: int) -> None:
        super().__init__()
        stride = width // before
        self.conv1 = nn.Conv2d(before, width, 3, stride, 1)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1)
        self.shortcut = nn.Identity() if stride == 1 else nn.Conv2d(before, width, 1, stride, bias=False)
        if stride > 1:
            start = (width - before) // 2
            with torch.no_grad():
                self.shortcut.weight.zero_()[start : start + before, :, 0, 0] = torch.eye(before)

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of as many channels as the block is wide."""
        return F.relu(self.conv2(F.relu(self.conv1(x))) + self.shortcut(x))


class ResNet20(nn.Module):
    """Convolution, nine blocks, mean, linear layer: (N, 3, 32, 32) to (N, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, WIDTHS[0], 3, 1, 1)
        before = [WIDTHS[max(0, k - 1) // BLOCKS] for k in range(BLOCKS * len(WIDTHS))]
        blocks = [Block(width, WIDTHS[k // BLOCKS]) for k, width in enumerate(before)]
        self.blocks = nn.Sequential(*blocks)
        self.linear = nn.Linear(WIDTHS[-1], 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        return self.linear(self.blocks(F.relu(self.conv1(x))).mean((2, 3)))


def make(path: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """Return the network of an ONNX file and example inputs.

    Raises:
        ValueError: when the file holds another network, which its answers show.
    """
    model = onnx.load(path)
    arrays = {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}
    weighted = [node for node in model.graph.node if node.op_type in ("Conv", "Gemm")]
    module = ResNet20().eval()
    layers = [
        module.conv1,
        *(c for block in module.blocks for c in (block.conv1, block.conv2)),
        module.linear,
    ]
    if len(layers) != len(weighted):
        raise ValueError(f"{path} has {len(weighted)} products, ResNet-20 has {len(layers)}")
    with torch.no_grad():
        for layer, node in zip(layers, weighted, strict=True):
            layer.weight.copy_(torch.from_numpy(arrays[node.input[1]].copy()))
            layer.bias.copy_(torch.from_numpy(arrays[node.input[2]].copy()))
    example = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    _check(path, module, example)
    return module, (example[:1],)


def _check(path: str, module: nn.Module, example: Tensor) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    wanted = torch.from_numpy(session.run(None, {session.get_inputs()[0].name: example.numpy()})[0])
    with torch.no_grad():
        apart = float((module(example) - wanted).abs().max() / wanted.abs().max())
    if apart > CLOSE:
        raise ValueError(
            f"the torch module answers {apart:.1e} off what {path} answers, {CLOSE:g} is allowed"
        )
