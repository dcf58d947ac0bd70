"""Run in a process of its own: the ops for CUDA on the CPU provider, with the library that works on the host.

    python device_models.py LIBRARY cuda|cpu < JSON of [{"model": base64, "x": ..., "bfloat16": ...}]

"severity" of an item: what ONNX Runtime logs, by default nothing.

cuda: the session says that it has CUDA, and the ops are registered for the CPU provider.

Prints per model the nodes that ONNX Runtime kept and the output, or the error.
"""

from __future__ import annotations

import base64
import ctypes
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime


def run(library: str, cuda: bool, item: dict[str, Any]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "optimised.onnx")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = item.get("severity", 4)
        options.optimized_model_filepath = str(path)
        try:
            if cuda:
                options.add_session_config_entry("onnxprune.cuda", "1")
            options.register_custom_ops_library(library)
            session = onnxruntime.InferenceSession(
                base64.b64decode(item["model"]), options, providers=["CPUExecutionProvider"]
            )
            kind = np.dtype(ml_dtypes.bfloat16 if item["bfloat16"] else np.float16)
            x = np.asarray(item["x"], np.float32).astype(kind)
            element = onnx.helper.np_dtype_to_tensor_dtype(kind)
            shape = session.get_outputs()[0].shape
            binding = session.io_binding()
            value = onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(x.view(np.uint16), element)
            binding.bind_ortvalue_input("X", value)
            binding.bind_output("Y")
            session.run_with_iobinding(binding)
            # numpy knows no bfloat16, so the bits are read where they are
            found = binding.get_outputs()[0]
            count = int(np.prod(found.shape()))
            y = np.ctypeslib.as_array(
                ctypes.cast(found.data_ptr(), ctypes.POINTER(ctypes.c_uint16)), (count,)
            )
            values = y.view(kind).astype(np.float32).reshape(found.shape()).tolist()
            kept = [node.op_type for node in onnx.load(path).graph.node]
        except Exception as error:
            return {"error": str(error)}
        return {"y": values, "kept": kept, "shape": shape}


if __name__ == "__main__":
    chosen = ctypes.CDLL(sys.argv[1])
    chosen.onnxprune_test_device_provider(b"CPUExecutionProvider")
    print(json.dumps([run(sys.argv[1], sys.argv[2] == "cuda", item) for item in json.load(sys.stdin)]))
