"""Other tools that make models smaller, for scripts/compare_structured.py, each in its own environment.

ONNXSIM_PYTHON and TORCH_PRUNING_PYTHON are interpreters with them: scripts/compare_structured makes both.
"""

from __future__ import annotations

import json
import os
import subprocess
import textwrap
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).parent
ONNXSIM = {
    "onnxsim structured": "onnxsim.apply_structured_pruning(m, sparsity=s, global_sparsity=True)",
    "onnxsim structured Wanda": (
        "onnxsim.apply_structured_wanda_pruning(m, calibration_data=d, sparsity=s, global_sparsity=True)"
    ),
    "onnxsim structured Wanda + finetune": (
        "onnxsim.apply_pruning_finetune(m, onnxsim.apply_structured_wanda_pruning("
        "m, calibration_data=d, sparsity=s, global_sparsity=True), calibration_data=d)"
    ),
    "onnxsim heads": "onnxsim.apply_attention_head_pruning(m, sparsity=s)",
}
# How scripts/torch_pruning_peer.py names them; the criterion that is trained is chosen on the command line
TORCH_PRUNING = [
    f"{criterion}-{scope}-{way}"
    for way in ("oneshot", "iterative")
    for scope in ("global", "uniform")
    for criterion in ("magnitude", "taylor", "hessian")
]
_TRIES = 4  # sparsities that onnxsim is given to come near the multiplications wanted


def onnxsim(call: str, factor: float, folder: Path, less: Callable[[Path], float]) -> str:
    """Leave onnxsim's model as ``peer.onnx``; return its error.

    Args:
        call: one of :data:`ONNXSIM`.
        factor: times fewer multiplications, about.
        folder: with ``plain.onnx`` and the samples as ``feed*.npz``.
        less: tells how many times fewer multiplications a file has.
    """
    low, high, error = 0.0, 1.0, ""
    output = folder / "peer.onnx"
    output.unlink(missing_ok=True)
    for _ in range(_TRIES):
        sparsity = (low + high) / 2
        code = f"""
            import glob, numpy, onnx, onnxsim
            s, m = {sparsity}, onnx.load({str(folder / "plain.onnx")!r})
            d = [dict(numpy.load(f)) for f in sorted(glob.glob({str(folder / "feed*.npz")!r}))]
            onnx.save({call}, {str(output)!r})
        """
        _, error = done([os.environ["ONNXSIM_PYTHON"], "-c", textwrap.dedent(code)])
        try:
            reached = bool(not error and output.exists() and less(output) >= factor)
        except Exception as failure:  # an invalid file
            return str(failure)
        low, high = (low, sparsity) if reached else (sparsity, high)
    return error


def torch_pruning(method: str, factor: float, folder: Path, make: str, options: list[str]) -> tuple[str, str]:
    """Leave Torch-Pruning's models as ``peer.onnx``, ``peer.tuned.onnx``; return what it said and its error.

    Args:
        method: one of :data:`TORCH_PRUNING`.
        factor: times fewer multiplications.
        folder: with ``plain.onnx`` and the samples of the model's only input as ``inputs.npy``.
        make: FILE.py:function that gives the torch module.
        options: more of scripts/torch_pruning_peer.py.
    """
    for name in ("peer.onnx", "peer.tuned.onnx"):
        (folder / name).unlink(missing_ok=True)
    command = [
        *(os.environ["TORCH_PRUNING_PYTHON"], str(HERE / "torch_pruning_peer.py")),
        *(str(folder / "plain.onnx"), str(folder / "peer"), "--inputs", str(folder / "inputs.npy")),
        *("--make", make, "--method", method, "--factor", str(factor), *options),
    ]
    return done(command)


def done(command: list[str]) -> tuple[str, str]:
    """Run a command; return the last line that it printed and, if it failed, of what it complained about."""
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    said = found.stdout.strip().splitlines() or [""]
    lines = found.stderr.strip().splitlines() or [json.dumps(found.returncode)]
    return said[-1], lines[-1] if found.returncode else ""
