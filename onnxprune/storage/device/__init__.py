"""Layouts of the CUDA kernels: one file each. arrays in, tensors as the device reads them, and back.

Custom ops on ONNX Runtime's CUDA provider cannot repack a weight when a session is made, so the file holds
what the kernel of ``ort_ops/cuda`` reads. To add one: a file with a class like
:class:`onnxprune.storage.device.bitmap_tile.BitmapTile`, a line in ``LAYOUTS``, a test file, and the kernel.
"""

from __future__ import annotations

from onnxprune.storage.device.bitmap_tile import BitmapTile
from onnxprune.storage.device.block_sparse import BlockSparse
from onnxprune.storage.device.delta import Delta
from onnxprune.storage.device.layout import Layout
from onnxprune.storage.device.nm_tile import NMTile

LAYOUTS: dict[str, Layout] = {
    layout.name: layout
    for layout in (BitmapTile(), BitmapTile(int8=True), BlockSparse(64), BlockSparse(32), NMTile(), Delta())
}
