"""Malformed inputs through the command line: one clear line, the right status, nothing left behind.

Most run in this process, through the function that the console script calls; the last ones are
processes, where limits and closed streams are real.
"""

from __future__ import annotations

import ctypes
import hashlib
import io
import os
import pickle
import resource
import shutil
import signal
import stat
import struct
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune import pipeline
from onnxprune.cli import main

ROOT = Path(__file__).resolve().parents[2]
USAGE, INPUT, RESOURCE = 2, 3, 4
QUICK = ("--min-size", "16", "--threads", "1", "--samples", "16", "--no-cache")
RUN = ["m.onnx", "--data", "x.npz", *QUICK]
GENERATOR = np.random.default_rng(0)


@dataclass(frozen=True)
class Case:
    status: int
    words: tuple[str, ...]  # each must be in the message
    make: Callable[[Path], list[str] | None]  # spoils the folder; returns the command line (None: RUN)


CASES: dict[str, Case] = {}


def case(status: int, *words: str) -> Callable[[Callable[[Path], list[str] | None]], None]:
    def register(make: Callable[[Path], list[str] | None]) -> None:
        assert make.__name__ not in CASES
        CASES[make.__name__] = Case(status, words, make)

    return register


def options(name: str, status: int, words: tuple[str, ...], *line: str) -> None:
    """A case whose files are fine and whose command line is not."""
    assert name not in CASES
    CASES[name] = Case(status, words, lambda _: [*RUN, *line])


def model(
    *nodes: onnx.NodeProto, weights: dict[str, Any] | None = None, width: int | None = 10
) -> onnx.ModelProto:
    """``y = f(x)``, x float32[N, 16]; by default two MatMuls with a Relu between them."""
    weights = weights if weights is not None else {"w1": normal(16, 32), "w2": normal(32, 10)}
    chain = nodes or (
        helper.make_node("MatMul", ["x", "w1"], ["h"], name="first"),
        helper.make_node("Relu", ["h"], ["r"], name="act"),
        helper.make_node("MatMul", ["r", "w2"], ["y"], name="second"),
    )
    graph = helper.make_graph(
        list(chain),
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", width])],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def normal(*shape: int) -> Any:
    return GENERATOR.normal(size=shape).astype(np.float32)


def write(folder: Path, proto: onnx.ModelProto) -> None:
    (folder / "m.onnx").write_bytes(proto.SerializeToString())


def external(folder: Path, location: str, **entries: str) -> None:
    """Make ``w1`` external at ``location``."""
    proto = model()
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **entries}.items():
        tensor.external_data.add(key=key, value=value)
    write(folder, proto)


# --- files that are no models


@case(USAGE, "no file nowhere.onnx")
def missing_model(folder: Path) -> list[str]:
    return ["nowhere.onnx", *RUN[1:]]


@case(INPUT, "m.onnx", "empty")
def empty_file(folder: Path) -> None:
    (folder / "m.onnx").write_bytes(b"")


@case(INPUT, "m.onnx", "text file")
def text_file(folder: Path) -> None:
    (folder / "m.onnx").write_text("This is not the model you are looking for.\n")


@case(USAGE, "models is a folder")
def directory(folder: Path) -> list[str]:
    (folder / "models").mkdir()
    return ["models", *RUN[1:]]


