"""Storage forms: one file each. Arrays in, small tensors out, and the way back in numpy and in ONNX.

To add one: a file with a class like :class:`onnxprune.storage.bitmap.Bitmap`, a line in ``FORMS``, a
test file. The functions for MatMul, Gemm, Conv and everything else follow from its ``body``.
"""

from __future__ import annotations

from onnxprune.storage.bitmap import Bitmap
from onnxprune.storage.form import Form
from onnxprune.storage.gaps import Gaps

# No prefix may begin with another. Where a model has no reason to prefer one, the first wins.
FORMS: dict[str, Form] = {form.name: form for form in (Gaps(8), Gaps(4), Bitmap())}
