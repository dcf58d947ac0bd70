"""What a file is when it is no ONNX model: the most useful sentence of a failed load."""

from __future__ import annotations

from onnxprune.errors import ModelError
from onnxprune.files.tensors import show

_MAX_FIELDS = 100_000  # at the top level of a message; real models have tens, noise must not cost minutes
_WRONG_FILES = (  # offset, first bytes, what it is, what to do
    (0, b"version https://git-lfs", "a Git LFS pointer, not the model itself", "run: git lfs pull"),
    (0, b"PK\x03\x04", "a zip archive or a PyTorch checkpoint", "export it with torch.onnx.export"),
    (0, b"\x80", "a Python pickle", "export the model to ONNX"),
    (0, b"\x1f\x8b", "gzip-compressed", "unpack it first"),
    (0, b"\x89HDF", "an HDF5 (Keras) file", "convert it with tf2onnx"),
    (4, b"TFL3", "a TensorFlow Lite model", "convert it with tf2onnx"),
    (4, b"ORTM", "in ONNX Runtime's own format (.ort)", "use the .onnx file it was made from"),
    (8, b'{"', "a safetensors file", "export the model to ONNX"),
)


def not_a_model(data: bytes, reason: str) -> ModelError:
    """Say in words what is wrong with bytes that are no model."""
    for offset, magic, what, hint in _WRONG_FILES:
        if data.startswith(magic, offset):
            return ModelError(f"not an ONNX model: the file is {what}", hint)
    head = data[:512]
    if all(byte >= 32 or byte in b"\t\r\n\f" for byte in head):
        return ModelError(
            f"not an ONNX model: a text file that starts with {show(head[:40].decode('latin1'))}"
        )
    missing = _missing_bytes(data)
    if missing:
        return ModelError(
            f"the file is truncated: at least {missing} bytes are missing", "copy or download it again"
        )
    if "depth" in reason.lower():
        return ModelError("the file nests subgraphs deeper than protobuf reads")
    return ModelError(f"not an ONNX model, or a damaged one: {reason}", "copy or download it again")


def _missing_bytes(data: bytes) -> int:
    """Return how many bytes the top-level fields of a protobuf message promise beyond its end."""
    position = 0
    for _ in range(_MAX_FIELDS):
        if position >= len(data):
            return position - len(data)
        try:
            tag, position = _varint(data, position)
            kind = tag & 7
            if kind == 0:
                _, position = _varint(data, position)
            elif kind == 2:
                length, position = _varint(data, position)
                position += length
            elif kind in (1, 5):
                position += 8 if kind == 1 else 4
            else:
                return 0
        except IndexError:
            return 1
    return 0


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """Return the base-128 number at ``position`` and the position after it."""
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128 or shift > 63:
            return value, position