@case(INPUT, "m.onnx", "truncated")
def truncated(folder: Path) -> None:
    data = (folder / "m.onnx").read_bytes()
    (folder / "m.onnx").write_bytes(data[: len(data) // 2])


@case(INPUT, "m.onnx")
def truncated_by_one_byte(folder: Path) -> None:
    (folder / "m.onnx").write_bytes((folder / "m.onnx").read_bytes()[:-1])


@case(INPUT, "m.onnx", "not an ONNX model")
def noise(folder: Path) -> None:
    (folder / "m.onnx").write_bytes(np.random.default_rng(3).bytes(5000))


@case(INPUT, "m.onnx", "Git LFS")
def git_lfs_pointer(folder: Path) -> None:
    (folder / "m.onnx").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")


@case(INPUT, "m.onnx", "zip archive")
def a_checkpoint(folder: Path) -> None:
    shutil.copyfile(folder / "x.npz", folder / "m.onnx")


@case(USAGE, "m.onnx")
def dangling_link(folder: Path) -> None:
    (folder / "m.onnx").unlink()
    (folder / "m.onnx").symlink_to("gone.onnx")


@case(USAGE, "m.onnx", "not a regular file")
def a_pipe(folder: Path) -> None:
    (folder / "m.onnx").unlink()
    os.mkfifo(folder / "m.onnx")


# --- external data


@case(INPUT, "m.onnx", "'w1'", "../secret.bin", "outside")
def external_above(folder: Path) -> None:
    (folder.parent / "secret.bin").write_bytes(bytes(2048))
    external(folder, "../secret.bin")


@case(INPUT, "'w1'", "sub/../../secret.bin", "outside")
def external_above_in_disguise(folder: Path) -> None:
    (folder / "sub").mkdir()
    external(folder, "sub/../../secret.bin")


@case(INPUT, "'w1'", "/etc/hostname", "outside")
def external_absolute(folder: Path) -> None:
    external(folder, "/etc/hostname")


@case(INPUT, "'w1'", "link.bin", "outside")
def external_link_out_of_the_tree(folder: Path) -> None:
    (folder.parent / "secret.bin").write_bytes(bytes(2048))
    (folder / "link.bin").symlink_to(folder.parent / "secret.bin")
    external(folder, "link.bin")


@case(INPUT, "'w1'", "inner/w.bin", "outside")
def external_folder_link_out_of_the_tree(folder: Path) -> None:
    outside = folder.parent / "outside"
    outside.mkdir()
    (outside / "w.bin").write_bytes(bytes(2048))
    (folder / "inner").symlink_to(outside)
    external(folder, "inner/w.bin")


@case(INPUT, "'w1'", "offset", "-8")
def external_negative_offset(folder: Path) -> None:
    (folder / "w.bin").write_bytes(bytes(4096))
    external(folder, "w.bin", offset="-8", length="2048")


@case(INPUT, "'w1'", "offset", "0x10")
def external_offset_is_no_number(folder: Path) -> None:
    (folder / "w.bin").write_bytes(bytes(4096))
    external(folder, "w.bin", offset="0x10")


@case(INPUT, "'w1'", "length", "-1")
def external_negative_length(folder: Path) -> None:
    (folder / "w.bin").write_bytes(bytes(4096))
    external(folder, "w.bin", length="-1")


@case(INPUT, "'w1'", "2048", "w.bin", "100")
def external_too_short(folder: Path) -> None:
    (folder / "w.bin").write_bytes(bytes(100))
    external(folder, "w.bin")


@case(INPUT, "'w1'", "w.bin")
def external_offset_beyond_the_end(folder: Path) -> None:
    (folder / "w.bin").write_bytes(bytes(4096))
    external(folder, "w.bin", offset=str(2**62), length="2048")


@case(INPUT, "'w1'", "gone.bin")
def external_missing(folder: Path) -> None:
    external(folder, "gone.bin")


@case(INPUT, "'w1'", "w.bin")
def external_is_a_folder(folder: Path) -> None:
    (folder / "w.bin").mkdir()
    external(folder, "w.bin")


@case(INPUT, "'w1'", "no file")
def external_without_location(folder: Path) -> None:
    external(folder, "")


# --- tensors


def dims(folder: Path, *shape: int) -> None:
    proto = model()
    proto.graph.initializer[0].ClearField("dims")
    proto.graph.initializer[0].dims.extend(shape)
    write(folder, proto)


@case(INPUT, "'w1'", "64 bits")
def absurd_dims(folder: Path) -> None:
    dims(folder, 2**40, 2**40)


@case(INPUT, "'w1'", "2048 bytes")
def large_dims_without_data(folder: Path) -> None:
    dims(folder, 2**20, 2**20)


@case(INPUT, "'w1'", "negative dimension")
def negative_dims(folder: Path) -> None:
    dims(folder, -16, -32)


@case(RESOURCE, "m.onnx", "external data", "memory")
def external_larger_than_memory(folder: Path) -> None:
    proto = model()
    tensor = proto.graph.initializer[0]
    del tensor.dims[:]
    tensor.dims.extend((2**20, 2**20))
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="w.bin")
    write(folder, proto)
    with open(folder / "w.bin", "wb") as file:
        try:
            file.truncate(2**42)  # a hole, no disk
        except OSError:
            pytest.skip("this file system has no files of 4 TiB")


@case(INPUT, "'w1'", "unknown data type")
def unknown_type(folder: Path) -> None:
    proto = model()
    proto.graph.initializer[0].data_type = 99
    write(folder, proto)


@case(INPUT, "'w2'", "NaN or infinite", "'second'")
def nan_weights(folder: Path) -> None:
    bad = normal(32, 10)
    bad[3, 3] = np.nan
    write(folder, model(weights={"w1": normal(16, 32), "w2": bad}))


@case(INPUT, "'w1'", "NaN or infinite")
def infinite_weights(folder: Path) -> None:
    write(folder, model(weights={"w1": np.full((16, 32), -np.inf, np.float32), "w2": normal(32, 10)}))


# --- graphs


@case(INPUT, "m.onnx", "no nodes")
def empty_graph(folder: Path) -> None:
    proto = model()
    del proto.graph.node[:]
    write(folder, proto)


@case(INPUT, "m.onnx", "graph")
def no_graph(folder: Path) -> None:
    write(folder, helper.make_model(onnx.GraphProto()))
    proto = onnx.ModelProto(ir_version=8, producer_name="somebody")
    write(folder, proto)


@case(INPUT, "no outputs")
def no_outputs(folder: Path) -> None:
    proto = model()
    del proto.graph.output[:]
    write(folder, proto)


@case(INPUT, "input")
def no_inputs(folder: Path) -> None:
    proto = model()
    proto.graph.initializer.append(numpy_helper.from_array(normal(2, 16), "x"))
    del proto.graph.input[:]
    write(folder, proto)


@case(INPUT, "opset", "999")
def opset_of_the_future(folder: Path) -> None:
    proto = model()
    proto.opset_import[0].version = 999
    write(folder, proto)


@case(INPUT, "opset", "0")
def opset_zero(folder: Path) -> None:
    proto = model()
    proto.opset_import[0].version = 0
    write(folder, proto)


@case(INPUT, "ir_version", "999")
def ir_version_of_the_future(folder: Path) -> None:
    proto = model()
    proto.ir_version = 999
    write(folder, proto)


@case(INPUT, "m.onnx", "Frobnicate")
def unknown_operator(folder: Path) -> None:
    proto = model()
    proto.graph.node[1].op_type = "Frobnicate"
    write(folder, proto)


@case(INPUT, "m.onnx", "custom.ops")
def unknown_domain(folder: Path) -> None:
    proto = model()
    proto.graph.node[1].domain = "custom.ops"
    proto.opset_import.append(helper.make_opsetid("custom.ops", 1))
    write(folder, proto)


@case(INPUT, "m.onnx")
def shapes_that_do_not_fit(folder: Path) -> None:
    write(folder, model(weights={"w1": normal(16, 32), "w2": normal(31, 10)}))


@case(INPUT, "'nothing'", "produces")
def undefined_value(folder: Path) -> None:
    proto = model()
    proto.graph.node[1].input[0] = "nothing"
    write(folder, proto)


@case(INPUT, "order")
def a_cycle(folder: Path) -> None:
    proto = model()
    proto.graph.node[0].input[0] = "r"
    write(folder, proto)


@case(INPUT, "'h'", "taken")
def two_producers(folder: Path) -> None:
    proto = model()
    proto.graph.node[1].output[0] = "h"
    write(folder, proto)


@case(INPUT, "calls itself")
def recursive_function(folder: Path) -> None:
    proto = model()
    node = helper.make_node("Loop_", ["a"], ["b"], domain="local")
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    proto.functions.append(helper.make_function("local", "Loop_", ["a"], ["b"], [node], opsets))
    proto.opset_import.append(helper.make_opsetid("local", 1))
    proto.graph.node[1].op_type, proto.graph.node[1].domain = "Loop_", "local"
    write(folder, proto)


@case(INPUT, "m.onnx", "nothing to prune")
def nothing_prunable(folder: Path) -> None:
    write(folder, model(helper.make_node("Relu", ["x"], ["y"]), weights={}, width=16))


@case(INPUT, "m.onnx", "nothing to prune")
def weights_too_small(folder: Path) -> list[str]:
    return [*RUN, "--min-size", "100000"]


@case(INPUT, "nothing to prune")
def everything_excluded(folder: Path) -> list[str]:
    return [*RUN, "--exclude", "w*"]


@case(INPUT, "nothing to prune")
def nothing_included(folder: Path) -> list[str]:
    return [*RUN, "--include", "encoder.*"]


def packed(folder: Path) -> onnx.ModelProto:
    weight = np.where(GENERATOR.random((64, 64)) < 0.8, 0, normal(64, 64)).astype(np.float32)
    chain = (
        helper.make_node("MatMul", ["x", "w1"], ["h"], name="first"),
        helper.make_node("MatMul", ["h", "w2"], ["y"], name="second"),
    )
    write(folder, model(*chain, weights={"w1": normal(16, 64), "w2": weight}, width=64))
    assert main(["export", "m.onnx", "-o", "p.onnx", "--format", "packed", "--quiet"]) == 0
    (folder / "p.onnx").replace(folder / "m.onnx")
    proto = onnx.load(folder / "m.onnx")
    assert any(node.domain == "onnxprune" for node in proto.graph.node)
    return proto


@case(INPUT, "m.onnx", "packed")
def packed_already(folder: Path) -> None:
    packed(folder)


@case(INPUT, "m.onnx", "nothing to prune")
def sparse_initializers_already(folder: Path) -> None:
    packed(folder)
    assert main(["export", "m.onnx", "-o", "s.onnx", "--format", "sparse-initializer", "--quiet"]) == 0
    (folder / "s.onnx").replace(folder / "m.onnx")
    proto = onnx.load(folder / "m.onnx")
    dense = [tensor for tensor in proto.graph.initializer if tensor.name == "w1"]
    proto.graph.initializer.remove(dense[0])
    proto.graph.sparse_initializer.append(
        helper.make_sparse_tensor(
            numpy_helper.from_array(np.ones(1, np.float32), "w1"),
            numpy_helper.from_array(np.zeros(1, np.int64), "at"),
            [16, 64],
        )
    )
    write(folder, proto)


@case(INPUT, "second")
def packed_with_too_few_values(folder: Path) -> list[str]:
    proto = packed(folder)
    (values,) = (t for t in proto.graph.initializer if t.name == "w2")
    values.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(values)[:-5], "w2"))
    write(folder, proto)
    return ["export", "m.onnx", "-o", "out.onnx", "--format", "dense"]


