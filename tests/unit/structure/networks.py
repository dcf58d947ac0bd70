"""Networks with the dependencies that make structured pruning hard, small, with random weights."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.unit.finetune.architectures import ARCHITECTURES, RMSNorm, SqueezeExcite, conv_bn

Made = tuple[nn.Module, tuple[Tensor, ...]]
NETWORKS: dict[str, Callable[[], Made]] = {}


def network(function: Callable[[], Made]) -> Callable[[], Made]:
    NETWORKS[function.__name__] = function
    return function


def image(size: int = 16) -> tuple[Tensor, ...]:
    return (torch.randn(2, 3, size, size),)


def head(channels: int) -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 5))


class Add(nn.Module):
    """A residual block around ``body``."""

    def __init__(self, *body: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(*body)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


@network
def resnext() -> Made:
    block = Add(conv_bn(8, 12, 1), nn.ReLU(), conv_bn(12, 12, 3, 1, 6), nn.ReLU(), conv_bn(12, 8, 1))
    return nn.Sequential(conv_bn(3, 8), nn.ReLU(), block, nn.ReLU(), head(8)), image()


@network
def wide_groups() -> Made:
    block = Add(conv_bn(8, 12, 1), nn.ReLU(), conv_bn(12, 12, 3, 1, 2), nn.ReLU(), conv_bn(12, 8, 1))
    return nn.Sequential(conv_bn(3, 8), nn.ReLU(), block, nn.ReLU(), head(8)), image()


@network
def se_resnet() -> Made:
    block = Add(conv_bn(8, 12), nn.ReLU(), SqueezeExcite(12), conv_bn(12, 8), SqueezeExcite(8))
    return nn.Sequential(conv_bn(3, 8), block, nn.ReLU(), head(8)), image()


@network
def group_norm_resnet() -> Made:
    block = Add(nn.Conv2d(8, 12, 3, 1, 1), nn.GroupNorm(4, 12), nn.ReLU(), nn.Conv2d(12, 8, 1))
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(4, 8), block, head(8)), image()


@network
def efficientnet() -> Made:
    def inverted(inputs: int, outputs: int, stride: int) -> nn.Sequential:
        wide = 3 * inputs
        return nn.Sequential(
            conv_bn(inputs, wide, 1), nn.SiLU(), conv_bn(wide, wide, 5, stride, wide), nn.SiLU(),
            SqueezeExcite(wide), conv_bn(wide, outputs, 1),
        )  # fmt: skip

    body = (inverted(4, 6, 2), Add(inverted(6, 6, 1)), inverted(6, 8, 2))
    return nn.Sequential(conv_bn(3, 4), nn.SiLU(), *body, conv_bn(8, 12, 1), head(12)), image()


class DenseLayer(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm, self.wide = conv_bn(channels, channels, 1)[1], conv_bn(channels, 8, 1)
        self.conv = nn.Conv2d(8, 4, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.conv(F.relu(self.wide(F.relu(self.norm(x)))))], 1)


@network
def densenet_transition() -> Made:
    body = (nn.Conv2d(3, 6, 3), DenseLayer(6), DenseLayer(10), nn.Conv2d(14, 7, 1), nn.AvgPool2d(2))
    return nn.Sequential(*body, DenseLayer(7), DenseLayer(11), head(15)), image()


class ShuffleUnit(nn.Module):
    def __init__(self, channels: int, down: bool) -> None:
        super().__init__()
        half, self.down = channels if down else channels // 2, down
        stride = 2 if down else 1
        self.right = nn.Sequential(
            conv_bn(half, 8, 1), nn.ReLU(), conv_bn(8, 8, 3, stride, 8), conv_bn(8, 8, 1), nn.ReLU()
        )
        self.left = nn.Sequential(conv_bn(half, half, 3, 2, half), conv_bn(half, 8, 1), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        left, right = (x, x) if self.down else x.chunk(2, 1)
        y = torch.cat([self.left(left) if self.down else left, self.right(right)], 1)
        n, c, h, w = y.shape
        return y.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


@network
def shufflenet_v2() -> Made:
    units = (ShuffleUnit(6, True), ShuffleUnit(16, False), ShuffleUnit(16, False))
    return nn.Sequential(conv_bn(3, 6), nn.ReLU(), *units, conv_bn(16, 10, 1), head(10)), image()


class UNetLevels(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = conv_bn(3, 4), conv_bn(4, 6), conv_bn(6, 8)
        self.up1, self.up2 = nn.ConvTranspose2d(8, 6, 2, 2), nn.ConvTranspose2d(6, 4, 2, 2)
        self.d, self.e, self.out = conv_bn(12, 6), conv_bn(8, 4), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = F.relu(self.a(x))
        b = F.relu(self.b(F.max_pool2d(a, 2)))
        c = F.relu(self.c(F.max_pool2d(b, 2)))
        d = F.relu(self.d(torch.cat([self.up1(c), b], 1)))
        return self.out(F.relu(self.e(torch.cat([self.up2(d), a], 1))))


@network
def unet_levels() -> Made:
    return UNetLevels(), image()


class Inception(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.three, self.pool = nn.Conv2d(6, 4, 1), nn.Conv2d(6, 5, 3, 1, 1), nn.Conv2d(6, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.pool(F.max_pool2d(x, 3, 1, 1))
        return torch.cat([F.relu(self.one(x)), F.relu(self.three(x)), pooled], 1)


@network
def inception() -> Made:
    return nn.Sequential(nn.Conv2d(3, 6, 3), Inception(), nn.PReLU(12), nn.Conv2d(12, 6, 1), head(6)), image()


class Mixer(nn.Module):
    """An MLP over tokens, then one over channels."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Sequential(nn.Linear(16, 10), nn.GELU(), nn.Linear(10, 16))
        self.channels = nn.Sequential(nn.Linear(8, 12), nn.GELU(), nn.Linear(12, 8))
        self.norm = nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(2).transpose(1, 2)
        x = x + self.tokens(self.norm(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channels(self.norm(x))


@network
def mixer() -> Made:
    return nn.Sequential(nn.Conv2d(3, 8, 4, 4), Mixer(), nn.Linear(8, 5)), image()


class ConvNext(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.depthwise, self.norm = nn.Conv2d(8, 8, 3, 1, 1, groups=8), nn.LayerNorm(8)
        self.up, self.down, self.scale = nn.Linear(8, 14), nn.Linear(14, 8), nn.Parameter(torch.rand(8))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        return x + (self.scale * self.down(F.gelu(self.up(y)))).permute(0, 3, 1, 2)


@network
def convnext() -> Made:
    return nn.Sequential(nn.Conv2d(3, 8, 2, 2), ConvNext(), ConvNext(), head(8)), image()


class ResponseNorm(nn.Module):
    """ConvNeXt V2: each channel's norm over the mean of all."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.rand(width)), nn.Parameter(torch.rand(width))

    def forward(self, x: Tensor) -> Tensor:
        norms = torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True)
        return self.scale * (x * (norms / (norms.mean(-1, keepdim=True) + 0.1))) + self.shift + x


class ConvNextV2(ConvNext):
    def __init__(self) -> None:
        super().__init__()
        self.response = ResponseNorm(14)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        return x + self.down(self.response(F.gelu(self.up(y)))).permute(0, 3, 1, 2)


@network
def convnext_v2() -> Made:
    return nn.Sequential(nn.Conv2d(3, 8, 2, 2), ConvNextV2(), head(8)), image()


class ResMlp(nn.Module):
    """Scale and shift in place of norms; tokens are mixed by a convolution with a window of one."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.up, self.down = nn.Conv1d(16, 16, 1), nn.Linear(8, 12), nn.Linear(12, 8)
        self.scale, self.shift = nn.Parameter(torch.rand(8)), nn.Parameter(torch.rand(8))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.tokens(x * self.scale + self.shift)
        return x + self.down(F.gelu(self.up(x * self.scale + self.shift)))


@network
def res_mlp() -> Made:
    layers = (nn.Linear(6, 8), ResMlp(), ResMlp(), nn.Linear(8, 5))
    return nn.Sequential(*layers), (torch.randn(2, 16, 6),)


class Generator(nn.Module):
    """Pictures from numbers: a vector that becomes channels, which grow."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.conv, self.last = nn.Linear(5, 96), nn.Conv2d(6, 8, 3, 1, 1), nn.Conv2d(8, 3, 1)
        self.scale = nn.Parameter(torch.rand(8, 1, 1))

    def forward(self, z: Tensor) -> Tensor:
        x = F.interpolate(F.leaky_relu(self.first(z)).view(-1, 6, 2, 8), scale_factor=2.0)
        x = F.leaky_relu(self.conv(x))
        return self.last(self.scale * x * torch.rsqrt(x.pow(2).mean(1, keepdim=True) + 0.1))


@network
def generator() -> Made:
    return Generator(), (torch.randn(2, 5),)


@network
def cosine_classifier() -> Made:
    class Cosine(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.normalize(x)

    body = (nn.Conv2d(3, 6, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 8))
    return nn.Sequential(*body, Cosine(), nn.Linear(8, 4, bias=False)), image()


class WindowAttention(nn.Module):
    """Swin: windows go to the batch, queries, keys and values are one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(12, 36), nn.Linear(12, 12)
        self.bias = nn.Parameter(torch.randn(3, 16, 16))

    def forward(self, x: Tensor) -> Tensor:
        n, h, w, c = x.shape
        y = x.view(n, h // 4, 4, w // 4, 4, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, 16, c)
        q, k, v = self.qkv(y).view(-1, 16, 3, 3, 4).permute(2, 0, 3, 1, 4).unbind(0)
        p = ((q * 0.5) @ k.transpose(-2, -1) + self.bias).softmax(-1)
        y = self.out((p @ v).transpose(1, 2).reshape(-1, 16, 12))
        y = y.view(n, h // 4, w // 4, 4, 4, c).permute(0, 1, 3, 2, 4, 5).reshape(n, h, w, c)
        return x + y


@network
def swin() -> Made:
    return WindowAttention(), (torch.randn(2, 8, 8, 12),)


class Layer(nn.Module):
    """A decoder layer: RMS norms, rotary positions, grouped keys and values, SwiGLU."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = RMSNorm(12), RMSNorm(12)
        self.q, self.k, self.v = (nn.Linear(12, n, bias=False) for n in (16, 8, 8))
        self.o = nn.Linear(16, 12, bias=False)
        self.gate, self.up, self.down = nn.Linear(12, 20), nn.Linear(12, 20), nn.Linear(20, 12)

    def turn(self, x: Tensor) -> Tensor:
        angle = torch.arange(x.shape[2])[:, None] * torch.tensor([1.0, 0.1])
        cos, sin = torch.cat([angle.cos()] * 2, -1), torch.cat([angle.sin()] * 2, -1)
        a, b = x.chunk(2, -1)
        return x * cos + torch.cat([-b, a], -1) * sin

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        q, k, v = (f(y).unflatten(-1, (-1, 4)).transpose(1, 2) for f in (self.q, self.k, self.v))
        q, k = self.turn(q), self.turn(k)
        k, v = (t[:, :, None].expand(-1, -1, 2, -1, -1).flatten(1, 2) for t in (k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o(y.transpose(1, 2).flatten(2))
        y = self.second(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class NormedHeads(Layer):
    """As in Qwen 3: each head of queries and keys has its norm. As in OLMo 2: all of them have one."""

    def __init__(self, alone: bool) -> None:
        super().__init__()
        self.alone = alone
        self.q_norm, self.k_norm = RMSNorm(4 if alone else 16), RMSNorm(4 if alone else 8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        q, k, v = self.q(y), self.k(y), self.v(y)
        if not self.alone:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = (f.unflatten(-1, (-1, 4)) for f in (q, k, v))
        if self.alone:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = (f.transpose(1, 2) for f in (q, k, v))
        k, v = (t[:, :, None].expand(-1, -1, 2, -1, -1).flatten(1, 2) for t in (k, v))
        y = F.scaled_dot_product_attention(self.turn(q), self.turn(k), v)
        x = x + self.o(y.transpose(1, 2).flatten(2))
        y = self.second(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class Decoder(nn.Module):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.words, self.layers, self.norm = nn.Embedding(18, 12), nn.Sequential(*layers), RMSNorm(12)
        self.head = nn.Linear(12, 18, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.norm(self.layers(self.words(tokens))))


@network
def decoder() -> Made:
    return Decoder(Layer(), Layer()), (torch.randint(0, 18, (2, 6)),)


@network
def decoder_normed_heads() -> Made:
    return Decoder(NormedHeads(True), NormedHeads(False)), (torch.randint(0, 18, (2, 6)),)


class CrossAttention(nn.Module):
    """torch's encoder and decoder layers, the second with attention to what the first makes."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoderLayer(12, 3, 20, 0.0, batch_first=True)
        self.decoder = nn.TransformerDecoderLayer(12, 3, 16, 0.0, batch_first=True)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.decoder(y, self.encoder(x))


@network
def cross_attention() -> Made:
    return CrossAttention(), (torch.randn(2, 5, 12), torch.randn(2, 4, 12))


class Stack(nn.Module):
    """Convolution, recurrent layers, and a head on the last state."""

    def __init__(self, layer: nn.Module, width: int) -> None:
        super().__init__()
        self.conv, self.layer, self.head = nn.Conv1d(4, 6, 3), layer, nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.layer(F.relu(self.conv(x)).transpose(1, 2))
        return self.head(y[:, -1])


def randomized(layer: nn.Module) -> nn.Module:
    for weight in layer.parameters():
        nn.init.uniform_(weight, -0.6, 0.6)
    return layer


@network
def crnn() -> Made:
    layer = nn.LSTM(6, 7, 2, batch_first=True, bidirectional=True)
    return Stack(randomized(layer), 14), (torch.randn(2, 4, 9),)


@network
def gru_stack() -> Made:
    return Stack(randomized(nn.GRU(6, 7, 2, batch_first=True)), 7), (torch.randn(2, 4, 9),)


@network
def mlp() -> Made:
    layers = (nn.Linear(6, 10), nn.ReLU(), nn.BatchNorm1d(10), nn.Linear(10, 9), nn.Tanh(), nn.Linear(9, 4))
    return nn.Sequential(*layers), (torch.randn(3, 6),)


@network
def conv_to_flat() -> Made:
    layers = (nn.Conv2d(3, 6, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(294, 8), nn.ReLU(), nn.Linear(8, 4))
    return nn.Sequential(*layers), image()


@network
def conv3d_residual() -> Made:
    block = Add(nn.Conv3d(4, 6, 3, 1, 1), nn.BatchNorm3d(6), nn.ReLU(), nn.Conv3d(6, 4, 1))
    return nn.Sequential(nn.Conv3d(1, 4, 2), block, nn.AvgPool3d(2), nn.Flatten(), nn.Linear(32, 3)), (
        torch.randn(2, 1, 5, 5, 5),
    )


ALL = {**ARCHITECTURES, **NETWORKS}
