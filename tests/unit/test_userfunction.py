"""The user's own functions: found, guarded, and named in every error."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest

from onnxprune.errors import DataError, ModelError, ResourceError, UsageError
from onnxprune.userfunction import UserFunction, is_reference, load_function, wrap


@pytest.fixture
def script(tmp_path: Path):
    def write(text: str, name: str = "task.py") -> Path:
        path = tmp_path / name
        path.write_text(text, encoding="utf8")
        return path

    return write


def test_function_in_a_file(script) -> None:
    path = script("def double(x):\n    return 2 * x\n")
    function = load_function(f"{path}:double")
    assert function(21) == 42
    assert (function.name, function.file) == ("double", str(path))


def test_dotted_name_and_module() -> None:
    assert load_function("math:sqrt")(9) == 3
    assert load_function("json.decoder:JSONDecoder.decode").name == "JSONDecoder.decode"


def test_file_is_imported_once_until_it_changes(script) -> None:
    path = script("calls = []\ndef f():\n    calls.append(1)\n    return len(calls)\n")
    load_function(f"{path}:f")()
    assert load_function(f"{path}:f")() == 2, "one module for --data and --eval"
    script("def f():\n    return 'new'\n")
    assert load_function(f"{path}:f")() == "new"


def test_files_of_one_name_do_not_mix(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "task.py").write_text(f"def f():\n    return {folder!r}\n")
    first, second = (load_function(f"{tmp_path / folder / 'task.py'}:f") for folder in ("a", "b"))
    assert (first(), second()) == ("a", "b")


def test_neighbours_can_be_imported_also_inside_the_function(script) -> None:
    script("VALUE = 7\n", "neighbour_of_task.py")
    path = script("def f():\n    import neighbour_of_task\n    return neighbour_of_task.VALUE\n")
    before = list(sys.path)
    assert load_function(f"{path}:f")() == 7
    assert sys.path == before


def test_dataclasses_find_their_module(script) -> None:
    path = script(
        "from __future__ import annotations\nfrom dataclasses import dataclass\n"
        "@dataclass\nclass Point:\n    x: int\ndef f():\n    return Point(1)\n"
    )
    assert dataclasses.asdict(load_function(f"{path}:f")()) == {"x": 1}


def test_our_future_imports_stay_ours(script) -> None:
    path = script("def f(x: int):\n    pass\ndef g():\n    return f.__annotations__['x']\n")
    assert load_function(f"{path}:g")() is int


def test_prints_go_to_stderr(script, capsys: pytest.CaptureFixture[str]) -> None:
    path = script("print('imported')\ndef f():\n    print('called')\n    yield 1\n    print('read')\n")
    function = load_function(f"{path}:f")
    assert list(function.iterate(function())) == [1]
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "imported" in captured.err and "read" in captured.err


def test_options_reach_only_functions_that_name_them(script) -> None:
    path = script("def f(a, samples=0):\n    return a, samples\ndef g(a):\n    return a\n")
    assert load_function(f"{path}:f")(1, samples=5, seed=3) == (1, 5)
    assert load_function(f"{path}:g")(1, samples=5) == 1


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("task.py", "names no function"),
        ("task.py:", "names no function"),
        (":f", "names no function"),
        ("C:\\data", "names no function"),
        ("not a module:f", "names no function"),
        ("missing/task.py:f", "does not exist"),
        ("no_such_module_anywhere:f", "no module named"),
        ("json.no_such_part:f", "no module named"),
        ("math:no_such", "'no_such' is missing in math"),
        ("math:pi", "is no function but float"),
    ],
)
def test_what_is_not_there(reference: str, words: str) -> None:
    with pytest.raises(UsageError, match=words.replace("(", r"\(")) as caught:
        load_function(reference, "--data")
    assert "--data" in str(caught.value)


def test_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is a folder"):
        load_function(f"{tmp_path}/:f")


def test_missing_function_lists_what_is_there(script) -> None:
    path = script("from os.path import join\ndef score():\n    pass\ndef _hidden():\n    pass\n")
    with pytest.raises(UsageError) as caught:
        load_function(f"{path}:scores")
    assert caught.value.hint == "functions there: score"


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("x = 1\nraise ValueError('two\\nlines')\n", 2, "ValueError: two lines"),
        ("x = 1\n\ny = (\n", 3, "SyntaxError"),
        ("import no_such_module_anywhere\n", 1, "ModuleNotFoundError"),
        ("def g():\n    return {}['k']\ng()\n", 2, "KeyError: 'k'"),
        ("import sys\nsys.exit('stop')\n", 2, "SystemExit: stop"),
    ],
)
def test_failing_import_names_file_and_line(script, text: str, line: int, words: str) -> None:
    path, before = script(text), set(sys.modules)
    for _ in range(2):
        with pytest.raises(DataError) as caught:
            load_function(f"{path}:f")
        assert f"{path}:{line} in import: {words}" in str(caught.value)
    assert not [name for name in set(sys.modules) - before if name.startswith("_onnxprune_user")]


def test_failing_call_names_the_users_line_not_the_librarys(script) -> None:
    path = script("import json\ndef f():\n    return json.loads('{')\n")
    with pytest.raises(DataError, match=r"task\.py:3 in f: JSONDecodeError") as caught:
        load_function(f"{path}:f")()
    assert str(path) in str(caught.value)


def test_our_own_errors_and_interrupts_pass(script) -> None:
    path = script(
        "from onnxprune.errors import ModelError\n"
        "def f():\n    raise ModelError('mine')\n"
        "def g():\n    raise KeyboardInterrupt\n"
        "def h():\n    raise MemoryError\n"
    )
    with pytest.raises(ModelError, match=r"^mine$"):
        load_function(f"{path}:f")()
    with pytest.raises(KeyboardInterrupt):
        load_function(f"{path}:g")()
    with pytest.raises(ResourceError, match="h ran out of memory"):
        load_function(f"{path}:h")()


def test_iterate_guards_each_step(script) -> None:
    path = script("def f():\n    yield 1\n    raise RuntimeError('later')\ndef g():\n    return 5\n")
    function = load_function(f"{path}:f")
    steps = function.iterate(function())
    assert next(steps) == 1
    with pytest.raises(DataError, match=r":3 in f: RuntimeError: later"):
        next(steps)
    with pytest.raises(DataError, match="not iterable"):
        list(load_function(f"{path}:g").iterate(5))


def test_long_messages_are_cut(script) -> None:
    path = script("def f():\n    raise ValueError('x' * 10_000)\n")
    with pytest.raises(DataError) as caught:
        load_function(f"{path}:f")()
    assert len(str(caught.value)) < 500 + len(str(path))


def test_wrap_guards_a_function_from_python() -> None:
    def fails() -> None:
        raise ValueError("no")

    guarded = wrap(fails)
    assert wrap(guarded) is guarded
    with pytest.raises(DataError, match=r"test_userfunction\.py:\d+ in .*fails: ValueError: no"):
        guarded()
    assert isinstance(wrap(len), UserFunction) and wrap(len)([1, 2]) == 2


def test_is_reference_prefers_files_that_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_reference("calib.py:feeds")
    Path("calib.py:feeds").touch()
    assert not is_reference("calib.py:feeds")
    assert not is_reference("data.npz")