@case(INPUT, "second")
def packed_with_absurd_shape(folder: Path) -> list[str]:
    proto = packed(folder)
    (node,) = (n for n in proto.graph.node if n.domain == "onnxprune")
    for attribute in node.attribute:
        if attribute.name == "shape":
            attribute.ints[:] = [2**40, 2**40]
    write(folder, proto)
    return ["export", "m.onnx", "-o", "out.onnx", "--format", "dense"]


# --- calibration data


def data(folder: Path, **arrays: Any) -> None:
    np.savez(folder / "x.npz", **arrays)


@case(INPUT, "nowhere.npz")
def data_missing(folder: Path) -> list[str]:
    return [*RUN, "--data", "nowhere.npz"]


@case(INPUT, "x.npz", "images", "labels", "input x")
def data_with_another_key(folder: Path) -> None:
    data(folder, images=normal(8, 3), labels=normal(8, 1))


@case(INPUT, "x.npz", "'x'", "int64")
def data_of_another_type(folder: Path) -> None:
    data(folder, x=np.ones((8, 16), np.int64))


@case(INPUT, "x.npz", "'x'", "uint8")
def data_of_pixels(folder: Path) -> None:
    data(folder, x=np.ones((8, 16), np.uint8))


@case(INPUT, "x.npz", "'x'", "4,4", "axis 1")
def data_of_another_rank(folder: Path) -> None:
    data(folder, x=normal(8, 4, 4))


