"""The command line as a process: exit statuses, streams, signals. No stand-ins."""

from __future__ import annotations

import hashlib
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest

import onnxprune

if TYPE_CHECKING:
    import onnx

ROOT = Path(__file__).resolve().parent.parent.parent
COMMAND = (sys.executable, "-m", "onnxprune")
# What a developer's shell may have set and what would change the output.
DROPPED = (
    "NO_COLOR",
    "FORCE_COLOR",
    "CI",
    "COLUMNS",
    "ONNXPRUNE_TRACEBACK",
    "PYTHONIOENCODING",
    "PYTHONUTF8",
)


def environment(**changes: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in DROPPED}
    return {**kept, "PYTHONPATH": str(ROOT), **changes}


def run(
    *words: str | Path, cwd: Path, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    command = [*COMMAND, *map(str, words)]
    done = subprocess.run(
        command, cwd=cwd, env=env or environment(), capture_output=True, text=True, check=False, timeout=60
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


def make_models(folder: Path, build_model: Callable[..., onnx.ModelProto]) -> Path:
    """Fill a folder with a dense model, one that differs a little, one that is ruined, and data."""
    weights = np.random.default_rng(0).normal(size=(16, 10)).astype(np.float32)
    text = "g (float[N, 16] x) => (float[N, 10] logits) { logits = MatMul(x, w) }"
    for name, scale in (("dense", 1.0), ("near", 0.999), ("ruined", -1.0)):
        model = build_model(text, {"w": weights * np.float32(scale)})
        (folder / f"{name}.onnx").write_bytes(model.SerializeToString())
    data = np.random.default_rng(1).normal(size=(64, 16)).astype(np.float32)
    np.savez(folder / "x.npz", x=data)
    return folder


@pytest.fixture
def models(tmp_path: Path, build_model: Callable[..., onnx.ModelProto]) -> Path:
    return make_models(tmp_path, build_model)


class TestHelp:
    @pytest.mark.parametrize(
        "words", [["--help"], ["prune", "--help"], ["--version"], ["prune", "--dump-config"]]
    )
    def test_loads_nothing_heavy(self, words: list[str], tmp_path: Path) -> None:
        heavy = ["numpy", "onnx", "onnxruntime", "scipy", "rich", "torch", "onnx_graphsurgeon", "asyncio"]
        code = (
            "import json, sys; from onnxprune.cli import main; status = main(sys.argv[1:]);"
            f"print(json.dumps([m for m in {heavy} if m in sys.modules]), file=sys.stderr); sys.exit(status)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, *words],
            cwd=tmp_path, env=environment(), capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert json.loads(done.stderr) == []
        assert done.stdout

    def test_usage_errors_load_nothing_heavy_either(self, tmp_path: Path) -> None:
        code = (
            "import sys; from onnxprune.cli import main; main(['m.onnx', '--sparsity', '3']);"
            "sys.exit('onnx' in sys.modules)"
        )
        done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment(), check=False)
        assert done.returncode == 0

    def test_version(self, tmp_path: Path) -> None:
        done = run("--version", cwd=tmp_path)
        assert (done.returncode, done.stdout, done.stderr) == (0, f"onnxprune {onnxprune.__version__}\n", "")


class TestUsageErrors:
    @pytest.mark.parametrize(
        "words",
        [
            [],
            ["m.onnx", "--sparsity", "70"],
            ["m.onnx", "--pattern", "5:4"],
            ["m.onnx", "--sparsty", "0.7"],
            ["m.onnx", "--config", "nowhere.toml"],
            ["inspct", "m.onnx"],
        ],
        ids=" ".join,
    )
    def test_status_two_and_one_line(self, words: list[str], tmp_path: Path) -> None:
        done = run(*words, cwd=tmp_path)
        assert done.returncode == 2
        assert done.stdout == ""
        if words:
            lines = done.stderr.splitlines()
            assert lines[0].startswith("error: ") and len(lines) <= 2, done.stderr
        assert not os.listdir(tmp_path)


class TestDoctor:
    def test_this_machine(self, tmp_path: Path) -> None:
        done = run("doctor", cwd=tmp_path)
        assert done.returncode == 0, done.stdout
        assert done.stdout.endswith("ready to prune\n") and done.stderr == ""

    def test_json(self, tmp_path: Path) -> None:
        document = json.loads(run("doctor", "--json", cwd=tmp_path).stdout)
        assert document["healthy"] is True
        assert {"python", "onnx", "onnxruntime", "cpu"} <= {check["name"] for check in document["checks"]}


class TestCompare:
    def test_near_models_agree(self, models: Path) -> None:
        done = run("compare", "dense.onnx", "near.onnx", "--data", "x.npz", cwd=models)
        assert (done.returncode, done.stderr) == (0, "")
        assert "top-1 100.0 %" in done.stdout.splitlines()[0]

    def test_ruined_model_is_status_one(self, models: Path) -> None:
        done = run("compare", "dense.onnx", "ruined.onnx", "--data", "x.npz", "--json", cwd=models)
        assert done.returncode == 1
        document = json.loads(done.stdout)
        assert document["verdict"] == "broken" and document["agrees"] is False

    def test_missing_model_and_data(self, models: Path) -> None:
        for words in (["nowhere.onnx", "near.onnx"], ["dense.onnx", "near.onnx", "--data", "nowhere.npz"]):
            done = run("compare", *words, cwd=models)
            assert done.returncode in (2, 3)
            assert done.stdout == "" and done.stderr.startswith("error: ") and "nowhere" in done.stderr

    def test_what_the_measure_prints_is_no_result(self, models: Path) -> None:
        (models / "task.py").write_text("def score(session):\n    print('hello')\n    return 0.5\n")
        done = run(
            "compare",
            "dense.onnx",
            "near.onnx",
            "--data",
            "x.npz",
            "--eval",
            "task.py:score",
            "--json",
            cwd=models,
        )
        assert json.loads(done.stdout)["metric_values"] == [0.5, 0.5]
        assert "hello" in done.stderr


class TestSensitivity:
    def test_curves_a_plan_and_a_figure(self, models: Path) -> None:
        files = ("-o", "plan.json", "--plot", "curves.svg")
        words = (
            "dense.onnx",
            "--data",
            "x.npz",
            "--min-size",
            "16",
            "--levels",
            "0.5,0.9",
            "--sparsity",
            "0.4",
        )
        done = run("sensitivity", *words, *files, cwd=models)
        assert done.returncode == 0, done.stderr
        assert "50 %" in done.stdout and "plan: 40.0 % in all" in done.stdout
        assert "onnxprune MODEL --plan plan.json" in done.stdout
        assert (models / "curves.svg").read_text().startswith("<?xml")
        pruned = ("dense.onnx", "--data", "x.npz", "--min-size", "16", "--plan", "plan.json", "--json")
        done = run(*pruned, cwd=models)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["zeros"] == 64  # 40 % of 160

    def test_the_document_is_a_plan(self, models: Path) -> None:
        words = ("dense.onnx", "--data", "x.npz", "--min-size", "16", "--json")
        document = json.loads(run("sensitivity", *words, cwd=models).stdout)
        assert document["layers"]["w"]["sparsity"] == 0.7 and len(document["levels"]) == 5
        refused = run("sensitivity", *words, "--levels", "0.9,0.5", cwd=models)
        assert refused.returncode == 2 and "--levels is '0.9,0.5'" in refused.stderr


class TestBench:
    def test_two_models(self, models: Path) -> None:
        done = run(
            "bench", "dense.onnx", "near.onnx", "--rounds", "6", "--threads", "1", "--json", cwd=models
        )
        assert done.returncode == 0, done.stderr
        document = json.loads(done.stdout)
        assert [item["name"] for item in document["timings"]] == ["dense.onnx", "near.onnx"]

    def test_table(self, models: Path) -> None:
        done = run("bench", "dense.onnx", "--rounds", "6", "--threads", "1", cwd=models)
        assert done.returncode == 0
        assert done.stdout.startswith("dense.onnx takes ")


QUICK = ("--criterion", "magnitude", "--allocation", "uniform", "--data", "x.npz", "--min-size", "16")


class Pruned(NamedTuple):
    """A folder after a run, the hashes of what was in it before, and the run."""

    folder: Path
    before: dict[str, str]
    done: subprocess.CompletedProcess[str]


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory, build_model: Callable[..., onnx.ModelProto]) -> Pruned:
    """A run whose files several tests look at."""
    folder = make_models(tmp_path_factory.mktemp("pruned"), build_model)
    before = digests(folder)
    return Pruned(folder, before, run("dense.onnx", "--sparsity", "0.6", *QUICK, cwd=folder))


class TestPrune:
    """The streams and files of a run; what it computes has its own tests."""

    def test_writes_model_and_report_beside_the_input(self, pruned: Pruned) -> None:
        assert pruned.done.returncode == 0, pruned.done.stderr
        after = digests(pruned.folder)
        assert {"dense.pruned.onnx", "dense.pruned.json"} <= set(after) - set(pruned.before)
        assert {name: after[name] for name in pruned.before} == pruned.before

    def test_summary(self, pruned: Pruned) -> None:
        assert "60.0 % of 160 weights zero" in pruned.done.stdout.splitlines()[0]
        assert "wrote   dense.pruned.onnx and dense.pruned.json\n" in pruned.done.stdout
        assert pruned.done.stderr == ""

    def test_report_repeats_the_run_bit_by_bit(self, pruned: Pruned) -> None:
        words = [
            "dense.onnx",
            "--config",
            "dense.pruned.json",
            "-o",
            "o.onnx",
            "--report",
            "r.json",
            "--json",
        ]
        done = run(*words, cwd=pruned.folder)
        assert done.returncode == 0, done.stderr
        found = digests(pruned.folder)
        assert found["o.onnx"] == found["dense.pruned.onnx"]
        document = json.loads(done.stdout)
        assert document == json.loads((pruned.folder / "r.json").read_text())
        assert document["command_line"] == f"onnxprune {' '.join(words)}"
        assert (document["output"], document["sparsity"]) == ("o.onnx", 0.6)

    def test_existing_output_is_kept(self, pruned: Pruned) -> None:
        before = digests(pruned.folder)
        done = run("dense.onnx", *QUICK, cwd=pruned.folder)
        assert done.returncode == 2 and "--force" in done.stderr and done.stdout == ""
        assert digests(pruned.folder) == before

    def test_inspect_sees_the_zeros(self, pruned: Pruned) -> None:
        words = ["inspect", "dense.onnx", "dense.pruned.onnx", "--min-size", "16", "--json"]
        first, second = json.loads(run(*words, cwd=pruned.folder).stdout)["models"]
        assert (first["layers"][0]["zeros"], second["layers"][0]["zeros"]) == (0, 96)

    def test_dry_run_writes_nothing_and_made_up_data_is_shouted(self, models: Path) -> None:
        before = digests(models)
        done = run("dense.onnx", "--dry-run", *QUICK[:4], "--min-size", "16", cwd=models)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("dry run, nothing written")
        assert "SYNTHETIC DATA" in done.stdout and done.stderr.startswith("warning: ")
        assert digests(models) == before

    @pytest.mark.parametrize("content", [b"", b"hello", bytes(range(256)) * 3], ids=len)
    def test_file_that_is_no_model(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "m.onnx").write_bytes(content)
        done = run("m.onnx", cwd=tmp_path)
        assert done.returncode == 3 and done.stdout == ""
        assert done.stderr.startswith("error: m.onnx") and len(done.stderr.splitlines()) <= 2
        assert os.listdir(tmp_path) == ["m.onnx"]


class TestStreams:
    def test_pipe_has_neither_colour_nor_progress(self, models: Path) -> None:
        done = run("compare", "dense.onnx", "near.onnx", cwd=models)
        assert "\x1b" not in done.stdout + done.stderr
        assert done.stderr == ""

    def test_reader_that_goes_away(self, models: Path) -> None:
        reader, writer = os.pipe()
        os.close(reader)
        done = subprocess.run(
            [*COMMAND, "doctor"],
            cwd=models,
            env=environment(),
            stdout=writer,
            stderr=subprocess.PIPE,
            check=False,
        )
        os.close(writer)
        assert (done.returncode, done.stderr) == (141, b"")

    @pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
    @pytest.mark.parametrize("words", [["doctor"], ["--help"]])
    def test_full_disk(self, models: Path, words: list[str]) -> None:
        with open("/dev/full", "w") as full:
            done = subprocess.run(
                [*COMMAND, *words],
                cwd=models,
                env=environment(),
                stdout=full,
                stderr=subprocess.PIPE,
                check=False,
            )
        assert done.returncode == 4
        assert done.stderr.startswith(b"error: output: No space left"), done.stderr
        assert done.stderr.count(b"\n") == 1

    @pytest.mark.parametrize("closed", [">&- 2>&-"])
    def test_closed_streams(self, models: Path, closed: str) -> None:
        shell = f'"{sys.executable}" -m onnxprune compare dense.onnx near.onnx --data x.npz {closed}'
        done = subprocess.run(
            shell, shell=True, cwd=models, env=environment(), capture_output=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert done.stderr == b""

    def test_stdout_that_is_not_utf8(self, models: Path) -> None:
        (models / "mod\u00e8le \u5c64.onnx").write_bytes((models / "near.onnx").read_bytes())
        plain = environment(PYTHONIOENCODING="ascii")
        done = run(
            "compare", "dense.onnx", "mod\u00e8le \u5c64.onnx", "--data", "x.npz", cwd=models, env=plain
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.isascii() and r"mod\xe8le \u5c64.onnx" in done.stdout

    def test_name_that_is_not_utf8(self, tmp_path: Path) -> None:
        done = run("compare", os.fsdecode(b"odd-\xff.onnx"), "b.onnx", cwd=tmp_path)
        assert done.returncode in (2, 3)
        assert done.stderr.startswith("error: ") and "odd-" in done.stderr

    def test_narrow_terminal(self, models: Path) -> None:
        done = run("doctor", cwd=models, env=environment(COLUMNS="40"))
        assert done.returncode == 0
        assert max(map(len, done.stdout.splitlines())) <= 40


def on_terminal(words: Sequence[str], cwd: Path, env: Mapping[str, str]) -> tuple[int, str, str]:
    """Run with stderr on a pseudo-terminal and stdout in a pipe; return status, stdout and stderr."""
    master, slave = pty.openpty()
    process = subprocess.Popen([*COMMAND, *words], cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=slave)
    os.close(slave)
    seen = b""
    while select.select([master], [], [], 30)[0]:
        try:
            part = os.read(master, 65536)
        except OSError:  # Linux says EIO when the other side is closed
            break
        if not part:
            break
        seen += part
    assert process.stdout is not None
    with process.stdout:
        output = process.stdout.read()
    os.close(master)
    return process.wait(30), output.decode(), seen.decode()


class TestTerminal:
    WORDS = ("bench", "dense.onnx", "near.onnx", "--threads", "1", "--json", "--rounds", "5")

    def test_progress_goes_to_stderr_only(self, models: Path) -> None:
        status, output, seen = on_terminal(self.WORDS, models, environment(TERM="xterm"))
        assert status == 0
        assert json.loads(output)
        assert "\x1b[" in seen
        assert seen.rfind("\x1b[?25h") > seen.rfind("\x1b[?25l") >= 0  # the cursor is back

    @pytest.mark.parametrize(
        ("extra", "changes"), [(["--quiet"], {}), ([], {"CI": "true"}), ([], {"TERM": "dumb"})]
    )
    def test_progress_can_be_off(self, models: Path, extra: list[str], changes: dict[str, str]) -> None:
        status, output, seen = on_terminal(
            [*self.WORDS, *extra], models, environment(**{"TERM": "xterm", **changes})
        )
        assert status == 0 and json.loads(output)
        assert seen == ""

    def test_errors_are_coloured_there(self, models: Path) -> None:
        status, output, seen = on_terminal(["--bogus"], models, environment(TERM="xterm"))
        assert (status, output) == (2, "")
        assert seen.startswith("\x1b[31m\x1b[1merror:\x1b[0m ")
        _, _, seen = on_terminal(["--bogus"], models, environment(TERM="xterm", NO_COLOR="1"))
        assert seen.startswith("error: ")


def heed_interrupts() -> None:
    """A shell that started the tests in the background made them, and so their children, ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize(
    ("number", "status", "words"), [(signal.SIGINT, 130, "error: interrupted\n"), (signal.SIGTERM, 143, "")]
)
def test_signals_end_a_run_with_a_word(models: Path, number: int, status: int, words: str) -> None:
    process = subprocess.Popen(
        [*COMMAND, "bench", "dense.onnx", "--threads", "1", "--min-time", "60"],
        cwd=models, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=heed_interrupts,
    )  # fmt: skip
    time.sleep(1.5)  # into the measurement, or at least into the imports: both must end well
    process.send_signal(number)
    output, errors = process.communicate(timeout=30)
    assert (process.returncode, output, errors) == (status, "", words)


def test_api_and_command_line_give_the_same(models: Path) -> None:
    done = run("compare", "dense.onnx", "near.onnx", "--data", "x.npz", "--json", cwd=models)
    recipe = onnxprune.Recipe(data=str(models / "x.npz"))
    result: Any = onnxprune.compare(models / "dense.onnx", models / "near.onnx", recipe=recipe)
    document = json.loads(done.stdout)
    assert document["agreements"] == json.loads(json.dumps(result.to_dict()["agreements"]))
    assert document["verdict"] == result.verdict
