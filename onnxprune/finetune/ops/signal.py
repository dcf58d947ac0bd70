"""Fourier transforms and windows."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from onnxprune.finetune.dtypes import torch_dtype
from onnxprune.finetune.ops.common import at
from onnxprune.finetune.registry import op


@op(17, name="DFT", host=(1,))
def DFT_17(
    x: Tensor, dft_length: Tensor | None = None, *, axis: int = 1, inverse: int = 0, onesided: int = 0
) -> Tensor:
    return _dft(x, dft_length, axis, inverse, onesided)


@op(20, host=(1, 2))
def DFT(
    x: Tensor,
    dft_length: Tensor | None = None,
    axis: Tensor | None = None,
    *,
    inverse: int = 0,
    onesided: int = 0,
) -> Tensor:
    return _dft(x, dft_length, -2 if axis is None else int(axis.item()), inverse, onesided)


def _dft(x: Tensor, dft_length: Tensor | None, axis: int, inverse: int, onesided: int) -> Tensor:
    axis = at(axis, x.ndim)
    length = None if dft_length is None else int(dft_length.item())
    signal = _complex(x)
    if inverse and onesided:
        real: Tensor = torch.fft.irfft(signal, length, axis)
        return real.unsqueeze(-1)
    spectrum = (torch.fft.ifft if inverse else torch.fft.fft)(signal, length, axis)
    if onesided:
        spectrum = spectrum.narrow(axis, 0, spectrum.shape[axis] // 2 + 1)
    return torch.view_as_real(spectrum)


def _complex(x: Tensor) -> Tensor:
    return torch.view_as_complex(x.contiguous()) if x.shape[-1] == 2 else x.squeeze(-1)


@op(17, host=(1, 3))
def STFT(
    signal: Tensor,
    frame_step: Tensor,
    window: Tensor | None = None,
    frame_length: Tensor | None = None,
    *,
    onesided: int = 1,
) -> Tensor:
    length = int(frame_length.item()) if frame_length is not None else signal.shape[1]
    length = window.shape[0] if frame_length is None and window is not None else length
    frames = (_complex(signal) if signal.ndim == 3 else signal).unfold(1, length, int(frame_step.item()))
    frames = frames if window is None else frames * window
    spectrum = torch.fft.fft(frames)
    if onesided:
        spectrum = spectrum.narrow(2, 0, length // 2 + 1)
    return torch.view_as_real(spectrum)


@op(17, host=(0,))
def HannWindow(size: Tensor, *, output_datatype: int = 1, periodic: int = 1) -> Tensor:
    return _window(size, (0.5, -0.5, 0.0), output_datatype, periodic)


@op(17, host=(0,))
def HammingWindow(size: Tensor, *, output_datatype: int = 1, periodic: int = 1) -> Tensor:
    return _window(size, (25 / 46, -21 / 46, 0.0), output_datatype, periodic)


@op(17, host=(0,))
def BlackmanWindow(size: Tensor, *, output_datatype: int = 1, periodic: int = 1) -> Tensor:
    return _window(size, (0.42, -0.5, 0.08), output_datatype, periodic)


def _window(size: Tensor, terms: tuple[float, float, float], code: int, periodic: int) -> Tensor:
    count = int(size.item())
    angle = torch.arange(count, dtype=torch.float64) * (
        2 * math.pi / max(count if periodic else count - 1, 1)
    )
    return (terms[0] + terms[1] * angle.cos() + terms[2] * (2 * angle).cos()).to(torch_dtype(code))
