"""Functions of the user's, named as ``FILE.py:function`` or ``module:function``, run with care.

Used by ``--eval`` and by calibration data that a function yields. While the user's code runs, its
own folder comes first on the import path (as ``python FILE.py`` has it), what it prints goes to
stderr (stdout carries our result), and what it raises becomes one line that names file, line and
function.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import inspect
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from onnxprune.errors import DataError, OnnxPruneError, ResourceError, UsageError

_REFERENCE = re.compile(r"^(?P<home>.+):(?P<name>[^\W\d]\w*(\.[^\W\d]\w*)*)$", re.DOTALL)
_FORM = "write FILE.py:function or module:function"
_MAX_MESSAGE = 300  # characters of a user's exception that fit a readable line
_MAX_NAMES = 8  # functions listed in a hint


def is_reference(text: str) -> bool:
    r"""Whether ``text`` names a function, and not a file that exists.

    >>> is_reference("calib.py:feeds"), is_reference("my.package:feeds"), is_reference("C:\\data")
    (True, True, False)
    """
    match = _REFERENCE.match(text)
    if match is None or Path(text).exists():
        return False
    return _is_file(match["home"]) or _is_module(match["home"])


@dataclass(frozen=True)
class UserFunction:
    """A function in the user's file or module; calling it raises only what it says below.

    Attributes:
        reference: as the user wrote it.
        name: of the function, dotted when it sits in a class.
        file: where it was loaded from.
        function: the function itself.
    """

    reference: str
    name: str
    file: str
    function: Callable[..., Any]

    def __call__(self, *args: Any, **options: Any) -> Any:
        """Call the function; ``options`` that it has no parameter for are left out.

        Raises:
            DataError: when it raises.
            ResourceError: when it runs out of memory.
        """
        with _guard(self.file, self.name):
            known = _parameters(self.function)
            return self.function(*args, **{key: value for key, value in options.items() if key in known})

    def iterate(self, values: Any) -> Iterator[Any]:
        """Yield from an iterable that the function returned, its code guarded as in a call.

        Raises:
            DataError: when it raises while it is read, or is not iterable.
            ResourceError: when it runs out of memory.
        """
        with _guard(self.file, self.name):
            iterator = iter(values)
        done = object()
        while True:
            with _guard(self.file, self.name):
                item = next(iterator, done)
            if item is done:
                return
            yield item


def load_function(reference: str, option: str = "--eval") -> UserFunction:
    """Return the function that ``reference`` names.

    A file is imported once, and again only after it changed: ``--data`` and ``--eval`` may share it.

    Args:
        reference: "FILE.py:function" or "module:function"; the function may be dotted (``Task.score``).
        option: what messages call the setting.

    Raises:
        UsageError: the form is wrong, or file, module or function are not there.
        DataError: the user's code fails while it is imported; the message names file and line.
        ResourceError: it runs out of memory.
    """
    match = _REFERENCE.match(reference)
    if not match or not (_is_file(match["home"]) or _is_module(match["home"])):
        raise UsageError(f"{option} is {reference!r}, which names no function", _FORM)
    home, name = match["home"], match["name"]
    module = _import_file(Path(home).expanduser(), option) if _is_file(home) else _import_module(home, option)
    value: Any = module
    for part in name.split("."):
        value = getattr(value, part, None)
    if not callable(value):
        found = "is missing" if value is None else f"is no function but {type(value).__name__}"
        own = (
            k for k, v in vars(module).items() if inspect.isfunction(v) and v.__module__ == module.__name__
        )
        public = ", ".join(sorted(k for k in own if not k.startswith("_"))[:_MAX_NAMES])
        raise UsageError(
            f"{option} {reference}: {name!r} {found} in {home}", f"functions there: {public or 'none'}"
        )
    return UserFunction(reference, name, str(getattr(module, "__file__", None) or home), value)


def wrap(function: Callable[..., Any]) -> UserFunction:
    """Guard a function that was not loaded from a reference, such as one given from Python."""
    if isinstance(function, UserFunction):
        return function
    code = getattr(function, "__code__", None)
    name = str(getattr(function, "__qualname__", type(function).__name__))
    return UserFunction(name, name, str(getattr(code, "co_filename", name)), function)


def _is_file(home: str) -> bool:
    return home.endswith(".py") or "/" in home or os.sep in home


def _is_module(home: str) -> bool:
    # One letter is the drive of a Windows path: C:\data has the form of module:function.
    return len(home) > 1 and all(part.isidentifier() for part in home.split("."))


def _parameters(function: Callable[..., Any]) -> tuple[str, ...]:
    try:
        return tuple(inspect.signature(function).parameters)
    except (TypeError, ValueError):  # some functions written in C have no signature
        return ()


def _import_file(path: Path, option: str) -> ModuleType:
    if not path.is_file():
        raise UsageError(f"{option}: {path} {'is a folder' if path.is_dir() else 'does not exist'}", _FORM)
    path = path.resolve()
    # A name of its own in sys.modules: dataclasses and pickle look their module up there.
    name = f"_onnxprune_user_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    stamp = (path.stat().st_mtime_ns, path.stat().st_size)
    known = sys.modules.get(name)
    if known is not None and known.__dict__.get("__onnxprune_stamp__") == stamp:
        return known
    module = ModuleType(name)
    module.__file__ = str(path)
    sys.modules[name] = module
    try:
        with _guard(str(path), "import"):
            # Not through importlib: its byte-code cache takes two edits within a second for one.
            exec(compile(path.read_bytes(), str(path), "exec", dont_inherit=True), module.__dict__)
    except BaseException:
        del sys.modules[name]
        raise
    module.__dict__["__onnxprune_stamp__"] = stamp
    return module


def _import_module(name: str, option: str) -> ModuleType:
    with _guard(name, "import"):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name and (name == error.name or name.startswith(f"{error.name}.")):
                raise UsageError(
                    f"{option}: no module named {name!r} here or among the installed packages", _FORM
                ) from error
            raise


@contextlib.contextmanager
def _guard(file: str, function: str) -> Iterator[None]:
    """Run user code: its folder importable, stdout sent to stderr, exceptions turned into one line."""
    folder = str(Path(file).resolve().parent if _is_file(file) else Path.cwd())
    sys.path.insert(0, folder)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except OnnxPruneError:
        raise
    except MemoryError as error:
        raise ResourceError(f"{file}: {function} ran out of memory", "load or yield less at once") from error
    except (Exception, SystemExit) as error:
        raise DataError(f"{_place(error, file)} in {function}: {_words(error)}") from error
    finally:
        with contextlib.suppress(ValueError):  # the user's code may have taken it out itself
            sys.path.remove(folder)


def _words(error: BaseException) -> str:
    """``ValueError: what it says`` on one line of bearable length."""
    text = " ".join((error.msg if isinstance(error, SyntaxError) else str(error)).split())
    text = text if len(text) <= _MAX_MESSAGE else text[: _MAX_MESSAGE - 3] + "..."
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _place(error: BaseException, file: str) -> str:
    """``file:line`` of the deepest frame in the user's file, else of the deepest one outside this module."""
    if isinstance(error, SyntaxError) and error.filename and _same(error.filename, file):
        return f"{file}:{error.lineno}"
    stack = traceback.extract_tb(error.__traceback__)
    frames = [frame for frame in stack if not _same(frame.filename, __file__)]
    own = [frame for frame in frames if _same(frame.filename, file)]
    deepest = (own or frames)[-1:]
    return f"{deepest[0].filename}:{deepest[0].lineno}" if deepest else file


def _same(a: str, b: str) -> bool:
    return os.path.abspath(a) == os.path.abspath(b)