@case(INPUT, "x.npz", "'x'", "17", "16")
def data_of_another_width(folder: Path) -> None:
    data(folder, x=normal(8, 17))


@case(INPUT, "x.npz", "'x'", "nan")
def data_with_nan(folder: Path) -> None:
    data(folder, x=np.full((8, 16), np.nan, np.float32))


@case(INPUT, "x.npz", "'x'", "too large")
def data_that_overflows(folder: Path) -> None:
    data(folder, x=np.full((8, 16), 1e300))


@case(INPUT, "'x'", "infinite")
def data_that_overflows_in_the_model(folder: Path) -> None:
    data(folder, x=np.full((8, 16), 3e38, np.float32))


@case(INPUT, "x.npz")
def data_without_rows(folder: Path) -> None:
    data(folder, x=np.zeros((0, 16), np.float32))


@case(INPUT, "x.npz")
def data_without_arrays(folder: Path) -> None:
    data(folder)


@case(INPUT, "x.npz")
def data_truncated(folder: Path) -> None:
    (folder / "x.npz").write_bytes((folder / "x.npz").read_bytes()[:300])


@case(INPUT, "x.npz")
def data_is_text(folder: Path) -> None:
    (folder / "x.npz").write_text("not an archive\n")


@case(INPUT, "x.npz", "object")
def data_is_a_pickle(folder: Path) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return os.mkdir, ("pwned",)

    array = np.array([Bomb()], dtype=object)
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        buffer, {"descr": "|O", "fortran_order": False, "shape": array.shape}
    )
    with zipfile.ZipFile(folder / "x.npz", "w") as archive:
        archive.writestr("x.npy", buffer.getvalue() + pickle.dumps(array))


