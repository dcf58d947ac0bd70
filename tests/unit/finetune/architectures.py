"""Small networks of the kinds that people export, with random weights and inputs."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Made = tuple[nn.Module, tuple[Tensor, ...]]
ARCHITECTURES: dict[str, Callable[[], Made]] = {}


def architecture(function: Callable[[], Made]) -> Callable[[], Made]:
    ARCHITECTURES[function.__name__] = function
    return function


def conv_bn(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    norm = nn.BatchNorm2d(outputs)
    nn.init.uniform_(norm.running_mean, -0.5, 0.5)
    nn.init.uniform_(norm.running_var, 0.5, 1.5)
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    nn.init.uniform_(norm.bias, -0.5, 0.5)
    return nn.Sequential(conv, norm)


def image(channels: int = 3, size: int = 16) -> tuple[Tensor, ...]:
    return (torch.randn(2, channels, size, size),)


class Residual(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first, self.second = conv_bn(inputs, outputs, 3, stride), conv_bn(outputs, outputs)
        self.short = conv_bn(inputs, outputs, 1, stride) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.second(F.relu(self.first(x))) + self.short(x))


@architecture
def resnet() -> Made:
    return nn.Sequential(
        conv_bn(3, 8), nn.ReLU(), nn.MaxPool2d(3, 2, 1), Residual(8, 8, 1), Residual(8, 12, 2),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 5),
    ), image()  # fmt: skip


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(channels, 4, 1), nn.Conv2d(4, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * F.hardsigmoid(self.up(F.relu(self.down(x.mean((2, 3), keepdim=True)))))


class Inverted(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            conv_bn(channels, 2 * channels, 1),
            nn.Hardswish(),
            conv_bn(2 * channels, 2 * channels, 5, 1, 2 * channels),
            SqueezeExcite(2 * channels),
            nn.SiLU(),
            conv_bn(2 * channels, channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


@architecture
def mobilenet() -> Made:
    return nn.Sequential(
        conv_bn(3, 6, 3, 2), nn.ReLU6(), Inverted(6), nn.AvgPool2d(2), nn.Flatten(), nn.Dropout(0.2),
        nn.Linear(96, 4), nn.LogSoftmax(-1),
    ), image()  # fmt: skip


class Dense(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(channels), nn.Conv2d(channels, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.conv(F.elu(self.norm(x)))], 1)


@architecture
def densenet() -> Made:
    head = nn.Sequential(nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False), nn.Flatten(1))
    return nn.Sequential(Dense(3), Dense(7), nn.Conv2d(11, 3, 1), head, nn.Linear(243, 3)), image()


class Shuffle(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.start = conv_bn(3, 8, 3, 2)
        self.branch = nn.Sequential(conv_bn(4, 4, 1), nn.LeakyReLU(0.1), conv_bn(4, 4, 3, 1, 4))

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.start(x).chunk(2, 1)
        y = torch.cat([left, self.branch(right)], 1)
        n, c, h, w = y.shape
        y = y.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return y.mean([2, 3])


@architecture
def shufflenet() -> Made:
    return Shuffle(), image()


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down, self.inner = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.up, self.out = nn.ConvTranspose2d(6, 6, 2, 2), nn.Conv2d(12, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = F.gelu(self.down(x))
        b = F.max_pool2d(a, 2)
        b = self.up(torch.tanh(self.inner(b)))
        return self.out(torch.cat([a, b], 1)).sigmoid()


@architecture
def unet() -> Made:
    return UNet(), image()


class Pyramid(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fine, self.coarse = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, 2, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a = self.fine(x)
        b = self.coarse(F.pad(a, (1, 1, 1, 1), mode="reflect"))
        near = F.interpolate(b, scale_factor=2.0, mode="nearest")
        smooth = F.interpolate(b, size=(13, 15), mode="bilinear", align_corners=False)
        return near, F.interpolate(smooth, size=(7, 7), mode="bilinear", align_corners=True)


@architecture
def pyramid() -> Made:
    return Pyramid(), image()


class Decoder(nn.Module):
    """Transposed convolutions and the normalisations that generators use."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(4, 6, 3, 2, 1, output_padding=1)
        self.group, self.instance = nn.GroupNorm(3, 6), nn.InstanceNorm2d(6, affine=True)
        self.act = nn.PReLU(6)
        self.out = nn.ConvTranspose2d(6, 3, 4, 2, 1, groups=3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.out(self.act(self.instance(self.group(self.up(x))))))


@architecture
def generator() -> Made:
    return Decoder(), (torch.randn(2, 4, 5, 5),)


@architecture
def pixel_shuffle() -> Made:
    return nn.Sequential(
        nn.Conv2d(3, 16, 5, padding=2), nn.Softplus(), nn.PixelShuffle(2), nn.ZeroPad2d((1, 0, 2, 1)),
        nn.Conv2d(4, 8, 3, stride=2, dilation=2), nn.Mish(),
    ), image(3, 8)  # fmt: skip


@architecture
def conv1d() -> Made:
    return nn.Sequential(
        nn.Conv1d(2, 8, 7, 2, 3), nn.GELU(), nn.MaxPool1d(3, 2), nn.Conv1d(8, 8, 3, groups=8), nn.GLU(1),
        nn.AdaptiveMaxPool1d(1), nn.Flatten(), nn.Linear(4, 3),
    ), (torch.randn(2, 2, 40),)  # fmt: skip


