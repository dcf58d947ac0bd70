from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import TensorProto, numpy_helper

from onnxprune import io
from onnxprune.errors import ModelError, ResourceError
from onnxprune.files import external

WEIGHT = np.arange(16, dtype=np.float32).reshape(4, 4)
DATA = WEIGHT.tobytes()


def model_with(*entries: tuple[str, str]) -> onnx.ModelProto:
    """One MatMul whose weight of 64 bytes has these external data entries."""
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> g (float[N, 4] x) => (float[N, 4] y) { y = MatMul(x, w) }'
    )
    tensor = model.graph.initializer.add(
        name="w", data_type=TensorProto.FLOAT, dims=[4, 4], data_location=TensorProto.EXTERNAL
    )
    for key, value in entries:
        tensor.external_data.add(key=key, value=value)
    return model


def put(folder: Path, *entries: tuple[str, str]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "model.onnx"
    path.write_bytes(model_with(*entries).SerializeToString())
    return path


def assert_loads(path: Path, **options: bool) -> None:
    model = io.load(path, **options)
    np.testing.assert_array_equal(model.array("w"), WEIGHT)
    tensor = model.proto.graph.initializer[0]
    assert not tensor.external_data
    assert not tensor.HasField("data_location")


# ---------------------------------------------------------------- what is accepted


@pytest.mark.parametrize(
    "entries",
    [
        [("location", "w.bin")],
        [("location", "w.bin"), ("offset", "0"), ("length", "64")],
        [("location", "w.bin"), ("length", "64"), ("checksum", "wrong"), ("basepath", "/etc")],
        [("location", "w.bin"), ("prepacked_0", "|1;2;3"), ("__class__", "x")],
        [("location", "./w.bin")],
        [("location", "sub/../w.bin")],
    ],
)
def test_accepts(entries: list[tuple[str, str]], tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "w.bin").write_bytes(DATA)
    assert_loads(put(tmp_path, *entries))


def test_offset_and_trailing_bytes(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(bytes(128) + DATA + bytes(7))
    assert_loads(put(tmp_path, ("location", "w.bin"), ("offset", "128"), ("length", "64")))
    assert_loads(put(tmp_path, ("location", "w.bin"), ("offset", "128")))


def test_many_files_in_order_of_use(tmp_path: Path) -> None:
    model = model_with(("location", "b/first"))
    for name, location in (("v", "a.bin"), ("u", "b/first")):
        tensor = model.graph.initializer.add()
        tensor.CopyFrom(model.graph.initializer[0])
        tensor.name = name
        tensor.external_data[0].value = location
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "first").write_bytes(DATA)
    (tmp_path / "a.bin").write_bytes(bytes(64))
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    loaded = io.load(tmp_path / "model.onnx")
    assert loaded.external == ("b/first", "a.bin")
    np.testing.assert_array_equal(loaded.array("u"), WEIGHT)
    assert not loaded.array("v").any()
    size = (tmp_path / "model.onnx").stat().st_size
    assert io.total_bytes(tmp_path / "model.onnx") == size + 128


def test_more_files_than_open_files_allowed(tmp_path: Path) -> None:
    import resource

    model = model_with(("location", "f0"))
    for i in range(1, 80):
        tensor = model.graph.initializer.add()
        tensor.CopyFrom(model.graph.initializer[0])
        tensor.name = f"w{i}"
        tensor.external_data[0].value = f"f{i}"
    for i in range(80):
        (tmp_path / f"f{i}").write_bytes(DATA)
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = max(int(fd) for fd in os.listdir("/dev/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 20, hard))
    try:
        assert len(io.load(tmp_path / "model.onnx").external) == 80
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_everywhere_a_tensor_can_be(tmp_path: Path) -> None:
    """Constant node, subgraph initializer, function body and sparse values."""
    tensor = model_with(("location", "w.bin")).graph.initializer[0]
    model = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["": 21, "local": 1]>
        g (float[N, 4] x, bool c) => (float[N, 4] y) {
            k = Constant<value = float {1}>()
            a = MatMul(x, k)
            b = local.F(a)
            y = If(c)<then_branch = t () => (float[N, 4] o) { o = MatMul(b, w) },
                      else_branch = e () => (float[N, 4] p) { p = MatMul(b, sparse) }>
        }
        <domain: "local", opset_import: ["": 21]>
        F (p) => (q) { m = Constant<value = float {1}>() q = MatMul(p, m) }
        """
    )
    model.graph.node[0].attribute[0].t.CopyFrom(tensor)
    model.functions[0].node[0].attribute[0].t.CopyFrom(tensor)
    model.graph.node[3].attribute[0].g.initializer.append(tensor)
    sparse = model.graph.sparse_initializer.add(dims=[4, 4])
    sparse.values.CopyFrom(tensor)
    sparse.values.dims[:] = [16]
    sparse.values.name = "sparse"
    sparse.indices.CopyFrom(numpy_helper.from_array(np.arange(16, dtype=np.int64), "i"))
    (tmp_path / "w.bin").write_bytes(DATA)
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    proto = io.load(tmp_path / "model.onnx").proto
    found = [
        proto.graph.node[0].attribute[0].t,
        proto.functions[0].node[0].attribute[0].t,
        proto.graph.node[3].attribute[0].g.initializer[0],
        proto.graph.sparse_initializer[0].values,
    ]
    assert [t.raw_data for t in found] == [DATA] * 4
    assert b"w.bin" not in proto.SerializeToString()


@pytest.mark.parametrize(
    ("kind", "dims", "size"),
    [
        ("INT4", [5], 3),
        ("UINT4", [4, 2], 4),
        ("FLOAT4E2M1", [3], 2),
        ("UINT2", [5], 2),
        ("FLOAT8E5M2", [5], 5),
        ("BFLOAT16", [3, 3], 18),
        ("COMPLEX128", [2], 32),
        ("BOOL", [7], 7),
        ("DOUBLE", [], 8),
        ("INT64", [0, 5], 0),
    ],
)
def test_sizes_of_types(kind: str, dims: list[int], size: int, tmp_path: Path) -> None:
    data_type = TensorProto.DataType.Value(kind)
    for length, fits in ((size, True), (size + 1, False)):
        model = model_with(("location", "w.bin"), ("length", str(length)))
        model.graph.initializer[0].data_type = data_type
        model.graph.initializer[0].dims[:] = dims
        (tmp_path / "w.bin").write_bytes(bytes(100))
        (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
        if fits:
            assert len(io.load(tmp_path / "model.onnx").proto.graph.initializer[0].raw_data) == size
        else:
            with pytest.raises(ModelError, match=f"needs {size} bytes, its external data has length"):
                io.load(tmp_path / "model.onnx")


def test_external_wins_over_leftover_inline_data(tmp_path: Path) -> None:
    model = model_with(("location", "w.bin"))
    model.graph.initializer[0].raw_data = bytes(64)
    model.graph.initializer[0].float_data.extend([7.0] * 16)
    (tmp_path / "w.bin").write_bytes(DATA)
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    assert_loads(tmp_path / "model.onnx")
    assert not io.load(tmp_path / "model.onnx").graph.initializer[0].float_data


def test_entries_of_an_inline_tensor_do_not_reach_the_output(tmp_path: Path) -> None:
    model = model_with(("location", "/etc/passwd"))
    model.graph.initializer[0].data_location = TensorProto.DEFAULT
    model.graph.initializer[0].raw_data = DATA
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    io.save(io.load(tmp_path / "model.onnx"), tmp_path / "out.onnx")
    assert b"passwd" not in (tmp_path / "out.onnx").read_bytes()


# ---------------------------------------------------------------- links and caches


def test_data_links(tmp_path: Path) -> None:
    """Links inside the folder and hard links (DVC, ostree) are fine."""
    (tmp_path / "store").write_bytes(DATA)
    folder = tmp_path / "m"
    path = put(folder, ("location", "w.bin"))
    (folder / "w.bin").hardlink_to(tmp_path / "store")
    assert_loads(path)
    (folder / "w.bin").rename(folder / "real.bin")
    (folder / "w.bin").symlink_to("real.bin")
    assert_loads(path)


def test_link_to_a_model_elsewhere_finds_the_data_there(tmp_path: Path) -> None:
    real = put(tmp_path / "store", ("location", "w.bin"))
    (tmp_path / "store" / "w.bin").write_bytes(DATA)
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "link.onnx").symlink_to(real)
    assert_loads(tmp_path / "here" / "link.onnx")


def hub_cache(root: Path, target: str = "../../../blobs/data", folder: str = "models--org--name") -> Path:
    """The layout of the Hugging Face cache, model in ``onnx/``."""
    repository = root / folder
    snapshot = repository / "snapshots" / "0123abc" / "onnx"
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    (repository / "blobs" / "data").write_bytes(DATA)
    model = model_with(("location", "model.onnx_data"))
    (repository / "blobs" / "proto").write_bytes(model.SerializeToString())
    (snapshot / "model.onnx").symlink_to("../../../blobs/proto")
    (snapshot / "model.onnx_data").symlink_to(target)
    return snapshot / "model.onnx"


def test_hub_cache(tmp_path: Path) -> None:
    assert_loads(hub_cache(tmp_path))


def test_hub_cache_behind_a_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub_cache(tmp_path / "disk")
    (tmp_path / "hub").symlink_to(tmp_path / "disk")
    monkeypatch.chdir(tmp_path)
    assert_loads(Path("hub/models--org--name/snapshots/0123abc/onnx/model.onnx"))


@pytest.mark.parametrize(
    ("target", "folder"),
    [
        ("../../../../models--other/blobs/data", "models--org--name"),  # another repository
        ("../../../../secret", "models--org--name"),  # the cache itself
        ("../../../blobs/data", "name"),  # no hub cache
    ],
)
def test_hub_cache_does_not_reach_further(target: str, folder: str, tmp_path: Path) -> None:
    (tmp_path / "models--other" / "blobs").mkdir(parents=True)
    (tmp_path / "models--other" / "blobs" / "data").write_bytes(DATA)
    (tmp_path / "secret").write_bytes(DATA)
    path = hub_cache(tmp_path, target, folder)
    with pytest.raises(ModelError, match="outside the model's folder"):
        io.load(path)
    assert_loads(path, allow_external=True)


def test_only_snapshots_reach_into_the_repository(tmp_path: Path) -> None:
    """A folder that happens to be called models--x is no cache."""
    path = put(tmp_path / "models--x" / "sub", ("location", "w.bin"))
    (tmp_path / "models--x" / "secret").write_bytes(DATA)
    (tmp_path / "models--x" / "sub" / "w.bin").symlink_to("../secret")
    with pytest.raises(ModelError, match="outside the model's folder"):
        io.load(path)


# ---------------------------------------------------------------- what is refused

OUTSIDE = {
    "parent": "../secret",
    "nested parent": "sub/../../secret",
    "deep parent": "sub/../sub/../../secret",
    "linked file": "link",
    "linked folder": "linked/secret",
    "linked twice": "linktwice",
}


@pytest.mark.parametrize("case", [*OUTSIDE, "absolute", "doubled slash"])
def test_outside_is_refused_unless_allowed(case: str, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(DATA)
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    (folder / "link").symlink_to("../secret")
    (folder / "linktwice").symlink_to("link")
    (folder / "linked").symlink_to(tmp_path)
    location = OUTSIDE.get(case) or str(tmp_path / "secret")
    if case == "doubled slash":
        location = "/" + location
    path = put(folder, ("location", location))
    with pytest.raises(ModelError, match=r"initializer 'w' has its data in .* outside the model's") as caught:
        io.load(path)
    assert "--allow-external" in caught.value.hint
    assert_loads(path, allow_external=True)


@pytest.mark.parametrize("case", ["back in", "absolute but inside", "missing"])
def test_leaving_is_refused_even_when_nothing_is_gained(case: str, tmp_path: Path) -> None:
    """The answer must not tell which files exist outside."""
    folder = tmp_path / "model"
    location = {"back in": "../model/w.bin", "absolute but inside": str(folder / "w.bin"), "missing": "../no"}
    path = put(folder, ("location", location[case]))
    (folder / "w.bin").write_bytes(DATA)
    with pytest.raises(ModelError, match="outside the model's folder"):
        io.load(path)


REFUSED = {
    "no location": ([("offset", "0")], "is external but names no file"),
    "empty location": ([("location", "")], "is external but names no file"),
    "two locations": (
        [("location", "w.bin"), ("location", "x")],
        "states the location of its external data twice",
    ),
    "missing file": ([("location", "gone.bin")], "'gone.bin', which is not in"),
    "runtime address": ([("location", "*/_ORT_MEM_ADDR_/*")], "which is not in"),
    "dangling link": ([("location", "dangling")], "No such file"),
    "link loop": ([("location", "loop")], "loop"),
    "folder": ([("location", "sub")], "not a regular file"),
    "own folder": ([("location", ".")], "not a regular file"),
    "fifo": ([("location", "fifo")], "not a regular file"),
    "nul": ([("location", "w.bin\0.txt")], "no file name"),
    "negative offset": ([("location", "w.bin"), ("offset", "-64")], "offset '-64', wanted a non-negative"),
    "offset with underscore": ([("location", "w.bin"), ("offset", "1_0")], "offset '1_0', wanted"),
    "offset with space": ([("location", "w.bin"), ("offset", " 0")], "offset ' 0', wanted"),
    "offset in another script": ([("location", "w.bin"), ("offset", "٣")], "wanted a non-negative integer"),
    "empty offset": ([("location", "w.bin"), ("offset", "")], "offset '', wanted"),
    "huge offset": ([("location", "w.bin"), ("offset", "9" * 19)], "which has 64"),
    "offset beyond int64": ([("location", "w.bin"), ("offset", "9" * 5000)], "wanted a non-negative integer"),
    "offset past the end": (
        [("location", "w.bin"), ("offset", "4")],
        "needs bytes 4 to 68 of 'w.bin', which has 64",
    ),
    "negative length": ([("location", "w.bin"), ("length", "-1")], "length '-1', wanted"),
    "wrong length": (
        [("location", "w.bin"), ("length", "60")],
        "needs 64 bytes, its external data has length 60",
    ),
    "absurd length": ([("location", "w.bin"), ("length", "9" * 18)], "needs 64 bytes"),
    "short file": ([("location", "short.bin")], "needs bytes 0 to 64 of 'short.bin', which has 63"),
    "empty file": ([("location", "empty.bin"), ("length", "64")], "which has 0"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entries, message = REFUSED[case]
    (tmp_path / "sub").mkdir()
    (tmp_path / "w.bin").write_bytes(DATA)
    (tmp_path / "short.bin").write_bytes(DATA[:-1])
    (tmp_path / "empty.bin").write_bytes(b"")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "fifo")
    path = put(tmp_path, *entries)

    def read(*arguments: object) -> bytes:
        raise AssertionError("data was read before all checks")

    monkeypatch.setattr(external, "read", read)
    for allow in (False, True):
        with pytest.raises(ModelError) as caught:
            io.load(path, allow_external=allow)
        assert message in str(caught.value)
        assert str(caught.value).startswith("model.onnx: initializer 'w' ")
        assert len(str(caught.value)) < 400


def test_strings_cannot_be_external(tmp_path: Path) -> None:
    model = model_with(("location", "w.bin"))
    model.graph.initializer[0].data_type = TensorProto.STRING
    (tmp_path / "w.bin").write_bytes(DATA)
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match="strings"):
        io.load(tmp_path / "model.onnx")


def test_more_data_than_memory_is_refused_before_reading(tmp_path: Path) -> None:
    """A sparse file of 4 TiB costs nothing on disk and everything in memory."""
    model = model_with(("location", "w.bin"))
    model.graph.initializer[0].dims[:] = [2**20, 2**20]
    with open(tmp_path / "w.bin", "wb") as file:
        file.truncate(2**42)
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ResourceError, match=r"needs 4096.0 GiB, this machine has"):
        io.load(tmp_path / "model.onnx")


def test_one_file_used_a_thousand_times_cannot_exhaust_memory(tmp_path: Path) -> None:
    model = model_with(("location", "w.bin"))
    model.graph.initializer[0].dims[:] = [2**32]
    for i in range(1000):
        tensor = model.graph.initializer.add()
        tensor.CopyFrom(model.graph.initializer[0])
        tensor.name = f"w{i}"
    with open(tmp_path / "w.bin", "wb") as file:
        file.truncate(2**34)
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ResourceError, match="the external data needs"):
        io.load(tmp_path / "model.onnx")


def test_file_that_shrinks_between_check_and_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "w.bin").write_bytes(DATA)
    path = put(tmp_path, ("location", "w.bin"))
    check = external.check_region

    def shrink(*arguments: object) -> None:
        check(*arguments)  # type: ignore[arg-type]
        os.truncate(tmp_path / "w.bin", 10)

    monkeypatch.setattr(external, "check_region", shrink)
    with pytest.raises(ModelError, match="ended early, 10 of 64 bytes"):
        io.load(path)


def test_file_that_becomes_a_link_between_check_and_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "w.bin").write_bytes(DATA)
    path = put(tmp_path, ("location", "w.bin"))
    check = external.check_region

    def swap(*arguments: object) -> None:
        check(*arguments)  # type: ignore[arg-type]
        (tmp_path / "w.bin").unlink()
        (tmp_path / "w.bin").symlink_to("/etc/passwd")

    monkeypatch.setattr(external, "check_region", swap)
    with pytest.raises(ModelError, match=r"w\.bin"):
        io.load(path)