@case(INPUT, "x.npz")
def data_header_promises_terabytes(folder: Path) -> None:
    buffer = io.BytesIO()
    header = {"descr": "<f4", "fortran_order": False, "shape": (2**36, 16)}
    np.lib.format.write_array_header_1_0(buffer, header)
    with zipfile.ZipFile(folder / "x.npz", "w") as archive:
        archive.writestr("x.npy", buffer.getvalue() + bytes(64))


@case(INPUT, "x.npz")
def data_zip_lies_about_its_size(folder: Path) -> None:
    """The zip directory states 4 TiB for a member of 100 bytes."""
    buffer = io.BytesIO()
    header = {"descr": "<f4", "fortran_order": False, "shape": (2**36, 16)}
    np.lib.format.write_array_header_1_0(buffer, header)
    info = zipfile.ZipInfo("x.npy")
    info.compress_type = zipfile.ZIP_DEFLATED
    with zipfile.ZipFile(folder / "x.npz", "w") as archive:
        archive.writestr(info, buffer.getvalue() + bytes(100))
        info.file_size = 2**42 + 128
    assert struct.pack("<Q", 2**42 + 128) in (folder / "x.npz").read_bytes()


@case(INPUT, "pics")
def data_folder_empty(folder: Path) -> list[str]:
    (folder / "pics").mkdir()
    return [*RUN, "--data", "pics"]


@case(INPUT, "calibrate.py:2", "ZeroDivisionError")
def data_function_raises(folder: Path) -> list[str]:
    (folder / "calibrate.py").write_text("def feeds():\n    yield {'x': 1 / 0}\n")
    return [*RUN, "--data", "calibrate.py:feeds"]


@case(INPUT, "calibrate.py")
def data_function_gives_nothing(folder: Path) -> list[str]:
    (folder / "calibrate.py").write_text("def feeds():\n    return []\n")
    return [*RUN, "--data", "calibrate.py:feeds"]


# --- the user's measure


def evaluate(folder: Path, body: str) -> list[str]:
    (folder / "task.py").write_text(f"def score(session):\n    {body}\n")
    return [*RUN, "--eval", "task.py:score"]


@case(USAGE, "task.py", "'accuracy'")
def eval_missing(folder: Path) -> list[str]:
    return [*evaluate(folder, "return 1.0"), "--eval", "task.py:accuracy"]


@case(USAGE, "nowhere.py")
def eval_file_missing(folder: Path) -> list[str]:
    return [*RUN, "--eval", "nowhere.py:score"]


@case(USAGE, "--eval", "score")
def eval_without_a_file(folder: Path) -> list[str]:
    return [*RUN, "--eval", "score"]


@case(INPUT, "score", "nan")
def eval_returns_nan(folder: Path) -> list[str]:
    return evaluate(folder, "return float('nan')")