@architecture
def conv3d() -> Made:
    return nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.ReLU(), nn.AvgPool3d(2), nn.Conv3d(4, 2, 2)), (
        torch.randn(1, 1, 6, 6, 6),
    )


class ViT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 16, 4, 4)
        self.token, self.place = nn.Parameter(torch.randn(1, 1, 16)), nn.Parameter(torch.randn(1, 17, 16))
        self.layer = nn.TransformerEncoderLayer(16, 2, 24, 0.0, "gelu", batch_first=True, norm_first=True)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.patch(x).flatten(2).transpose(1, 2)
        y = torch.cat([self.token.expand(y.shape[0], -1, -1), y], 1) + self.place
        return self.head(self.layer(y)[:, 0])


@architecture
def vit() -> Made:
    return ViT(), image()


class Attention(nn.Module):
    def __init__(self, width: int, heads: int, groups: int, causal: bool) -> None:
        super().__init__()
        self.heads, self.groups, self.causal, self.size = heads, groups, causal, width // heads
        self.q, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * groups * self.size)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        n, length, width = x.shape
        q = self.q(x).view(n, length, self.heads, self.size).transpose(1, 2)
        k, v = (
            t.reshape(n, length, self.groups, self.size)
            .transpose(1, 2)
            .repeat_interleave(self.heads // self.groups, 1)
            for t in self.kv(x).chunk(2, -1)
        )
        score = q @ k.transpose(-1, -2) / self.size**0.5
        if self.causal:
            future = torch.triu(torch.ones(length, length, dtype=torch.bool), 1)
            score = score.masked_fill(future, float("-inf"))
        if mask is not None:
            score = score + (1.0 - mask[:, None, None].to(score.dtype)) * -10000.0
        return self.out((score.softmax(-1) @ v).transpose(1, 2).reshape(n, length, width))


class Bert(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(20, 16), nn.Embedding(12, 16)
        self.attention, self.norm = Attention(16, 4, 4, False), nn.LayerNorm(16)
        self.up, self.down, self.last = nn.Linear(16, 24), nn.Linear(24, 16), nn.LayerNorm(16)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        x = self.words(tokens) + self.places(torch.arange(tokens.shape[1]))
        x = self.norm(x + self.attention(x, mask))
        return self.last(x + self.down(F.gelu(self.up(x))))


@architecture
def bert() -> Made:
    return Bert(), (torch.randint(0, 20, (2, 7)), torch.tensor([[1] * 7, [1] * 4 + [0] * 3]))


class RMSNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.scale


class Llama(nn.Module):
    """Grouped keys and values, a gated feed-forward layer, and an output tied to the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(20, 16)
        self.attention = Attention(16, 4, 2, True)
        self.first, self.second, self.last = RMSNorm(16), RMSNorm(16), RMSNorm(16)
        self.gate, self.up, self.down = nn.Linear(16, 24), nn.Linear(16, 24), nn.Linear(24, 16)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.words(tokens)
        x = x + self.attention(self.first(x))
        y = self.second(x)
        x = x + self.down(F.silu(self.gate(y)) * self.up(y))
        return self.last(x) @ self.words.weight.t()


@architecture
def llama() -> Made:
    return Llama(), (torch.randint(0, 20, (2, 6)),)


class FusedAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(16, 48)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.view(2, 5, 4, 4).transpose(1, 2) for t in self.qkv(x).split(16, -1))
        return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(2, 5, 16)


@architecture
def fused_attention() -> Made:
    return FusedAttention(), (torch.randn(2, 5, 16),)


@architecture
def encoder() -> Made:
    layer = nn.TransformerEncoderLayer(16, 2, 24, 0.0, batch_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), (torch.randn(2, 5, 16),)


@architecture
def lstm() -> Made:
    return Recurrent(nn.LSTM(6, 8, 2, batch_first=True, bidirectional=True), 16), (torch.randn(2, 5, 6),)


@architecture
def gru() -> Made:
    return Recurrent(nn.GRU(6, 8, batch_first=True), 8), (torch.randn(2, 5, 6),)


@architecture
def rnn() -> Made:
    return Recurrent(nn.RNN(6, 8, batch_first=True), 8), (torch.randn(2, 5, 6),)


class Recurrent(nn.Module):
    def __init__(self, layer: nn.Module, width: int) -> None:
        super().__init__()
        self.layer, self.head = layer, nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x)[0])


class Mixture(nn.Module):
    """Operators on indices and positions."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.mix = nn.Parameter(torch.randn(9, 6)), nn.Linear(6, 6)

    def forward(self, x: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        rows = self.table[index]
        y = self.mix(rows) * x[:, :1]
        top, where = y.topk(3, -1)
        picked = y.gather(-1, where.flip(-1))
        hot = F.one_hot(where[..., 0], 6).to(y.dtype)
        z = torch.where(y > 0, y, y.cumsum(-1)) + hot
        z = torch.cat([z, picked, top], -1).clamp(-2, 2)
        return torch.einsum("bij,bkj->bik", z, z), z.std(-1) + z.amax(1, keepdim=True).norm(dim=-1)


@architecture
def mixture() -> Made:
    return Mixture(), (torch.randn(2, 4, 6), torch.tensor([[0, 8, 3, 3], [1, 2, 7, 5]]))
