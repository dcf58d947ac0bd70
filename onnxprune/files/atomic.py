"""Files that appear complete or not at all.

Output is written into a hidden folder ``.NAME.tmp-PID`` beside the target, flushed to disk, and
renamed into place. A folder and not a single file, so that a model and its data file already bear
their final names there: what is about to be published can be loaded, run and checked first.

A writer holds a lock on its folder. A folder that nobody locks belongs to a dead process, and the
next write of the same target removes it. The lock and not the process id decides: ids repeat, in
containers nearly always, and say nothing about processes in another container.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import BinaryIO

from onnxprune.errors import OnnxPruneError, ResourceError, UsageError

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None

_MAX_WRITERS = 100  # of one target at the same time in one process
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)


class Staging:
    """The hidden folder of one write. Files in it are private until :meth:`publish`."""

    def __init__(self, target: Path, folder: Path, force: bool) -> None:
        self.target = target
        self.folder = folder
        self.force = force

    def path(self, name: str) -> Path:
        """Return where the file that will be called ``name`` is now."""
        return self.folder / name

    @contextlib.contextmanager
    def create(self, name: str) -> Iterator[BinaryIO]:
        """Open the future file ``name`` for writing; on leaving it is flushed to disk."""
        with os_errors(self.target), open(self.path(name), "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())

    def publish(self, companions: Sequence[str] = ()) -> tuple[Path, ...]:
        """Rename the target into place, after its ``companions``; return target and companions.

        The target is never seen with companions of another version: when one of them replaces an
        older file, the old target goes first. Killed in between, there is no target at all.
        """
        pairs = [(self.path(name), self.target.with_name(name)) for name in (*companions, self.target.name)]
        done: list[Path] = []
        try:
            with os_errors(self.target):
                if any(os.path.lexists(new) for _, new in pairs[:-1]) and self.force:
                    self.target.unlink(missing_ok=True)
                for old, new in pairs:
                    self._move(old, new)
                    done.append(new)
                _sync_folder(self.target.parent)
        except OnnxPruneError:
            for path in done:
                path.unlink(missing_ok=True)
            raise
        return tuple(new for _, new in (pairs[-1], *pairs[:-1]))

    def _move(self, old: Path, new: Path) -> None:
        if self.force:
            os.replace(old, new)
            return
        try:
            os.link(old, new)  # unlike a rename, it fails when somebody was quicker
        except FileExistsError:
            raise _exists(new) from None
        except OSError:  # a file system without hard links
            if os.path.lexists(new):
                raise _exists(new) from None
            os.replace(old, new)


@contextlib.contextmanager
def staged(target: Path, *, force: bool = False, companions: Sequence[str] = ()) -> Iterator[Staging]:
    """Open a :class:`Staging` for ``target``; whatever happens, nothing hidden stays behind.

    A target that is a symbolic link is replaced itself, never what it points to: links into caches
    and content-addressed stores must not be written through.

    Args:
        target: path of the file to write.
        force: replace existing files.
        companions: names of files that will be published beside the target.

    Raises:
        UsageError: when the folder is missing, or the target exists (without ``force``) or is not a file.
        ResourceError: when the disk is full or the folder cannot be written.
    """
    target = target.absolute()
    check_target(target, force=force)
    for name in companions:
        check_target(target.with_name(name), force=force)
    _remove_abandoned(target)
    with os_errors(target):
        folder, lock = _make_folder(target)
    try:
        yield Staging(target, folder, force)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def check_target(target: Path, *, force: bool) -> None:
    """Check that ``target`` can become a file.

    Raises:
        UsageError: when it cannot.
    """
    if "\0" in str(target):
        raise UsageError(f"{str(target)!r} is not a file name")
    if not os.path.isdir(target.parent):
        raise UsageError(
            f"cannot write {target}: there is no folder {target.parent}", "create the folder first"
        )
    if not os.path.lexists(target):
        return
    with os_errors(target):
        mode = target.stat().st_mode if os.path.exists(target) else target.lstat().st_mode
    if stat.S_ISDIR(mode):
        raise UsageError(f"cannot write {target}: it is a folder", "name a file")
    if not stat.S_ISREG(mode) and not stat.S_ISLNK(mode):
        raise UsageError(f"cannot write {target}: it is not a regular file", "name a file")
    if not force:
        raise _exists(target)


def _exists(target: Path) -> UsageError:
    return UsageError(f"{target} already exists", "pass --force to replace it, or choose another name")


def atomic_write_bytes(path: str | os.PathLike[str], data: bytes, *, force: bool = False) -> Path:
    """Write ``data`` to ``path`` completely or not at all; see :func:`staged` for what is refused."""
    with staged(Path(path), force=force) as stage:
        with stage.create(stage.target.name) as file:
            file.write(data)
        return stage.publish()[0]


def atomic_write_text(path: str | os.PathLike[str], text: str, *, force: bool = False) -> Path:
    """Write ``text`` as UTF-8; see :func:`atomic_write_bytes`."""
    return atomic_write_bytes(path, text.encode(), force=force)


@contextlib.contextmanager
def os_errors(target: Path) -> Iterator[None]:
    """Turn the system's errors while writing ``target`` into ours."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in _DISK_FULL:
            message, hint = (
                f"no space to write {target}: {reason}",
                "free some disk space, or write elsewhere",
            )
        elif error.errno in _READ_ONLY:
            message, hint = f"cannot write {target}: {reason}", "choose another folder with -o"
        elif error.errno == errno.ENAMETOOLONG:
            raise UsageError(f"cannot write {target}: {reason}", "choose a shorter name") from error
        else:
            message, hint = f"cannot write {target}: {reason}", ""
        raise ResourceError(message, hint) from error