@case(INPUT, "score")
def eval_returns_text(folder: Path) -> list[str]:
    return evaluate(folder, "return 'good'")


@case(INPUT, "score")
def eval_returns_nothing(folder: Path) -> list[str]:
    return evaluate(folder, "pass")


@case(INPUT, "task.py:2", "KeyError", "label")
def eval_raises(folder: Path) -> list[str]:
    return evaluate(folder, "raise KeyError('label')")


@case(INPUT, "task.py:2", "SystemExit")
def eval_exits(folder: Path) -> list[str]:
    return evaluate(folder, "raise SystemExit(0)")


@case(INPUT, "score", "nan")
def eval_returns_nan_for_the_pruned_model(folder: Path) -> list[str]:
    """The first call sees the dense model, the second the file that is about to be published."""
    body = "score.calls = getattr(score, 'calls', 0) + 1; return float('nan') if score.calls > 1 else 1.0"
    return evaluate(folder, body)


@case(INPUT, "task.py:1", "SyntaxError")
def eval_with_a_syntax_error(folder: Path) -> list[str]:
    (folder / "task.py").write_text("def score(session:\n    return 1\n")
    return [*RUN, "--eval", "task.py:score"]


# --- recipes


def recipe(folder: Path, text: str, name: str = "r.toml") -> list[str]:
    (folder / name).write_text(text)
    return [*RUN, "--config", name]


@case(USAGE, "r.toml", "line 1")
def recipe_is_no_toml(folder: Path) -> list[str]:
    return recipe(folder, "sparsity = = 0.7\n")


@case(USAGE, "'sparsty'")
def recipe_with_an_unknown_key(folder: Path) -> list[str]:
    return recipe(folder, "sparsty = 0.7\n")


@case(USAGE, "'sparsity'", "float")
def recipe_with_a_wrong_type(folder: Path) -> list[str]:
    return recipe(folder, 'sparsity = "much"\n')


@case(USAGE, "sparsity", "nan")
def recipe_with_nan(folder: Path) -> list[str]:
    return recipe(folder, "sparsity = nan\n")


@case(USAGE, "schema_version")
def recipe_of_the_future(folder: Path) -> list[str]:
    return recipe(folder, "schema_version = 99\n")


@case(USAGE, "'tool'")
def recipe_with_a_foreign_tool_table(folder: Path) -> list[str]:
    return recipe(folder, "tool = 3\n")


@case(USAGE, "r.json")
def recipe_json_is_no_report(folder: Path) -> list[str]:
    return recipe(folder, "[1, 2]", "r.json")


@case(USAGE, "r.json")
def recipe_json_is_broken(folder: Path) -> list[str]:
    return recipe(folder, '{"recipe": ', "r.json")


@case(USAGE, "r.toml")
def recipe_is_binary(folder: Path) -> list[str]:
    (folder / "r.toml").write_bytes(b"\xff\xfe\x00")
    return [*RUN, "--config", "r.toml"]


# --- options

