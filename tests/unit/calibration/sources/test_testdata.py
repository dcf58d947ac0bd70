from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, numpy_helper

from onnxprune.calibration.sources import Request, testdata
from onnxprune.errors import DataError

Ask = Callable[..., Request]
INPUTS = "float[N, 2] x, int64[N, 3] ids"


def write(folder: Path, *arrays: np.ndarray) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i, array in enumerate(arrays):
        (folder / f"input_{i}.pb").write_bytes(numpy_helper.from_array(array).SerializeToString())
        (folder / f"output_{i}.pb").write_bytes(b"ignored")


def feed(value: float, rows: int = 1) -> tuple[np.ndarray, np.ndarray]:
    return np.full((rows, 2), value, np.float32), np.full((rows, 3), int(value), np.int64)


def test_inputs_come_in_the_order_of_the_graph(tmp_path: Path, ask: Ask) -> None:
    for i in range(12):
        write(tmp_path / f"test_data_set_{i}", *feed(i))
    loaded = testdata.load(str(tmp_path), ask(INPUTS))
    assert [int(s["ids"][0, 0]) for s in loaded.samples] == list(range(12))
    assert loaded.samples[0]["x"].shape == (1, 2)


def test_one_set_alone_and_batches_inside(tmp_path: Path, ask: Ask) -> None:
    write(tmp_path / "test_data_set_0", *feed(1, rows=3))
    loaded = testdata.load(str(tmp_path / "test_data_set_0"), ask(INPUTS))
    assert len(loaded.samples) == loaded.total == 3


def test_input_10_follows_input_9(tmp_path: Path, ask: Ask) -> None:
    write(tmp_path / "test_data_set_0", *[np.full((1, 1), i, np.float32) for i in range(11)])
    names = [f"i{n}" for n in range(11)]
    loaded = testdata.load(str(tmp_path), ask(", ".join(f"float[1, 1] {n}" for n in names)))
    assert [float(loaded.samples[0][n][0, 0]) for n in names] == list(range(11))


def test_a_choice_of_sets(tmp_path: Path, ask: Ask) -> None:
    for i in range(8):
        write(tmp_path / f"test_data_set_{i}", *feed(i))
    loaded = testdata.load(str(tmp_path), ask(INPUTS, samples=2))
    assert len(loaded.samples) == 2 and loaded.notes == ("2 of 8 data sets",)


def test_strings(tmp_path: Path, ask: Ask) -> None:
    write(tmp_path / "test_data_set_0", np.array([["a", "ü"]], object))
    assert testdata.load(str(tmp_path), ask("string[N, 2] x")).samples[0]["x"].tolist() == [["a", "ü"]]


def test_a_wrong_number_of_inputs(tmp_path: Path, ask: Ask) -> None:
    write(tmp_path / "test_data_set_0", feed(1)[0])
    with pytest.raises(DataError, match=r"test_data_set_0: holds 1 inputs \(input_0.pb\), the model has 2"):
        testdata.load(str(tmp_path), ask(INPUTS))


@pytest.mark.parametrize("content", [b"\xff\xff\xff", b"\x08\x02\x10\x01\x4a\x04abcd"])
def test_files_that_are_no_tensor(tmp_path: Path, ask: Ask, content: bytes) -> None:
    write(tmp_path / "test_data_set_0", *feed(1))
    (tmp_path / "test_data_set_0" / "input_1.pb").write_bytes(content)
    with pytest.raises(DataError, match=r"test_data_set_0/input_1\.pb is not a"):
        testdata.load(str(tmp_path), ask(INPUTS))


def test_absurd_dimensions(tmp_path: Path, ask: Ask) -> None:
    write(tmp_path / "test_data_set_0", *feed(1))
    tensor = TensorProto(data_type=TensorProto.FLOAT, dims=[10**12, 2], raw_data=b"1234")
    (tmp_path / "test_data_set_0" / "input_0.pb").write_bytes(tensor.SerializeToString())
    with pytest.raises(DataError, match="not a complete tensor"):
        testdata.load(str(tmp_path), ask(INPUTS))


def test_external_data_is_not_followed(tmp_path: Path, ask: Ask) -> None:
    write(tmp_path / "test_data_set_0", *feed(1))
    tensor = TensorProto(data_type=TensorProto.FLOAT, dims=[1, 2], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="/etc/passwd")
    (tmp_path / "test_data_set_0" / "input_0.pb").write_bytes(tensor.SerializeToString())
    with pytest.raises(DataError, match="another file"):
        testdata.load(str(tmp_path), ask(INPUTS))


def test_matches_the_set_and_what_holds_it(tmp_path: Path) -> None:
    assert not testdata.matches(str(tmp_path)) and not testdata.matches(str(tmp_path / "none"))
    write(tmp_path / "test_data_set_0", *feed(1))
    assert testdata.matches(str(tmp_path)) and testdata.matches(str(tmp_path / "test_data_set_0"))
