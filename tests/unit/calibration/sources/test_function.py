from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from onnxprune.calibration.sources import Request, function
from onnxprune.errors import DataError, UsageError

Ask = Callable[..., Request]
INPUT = "float[N, 2] x"


@pytest.fixture
def load(tmp_path: Path, ask: Ask) -> Callable[..., list[float]]:
    """Return ``load(source, inputs, **recipe)``: the first value of each sample that ``f`` yields."""

    def run(source: str, inputs: str = INPUT, **recipe: int) -> list[float]:
        path = tmp_path / "calib.py"
        path.write_text("import numpy as np\n" + source)
        loaded = function.load(f"{path}:f", ask(inputs, **recipe))
        return [float(s["x"].reshape(-1)[0]) for s in loaded.samples]

    return run


@pytest.mark.parametrize(
    ("source", "values"),
    [
        ("def f():\n  for i in range(3): yield {'x': np.full(2, i, 'f4')}", [0, 1, 2]),
        (
            "def f():\n  for i in range(3): yield {'x': np.full((2, 2), i, 'f4'), 'label': 1}",
            [0, 0, 1, 1, 2, 2],
        ),
        ("def f(): return [{'x': [[1., 2.], [3., 4.]]}]", [1, 3]),
        ("def f(): return {'x': np.eye(2)}", [1, 0]),
        ("def f(): return np.eye(2)", [1, 0]),
        ("def f():\n  yield np.eye(2)", [1, 0]),
        ("def f(samples, seed): return np.full((1, 2), samples * 10. + seed)", [2561]),
        (
            "class f:\n  n = 0\n  def get_next(self):\n    self.n += 1\n"
            "    return {'x': np.full((1, 2), self.n * 1.)} if self.n < 3 else None",
            [1, 2],
        ),
    ],
)
def test_what_a_function_may_give(load: Callable[..., list[float]], source: str, values: list[float]) -> None:
    assert load(source, seed=1) == values


def test_a_module_beside_the_file_is_found(tmp_path: Path, load: Callable[..., list[float]]) -> None:
    (tmp_path / "helper_of_calib.py").write_text("VALUE = 5.0")
    assert load("def f():\n  import helper_of_calib as h\n  yield {'x': np.full(2, h.VALUE)}") == [5]


def test_printing_does_not_touch_stdout(
    load: Callable[..., list[float]], capsys: pytest.CaptureFixture[str]
) -> None:
    load("print('a')\ndef f():\n  print('b')\n  yield {'x': np.zeros(2)}\n  print('c')")
    out, err = capsys.readouterr()
    assert out == "" and err.split() == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("def f(): return None", "calib.py:f returned nothing"),
        ("def f(): pass\n", "returned nothing"),
        ("def f(): return 3", "returned a int"),
        ("def f(): return 'data.npz'", "returned a str"),
        ("def f(): return []", "yields no samples"),
        ("def f():\n  if False: yield", "yields no samples"),
        ("def f():\n  yield {'x': np.zeros((0, 2))}", "yields no samples"),
        ("def f():\n  yield {'x': np.zeros(2)}\n  yield (1, 2)", "item 1 is a tuple, wanted a dict"),
        ("def f():\n  yield {'y': np.zeros(2)}", "item 0: no data for input x"),
        (
            "def f():\n  yield {'x': np.zeros(3)}",
            r"item 0: input 'x' wants float32\[N,2\], found float64\[1,3\]",
        ),
        ("def f():\n  yield {'x': np.full(2, np.nan)}", "input 'x' holds nan"),
        ("def f():\n  1 / 0", r"calib\.py:3 in f: ZeroDivisionError"),
        (
            "def f():\n  yield {'x': np.zeros(2)}\n  raise ValueError('no\\nmore')",
            r"calib\.py:4 in f: ValueError: no more",
        ),
        ("def f(needed): pass", "in f: TypeError"),
        ("def f(): exit(0)", "in f: SystemExit"),
        ("1 / 0", r"calib\.py:2 in import: ZeroDivisionError"),
        ("def f(:", r"calib\.py:2 in import: SyntaxError"),
    ],
)
def test_functions_that_fail(load: Callable[..., list[float]], source: str, says: str) -> None:
    with pytest.raises(DataError, match=says) as caught:
        load(source)
    assert "\n" not in str(caught.value)


def test_interrupts_are_not_swallowed(load: Callable[..., list[float]]) -> None:
    with pytest.raises(KeyboardInterrupt):
        load("def f():\n  yield {'x': np.zeros(2)}\n  raise KeyboardInterrupt")


def test_missing_functions_and_files(tmp_path: Path, ask: Ask) -> None:
    (tmp_path / "calib.py").write_text("def other(): pass")
    for reference in (f"{tmp_path}/calib.py:f", f"{tmp_path}/none.py:f", "no_such_module_x:f"):
        with pytest.raises(UsageError, match="--data"):
            function.load(reference, ask(INPUT))


def test_a_file_without_function_name(tmp_path: Path) -> None:
    (tmp_path / "calib.py").touch()
    with pytest.raises(UsageError, match=r"calib\.py:function"):
        function.matches(str(tmp_path / "calib.py"))


def test_paths_are_no_references(tmp_path: Path) -> None:
    (tmp_path / "odd:name").touch()
    assert not function.matches(str(tmp_path / "odd:name"))
    assert not function.matches("data.npz")
    assert function.matches("calib.py:feeds") and function.matches("package.module:feeds")


def test_a_feed_with_two_inputs_needs_a_dict(load: Callable[..., list[float]]) -> None:
    with pytest.raises(DataError, match="item 0 is a ndarray"):
        load("def f():\n  yield np.eye(2)", inputs="float[N, 2] x, float[N, 2] z")


def test_an_endless_function_is_not_read_forever(load: Callable[..., list[float]]) -> None:
    values = load(
        "def f():\n  i = 0\n  while True:\n    yield {'x': np.full(2, float(i))}\n    i += 1", samples=10
    )
    assert len(values) == 10 and values == sorted(values)
    assert values != list(range(10)) and max(values) < 80  # chosen among more than the first ten
    assert np.unique(values).size == 10