options("sparsity_in_percent", USAGE, ("--sparsity", "70"), "--sparsity", "70")
options("sparsity_negative", USAGE, ("--sparsity", "-0.1"), "--sparsity", "-0.1")
options("sparsity_one", USAGE, ("--sparsity",), "--sparsity", "1")
options("sparsity_nan", USAGE, ("--sparsity", "nan"), "--sparsity", "nan")
options("sparsity_text", USAGE, ("--sparsity", "high"), "--sparsity", "high")
options("pattern_unknown", USAGE, ("--pattern", "'checkers'"), "--pattern", "checkers")
options("pattern_keeps_all", USAGE, ("--pattern", "4:4"), "--pattern", "4:4")
options("pattern_keeps_none", USAGE, ("--pattern", "0:4"), "--pattern", "0:4")
options("pattern_and_newline", USAGE, ("--pattern",), "--pattern", "2:4\n")
options("pattern_in_other_digits", USAGE, ("--pattern",), "--pattern", "٢:٤")
options("pattern_block_of_nothing", USAGE, ("block:0x4",), "--pattern", "block:0x4")
options("pattern_less_than_sparsity", USAGE, ("2:4", "0.7"), "--pattern", "2:4", "--sparsity", "0.7")
options("criterion_unknown", USAGE, ("--criterion", "vibes"), "--criterion", "vibes")
options("damping_tiny", USAGE, ("--damping", "1e-300"), "--damping", "1e-300")
options("damping_zero", USAGE, ("--damping",), "--damping", "0")
options("damping_nan", USAGE, ("--damping", "nan"), "--damping", "nan")
options("seed_negative", USAGE, ("--seed", "-1"), "--seed", "-1")
options("memory_nan", USAGE, ("--max-memory", "nan"), "--max-memory", "nan")
options("memory_infinite", USAGE, ("--max-memory", "inf"), "--max-memory", "inf")
options("mean_nan", USAGE, ("--mean", "nan"), "--mean", "0.5,nan")
options("memory_negative", USAGE, ("--max-memory", "-1"), "--max-memory", "-1")
options("samples_none", USAGE, ("--samples", "0"), "--samples", "0")
options("threads_none", USAGE, ("--threads", "0"), "--threads", "0")
options("option_unknown", USAGE, ("--sparsty",), "--sparsty", "0.7")
options("option_without_value", USAGE, ("--sparsity",), "--sparsity")
options("two_models", USAGE, ("n.onnx",), "n.onnx")
options("mean_is_no_number", USAGE, ("--mean", "red"), "--mean", "red,green,blue")


# --- outputs


@case(USAGE, "m.pruned.onnx", "exists")
def output_exists(folder: Path) -> None:
    (folder / "m.pruned.onnx").write_text("precious")


@case(USAGE, "m.pruned.json", "exists")
def report_exists(folder: Path) -> None:
    (folder / "m.pruned.json").write_text("precious")


@case(USAGE, "m.onnx", "input")
def output_is_the_input(folder: Path) -> list[str]:
    return [*RUN, "-o", "m.onnx", "--force"]


@case(USAGE, "other.onnx", "input")
def output_is_a_link_to_the_input(folder: Path) -> list[str]:
    os.link(folder / "m.onnx", folder / "other.onnx")
    return [*RUN, "-o", "other.onnx", "--force"]


@case(USAGE, "m.onnx", "input")
def report_is_the_input(folder: Path) -> list[str]:
    return [*RUN, "--report", "m.onnx", "--force"]


@case(USAGE, "x.npz")
def output_is_the_data(folder: Path) -> list[str]:
    return [*RUN, "-o", "x.npz", "--force"]


@case(USAGE, "w.bin", "input")
def output_is_the_external_data(folder: Path) -> list[str]:
    proto = model()
    onnx.save(proto, folder / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    return [*RUN, "-o", "w.bin", "--force"]


@case(USAGE, "out.json")
def report_is_the_output(folder: Path) -> list[str]:
    return [*RUN, "-o", "out.json", "--report", "out.json", "--force"]


@case(USAGE, "out.json")
def output_has_the_report_s_name(folder: Path) -> list[str]:
    return [*RUN, "-o", "out.json"]


@case(USAGE, "nowhere")
def output_folder_missing(folder: Path) -> list[str]:
    return [*RUN, "-o", "nowhere/out.onnx"]


@case(USAGE, "folder.onnx", "folder")
def output_is_a_folder(folder: Path) -> list[str]:
    (folder / "folder.onnx").mkdir()
    return [*RUN, "-o", "folder.onnx", "--force"]


@case(USAGE, "folder.json", "folder")
def report_is_a_folder(folder: Path) -> list[str]:
    (folder / "folder.json").mkdir()
    return [*RUN, "--report", "folder.json", "--force"]


@case(USAGE, "long")
def output_name_too_long(folder: Path) -> list[str]:
    return [*RUN, "-o", "long" * 80 + ".onnx"]


def listing(folder: Path) -> dict[str, str]:
    """Every file with the digest of its content; links by target, the rest by kind."""
    found = {}
    for path in sorted(folder.rglob("*")):
        mode = path.lstat().st_mode
        if stat.S_ISLNK(mode):
            what = f"-> {os.readlink(path)}"
        elif stat.S_ISREG(mode):
            what = (
                hashlib.sha256(path.read_bytes()).hexdigest()
                if path.stat().st_size < 2**20
                else f"{path.stat().st_size} bytes"
            )
        else:
            what = stat.filemode(mode)
        found[str(path.relative_to(folder))] = what
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of its own, with a good model and good data; what is outside of it is watched too."""
    inside = tmp_path / "inside"
    inside.mkdir()
    write(inside, model())
    data(inside, x=normal(24, 16))
    return inside


@pytest.fixture(autouse=True)
def process_state(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Undo what the command line sets for its process."""
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    monkeypatch.delenv("ONNXPRUNE_TRACEBACK", raising=False)
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)


