from __future__ import annotations

import time

import pytest

from onnxprune.files.wrongfile import not_a_model


@pytest.mark.parametrize(
    ("data", "message", "hint"),
    [
        (b"version https://git-lfs.github.com/spec/v1", "Git LFS pointer", "git lfs pull"),
        (b"PK\x03\x04" + bytes(30), "PyTorch checkpoint", "torch.onnx.export"),
        (b"\x80\x04\x95" + bytes(30), "pickle", "export"),
        (b"\x1f\x8b\x08" + bytes(30), "gzip", "unpack"),
        (b"\x89HDF\r\n\x1a\n" + bytes(30), "Keras", "tf2onnx"),
        (b"\x1c\0\0\0TFL3" + bytes(30), "TensorFlow Lite", "tf2onnx"),
        (b"\x18\0\0\0ORTM" + bytes(30), ".ort", ".onnx file"),
        (b'\x50\1\0\0\0\0\0\0{"w":' + bytes(30), "safetensors", "export"),
        ("größer\n".encode(), "a text file that starts with 'gr", ""),
        (b"\x08\x08\x3a\x90\x4e" + bytes(100), "truncated: at least 9900 bytes are missing", "again"),
        (b"\x08\x08\x3a\x90", "truncated", "again"),
        (b"\x0f\x00\x01", "damaged one: because", "again"),
    ],
)
def test_says_what_it_is(data: bytes, message: str, hint: str) -> None:
    error = not_a_model(data, "because")
    assert message in str(error)
    assert hint in error.hint


def test_noise_is_judged_quickly() -> None:
    """Tens of millions of tiny fields must not be walked one by one."""
    start = time.perf_counter()
    assert "because" in str(not_a_model(bytes([8, 1]) * 10_000_000, "because"))
    assert time.perf_counter() - start < 2


def test_nesting() -> None:
    assert "nests subgraphs" in str(not_a_model(b"\x08\x08", "Exceeded upb_DecodeOptions_MaxDepth"))
