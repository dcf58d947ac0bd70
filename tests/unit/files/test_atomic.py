from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from onnxprune.errors import ResourceError, UsageError
from onnxprune.files import atomic
from onnxprune.files.atomic import atomic_write_bytes, atomic_write_text, staged


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_write(tmp_path: Path) -> None:
    target = atomic_write_bytes(tmp_path / "a.json", b"data")
    assert target == tmp_path / "a.json"
    assert target.read_bytes() == b"data"
    atomic_write_text(tmp_path / "b.json", "größer")
    assert (tmp_path / "b.json").read_bytes() == "größer".encode()
    assert names(tmp_path) == ["a.json", "b.json"]


def test_new_files_get_the_usual_permissions(tmp_path: Path) -> None:
    (tmp_path / "usual").touch()
    atomic_write_bytes(tmp_path / "ours", b"")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    atomic_write_bytes("a", b"x")
    assert names(tmp_path) == ["a"]


def test_existing_file_needs_force(tmp_path: Path) -> None:
    atomic_write_bytes(tmp_path / "a", b"old")
    with pytest.raises(UsageError, match="already exists"):
        atomic_write_bytes(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"old"
    atomic_write_bytes(tmp_path / "a", b"new", force=True)
    assert (tmp_path / "a").read_bytes() == b"new"


def test_a_link_is_replaced_not_followed(tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(b"precious")
    for target in ("blob", "nowhere"):
        link = tmp_path / f"link-{target}"
        link.symlink_to(target)
        with pytest.raises(UsageError, match="already exists"):
            atomic_write_bytes(link, b"new")
        atomic_write_bytes(link, b"new", force=True)
        assert not link.is_symlink()
        assert link.read_bytes() == b"new"
    assert (tmp_path / "blob").read_bytes() == b"precious"
    assert not (tmp_path / "nowhere").exists()


def test_other_name_of_a_hard_link_keeps_its_content(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")
    (tmp_path / "b").hardlink_to(tmp_path / "a")
    atomic_write_bytes(tmp_path / "b", b"new", force=True)
    assert (tmp_path / "a").read_bytes() == b"old"


@pytest.mark.parametrize(
    "kind", ["folder", "link to a folder", "fifo", "link to a device", "nul", "no folder"]
)
def test_refused_targets(kind: str, tmp_path: Path) -> None:
    target = tmp_path / "target"
    if kind == "folder":
        target.mkdir()
    elif kind == "link to a folder":
        target.symlink_to(tmp_path)
    elif kind == "fifo":
        os.mkfifo(target)
    elif kind == "link to a device":
        target.symlink_to("/dev/null")
    elif kind == "nul":
        target = Path(f"{tmp_path}/a\0b")
    else:
        target = tmp_path / "no" / "such" / "file"
    before = names(tmp_path)
    with pytest.raises(UsageError):
        atomic_write_bytes(target, b"new", force=True)
    assert names(tmp_path) == before


def test_name_too_long(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="too long"):
        atomic_write_bytes(tmp_path / ("n" * 250), b"")


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EIO])
@pytest.mark.parametrize("call", ["mkdir", "fsync", "replace"])
def test_system_errors_leave_nothing(
    code: int, call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").write_bytes(b"old")

    def fail(*arguments: object, **keywords: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(atomic.os, call, fail)
    with pytest.raises(ResourceError, match=os.strerror(code)) as caught:
        atomic_write_bytes(tmp_path / "a", b"new", force=True)
    assert str(tmp_path / "a") in str(caught.value)
    assert names(tmp_path) == ["a"]
    assert (tmp_path / "a").read_bytes() == b"old"


def test_an_interrupt_leaves_nothing(tmp_path: Path) -> None:
    with (
        pytest.raises(KeyboardInterrupt),
        staged(tmp_path / "a") as stage,
        stage.create("a") as file,
    ):
        file.write(b"half")
        raise KeyboardInterrupt
    assert names(tmp_path) == []


def test_somebody_is_quicker(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="already exists"), staged(tmp_path / "a") as stage:
        with stage.create("a") as file:
            file.write(b"ours")
        (tmp_path / "a").write_bytes(b"theirs")
        stage.publish()
    assert (tmp_path / "a").read_bytes() == b"theirs"
    assert names(tmp_path) == ["a"]


def test_somebody_is_quicker_with_the_model_but_not_its_data(tmp_path: Path) -> None:
    with (
        pytest.raises(UsageError, match="already exists"),
        staged(tmp_path / "a", companions=["a.data"]) as stage,
    ):
        for name in ("a", "a.data"):
            with stage.create(name) as file:
                file.write(b"ours")
        (tmp_path / "a").write_bytes(b"theirs")
        stage.publish(["a.data"])
    assert names(tmp_path) == ["a"]  # no data file of ours beside their model


def test_file_system_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise PermissionError(errno.EPERM, "not permitted")

    monkeypatch.setattr(atomic.os, "link", fail)
    atomic_write_bytes(tmp_path / "a", b"x")
    assert (tmp_path / "a").read_bytes() == b"x"
    with pytest.raises(UsageError, match="already exists"), staged(tmp_path / "b") as stage:
        with stage.create("b") as file:
            file.write(b"ours")
        (tmp_path / "b").write_bytes(b"theirs")
        stage.publish()
    assert (tmp_path / "b").read_bytes() == b"theirs"


def test_target_and_companion_of_different_versions_are_never_seen_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(version: bytes) -> None:
        with staged(tmp_path / "m", force=True, companions=["m.data"]) as stage:
            for name in ("m", "m.data"):
                with stage.create(name) as file:
                    file.write(version)
            stage.publish(["m.data"])

    write(b"1")
    seen = []
    replace = os.replace

    def watch(old: Path, new: Path) -> None:
        replace(old, new)
        seen.append({p.name: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()})

    monkeypatch.setattr(atomic.os, "replace", watch)
    write(b"2")
    assert seen == [{"m.data": b"2"}, {"m": b"2", "m.data": b"2"}]


# ---------------------------------------------------------------- leftovers of killed processes


def leftover(folder: Path, target: str, pid: int) -> Path:
    path = folder / f".{target}.tmp-{pid}"
    path.mkdir()
    (path / target).write_bytes(b"half")
    return path


def dead_pid() -> int:
    return subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True).stdout


def test_leftovers_of_dead_processes_are_removed(tmp_path: Path) -> None:
    leftover(tmp_path, "a", int(dead_pid()))
    leftover(tmp_path, "a", os.getpid())  # of an earlier process with our id, as in containers
    leftover(tmp_path, "a", 1)  # a living id, but nobody holds the lock
    leftover(tmp_path, "a", 10**30)
    (tmp_path / ".a.tmp-5-3").mkdir()
    atomic_write_bytes(tmp_path / "a", b"x")
    assert names(tmp_path) == ["a"]


def test_other_hidden_things_stay(tmp_path: Path) -> None:
    keep = [
        leftover(tmp_path, "b", 4),
        leftover(tmp_path, "a.data", 4),  # of another target: "a.data"
        tmp_path / ".a.tmp-x",
        tmp_path / ".a.tmp-5.bak",
        tmp_path / "xa.tmp-5",
    ]
    for path in keep[2:]:
        path.mkdir()
    (tmp_path / ".a.tmp-6").write_bytes(b"a file, not ours")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "file").touch()
    (tmp_path / ".a.tmp-7").symlink_to("elsewhere")
    before = names(tmp_path)
    atomic_write_bytes(tmp_path / "a", b"x")
    assert names(tmp_path) == sorted([*before, "a"])
    assert (tmp_path / "elsewhere" / "file").exists()


def test_folders_of_living_writers_stay(tmp_path: Path) -> None:
    with staged(tmp_path / "a") as first:
        with first.create("a") as file:
            file.write(b"first")
        atomic_write_bytes(tmp_path / "a", b"second")
        assert first.path("a").read_bytes() == b"first"
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize("alive", [True, False])
def test_without_locks_the_process_id_decides(
    alive: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(atomic, "_lock", lambda handle: None)
    path = leftover(tmp_path, "a", os.getppid() if alive else int(dead_pid()))
    atomic_write_bytes(tmp_path / "a", b"x")
    assert path.exists() is alive


def test_a_folder_taken_by_a_cleaner_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between making and locking its folder a writer can lose it to a cleaner."""
    lock = atomic._lock
    taken = []

    def steal(handle: int) -> bool | None:
        if not taken:
            taken.append(os.readlink(f"/proc/self/fd/{handle}"))
            os.rmdir(taken[0])
        return lock(handle)

    monkeypatch.setattr(atomic, "_lock", steal)
    atomic_write_bytes(tmp_path / "a", b"x")
    assert names(tmp_path) == ["a"]
    assert taken


def test_many_threads_that_write_one_target(tmp_path: Path) -> None:
    """Writers take each other's new folders for abandoned ones unless every step is checked."""
    errors: list[Exception] = []
    interval = sys.getswitchinterval()

    def work() -> None:
        for _ in range(60):
            try:
                atomic_write_bytes(tmp_path / "a", b"x" * 100, force=True)
            except Exception as error:
                errors.append(error)

    sys.setswitchinterval(1e-5)
    try:
        threads = [threading.Thread(target=work) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert errors == []
    assert names(tmp_path) == ["a"]