def check_message(text: str, wanted: Case) -> None:
    lines = text.splitlines()
    assert lines and lines[0].startswith("error: "), text
    assert len(lines) == 1 or (len(lines) == 2 and lines[1].startswith("hint: ")), text
    assert len(lines[0]) < 500, text
    for word in wanted.words:
        assert word in lines[0], text
    for word in ("Traceback", "Error(", "0x7f", "onnxprune/"):
        assert word not in text, text


@pytest.mark.parametrize("name", CASES)
def test_one_clear_line(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    wanted = CASES[name]
    monkeypatch.chdir(folder)
    words = wanted.make(folder) or RUN
    before = listing(folder.parent)
    capfd.readouterr()
    status = main(words)
    output, errors = capfd.readouterr()
    check_message(errors, wanted)
    assert (status, output) == (wanted.status, "")
    assert listing(folder.parent) == before


def test_there_are_enough() -> None:
    assert len(CASES) >= 40


def test_the_good_one_is_good(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else every case above might fail for a reason of its own."""
    monkeypatch.chdir(folder)
    assert main([*RUN, "--quiet"]) == 0
    assert {"m.pruned.onnx", "m.pruned.json"} <= set(listing(folder))


def test_a_solver_that_gives_nan(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    real = pipeline.prune_sequential

    def broken(dense: Any, pruned: Any, *rest: Any, **options: Any) -> Any:
        result = real(dense, pruned, *rest, **options)
        weight = pruned.array("w2").copy()
        weight[1, 1] = np.nan
        pruned.set_array("w2", weight)
        return result

    monkeypatch.setattr(pipeline, "prune_sequential", broken)
    monkeypatch.chdir(folder)
    before = listing(folder)
    assert main(RUN) == INPUT
    check_message(capfd.readouterr().err, Case(INPUT, ("'w2'", "'second'", "NaN"), lambda _: None))
    assert listing(folder) == before


def limit_file_size() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))


def obey_permissions() -> None:
    """Take from root the two capabilities that make it ignore the permissions of files."""
    if os.geteuid() == 0:
        drop_from_bounding_set, override, read_search = 24, 1, 2
        for capability in (override, read_search):
            if ctypes.CDLL(None).prctl(drop_from_bounding_set, capability, 0, 0, 0):
                raise OSError("not allowed to drop capabilities")


def locked_output(folder: Path) -> list[str]:
    (folder / "locked").mkdir()
    (folder / "locked").chmod(0o500)
    return [*RUN, "-o", "locked/out.onnx"]


# name -> (case, what the new process does before it becomes onnxprune)
PROCESSES: dict[str, tuple[Case, Callable[[], None] | None]] = {
    "full_disk": (Case(RESOURCE, ("m.pruned.onnx", "space"), lambda _: None), limit_file_size),
    "read_only_folder": (Case(RESOURCE, ("out.onnx", "denied"), locked_output), obey_permissions),
    **{
        name: (CASES[name], None)
        for name in ("missing_model", "truncated", "external_above", "data_with_another_key", "eval_raises")
    },
}


@pytest.mark.skipif(sys.platform != "linux", reason="sets limits and capabilities of Linux processes")
@pytest.mark.parametrize("name", PROCESSES)
def test_as_a_process(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted, prepare = PROCESSES[name]
    monkeypatch.chdir(folder)
    words = wanted.make(folder) or RUN
    before = listing(folder.parent)
    done = subprocess.run(
        [sys.executable, "-m", "onnxprune", *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        preexec_fn=prepare,
    )
    check_message(done.stderr, wanted)
    assert (done.returncode, done.stdout) == (wanted.status, "")
    assert listing(folder.parent) == before
