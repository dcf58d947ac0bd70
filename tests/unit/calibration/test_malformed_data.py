"""Data that is broken or does not fit: one clear line each, and the right exit code."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx.parser
import pytest

from onnxprune.calibration.data import load_data
from onnxprune.errors import OnnxPruneError
from onnxprune.model import Model
from onnxprune.recipe import Recipe

X = np.zeros((5, 4), np.float32)
IDS = np.zeros((5, 3), np.int64)


def npz(**arrays: Any) -> Callable[[Path], str]:
    def make(folder: Path) -> str:
        np.savez(folder / "a.npz", **arrays)
        return str(folder / "a.npz")

    return make


def file(name: str, content: bytes) -> Callable[[Path], str]:
    def make(folder: Path) -> str:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
        return str(folder / name)

    return make


def inside(name: str, content: bytes) -> Callable[[Path], str]:
    return lambda folder: str(Path(file(name, content)(folder)).parent)


def function(source: str, name: str = "f") -> Callable[[Path], str]:
    return lambda folder: file("calib.py", source.encode())(folder) + f":{name}"


def cut_npz(folder: Path) -> str:
    path = Path(npz(x=X, ids=IDS)(folder))
    path.write_bytes(path.read_bytes()[:200])
    return str(path)


# what is wrong: (data, exit code, what the line must say)
CASES: dict[str, tuple[Callable[[Path], str], int, str]] = {
    "wrong keys": (
        npz(a=X, b=IDS),
        3,
        "no array for input x: float32[N,4], ids: int64[N,3]; found a: float32[5,4], b:",
    ),
    "one key missing": (npz(x=X), 3, "no array for input ids: int64[N,3]"),
    "wrong dtype": (npz(x=X.astype(np.uint8), ids=IDS), 3, "input 'x' wants float32[N,4], found uint8[5,4]"),
    "float ids": (npz(x=X, ids=IDS * 1.0), 3, "input 'ids' wants int64[N,3], found float64[5,3]"),
    "wrong rank": (npz(x=X[0], ids=IDS), 3, "input 'x' wants float32[N,4], found float32[4]"),
    "wrong size": (npz(x=X[:, :3], ids=IDS), 3, "found float32[5,3] (axis 1 is 3, wanted 4)"),
    "no samples": (npz(x=X[:0], ids=IDS[:0]), 3, "no samples"),
    "unequal counts": (npz(x=X, ids=IDS[:4]), 3, "ids has 4, x has 5"),
    "nan": (npz(x=X * np.nan, ids=IDS), 3, "input 'x' holds nan at [0, 0] (20 values are not finite)"),
    "pickles": (npz(x=np.array([{}, 1], object)), 3, "Python objects"),
    "cut off": (cut_npz, 3, "not an .npz file"),
    "text as npz": (file("a.npz", b"x,y\n1,2\n"), 3, "a.npz is not an .npz file"),
    "empty npz": (file("a.npz", b""), 3, "a.npz is not an .npz file"),
    "bad zip": (file("a.npz", b"PK\x05\x06" + bytes(18)), 3, "a.npz holds no arrays"),
    "text as npy": (file("a.npy", b"hello"), 3, "a.npy cannot be read"),
    "missing path": (lambda folder: str(folder / "none.npz"), 3, "no such file or folder"),
    "unknown kind": (file("a.csv", b"1,2"), 3, "of no known kind"),
    "empty folder": (lambda folder: str(folder), 3, "it is empty"),
    "folder of others": (inside("a/b.csv", b""), 3, "holds no calibration data (.csv)"),
    "broken npz in a folder": (inside("a/b.npz", b"PK"), 3, "b.npz is not an .npz file"),
    "broken test data": (inside("test_data_set_0/input_0.pb", b"\xff"), 3, "holds 1 inputs"),
    "images for two inputs": (inside("a/b.png", b"x"), 3, "images fill one input"),
    "text without tokenizer": (file("a.txt", b"hello"), 2, "needs a tokenizer"),
    "no function named": (file("calib.py", b""), 2, "calib.py:function"),
    "function missing": (function("def g(): pass"), 2, "'f' is missing"),
    "file missing": (lambda folder: f"{folder}/calib.py:f", 2, "does not exist"),
    "module missing": (lambda folder: "no_such_module_x.y:f", 2, "no module named"),
    "not a function": (function("f = 3"), 2, "no function"),
    "yields a list": (function("def f(): yield [1, 2]"), 3, "calib.py:f, item 0 is a list, wanted a dict"),
    "yields nothing": (function("def f(): return []"), 3, "calib.py:f yields no samples"),
    "raises": (function("def f():\n  raise OSError('gone')"), 3, "calib.py:2 in f: OSError: gone"),
    "raises later": (function("def f():\n  yield {}['x']"), 3, "calib.py:2 in f: KeyError: 'x'"),
    "does not parse": (function("def f("), 3, "calib.py:1 in import: SyntaxError"),
}


@pytest.mark.parametrize("case", CASES)
def test_one_clear_line(tmp_path: Path, case: str) -> None:
    make, code, says = CASES[case]
    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> '
        "g (float[N, 4] x, int64[N, 3] ids) => (float[N, 4] y) { y = Relu(x) }"
    )
    with pytest.raises(OnnxPruneError) as caught:
        load_data(Model(proto), Recipe(data=make(tmp_path)))
    message = str(caught.value)
    assert says in message and "\n" not in message
    assert caught.value.exit_code == code
    assert message.isprintable()


def test_a_folder_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> g (float[N, 4] x) => (float[N, 4] y) { y = Relu(x) }'
    )
    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(OnnxPruneError, match="cannot be read: Permission denied") as caught:
        load_data(Model(proto), Recipe(data=str(tmp_path)))
    assert caught.value.exit_code == 3