def _make_folder(target: Path) -> tuple[Path, int | None]:
    """Create and lock the hidden folder; the lock is None where folders cannot be locked."""
    for attempt in range(_MAX_WRITERS):
        suffix = f"-{attempt}" if attempt else ""
        folder = target.with_name(f".{target.name}.tmp-{os.getpid()}{suffix}")
        try:
            folder.mkdir(mode=0o700)
        except FileExistsError:
            continue
        # A cleaner may have taken the new folder for an abandoned one before it was locked
        try:
            lock = _open_folder(folder)
        except FileNotFoundError:
            continue
        if lock is None:
            return folder, None
        if _lock(lock) is not False and _is_same(lock, folder):
            return folder, lock
        os.close(lock)
    raise ResourceError(f"cannot write {target}: {_MAX_WRITERS} other writes of it are under way")


def _remove_abandoned(target: Path) -> None:
    """Remove what killed processes left behind. Best effort: a leftover is no reason to fail."""
    pattern = re.compile(re.escape(f".{target.name}.tmp-") + r"(\d+)(-\d+)?")
    with contextlib.suppress(OSError), os.scandir(target.parent) as entries:
        for entry in list(entries):
            match = pattern.fullmatch(entry.name)
            if match and entry.is_dir(follow_symlinks=False):
                with contextlib.suppress(FileNotFoundError):  # its writer has just finished
                    _remove_if_abandoned(Path(entry.path), int(match[1]))


def _remove_if_abandoned(folder: Path, pid: int) -> None:
    lock = _open_folder(folder)
    if lock is None:
        return
    try:
        locked = _lock(lock)
        abandoned = locked or (locked is None and not _alive(pid))
        # The name may belong to a new writer by now, who does not hold the lock of the old folder
        if abandoned and _is_same(lock, folder):
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(lock)


def _open_folder(folder: Path) -> int | None:
    flags = (
        os.O_RDONLY
        | getattr(os, "O_DIRECTORY", 0)
        | getattr(os, "O_NOFOLLOW", 0)
        | getattr(os, "O_CLOEXEC", 0)
    )
    try:
        return os.open(folder, flags)
    except FileNotFoundError:
        raise
    except OSError:  # Windows, or the folder is not ours
        return None


def _lock(handle: int) -> bool | None:
    """Lock an open folder: True when we got it, False when it is held, None when it has no locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # some network file systems
        return None
    return True


def _is_same(handle: int, folder: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), folder.stat())
    except FileNotFoundError:
        return False


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def _sync_folder(folder: Path) -> None:
    """Flush the renames themselves; not every file system offers it."""
    handle = _open_folder(folder)
    if handle is None:
        return
    try:
        with contextlib.suppress(OSError):
            os.fsync(handle)
    finally:
        os.close(handle)
