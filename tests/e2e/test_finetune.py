"""Fine-tuning from the command line: the same graph, exact zeros, several processes, clear refusals."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxprune.cli import main
from onnxprune.export import export
from onnxprune.io import load
from onnxprune.layers import find_layers
from onnxprune.passes.unpack import unpack

QUICK = ("--allocation", "uniform", "--no-refit")
COMMON = ("--threads", "1", "--samples", "64", "--no-cache", "--target-runtime", "stock")


def run(*words: object, launcher: tuple[str, ...] = (), **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *launcher, "-m", "onnxprune", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **env}, timeout=280)


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str]:
    """Run in this process, since importing takes longer than refusing; return status and first line."""
    status = main([str(word) for word in words])
    return status, capsys.readouterr().err.splitlines()[0]


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory, digits_cnn: Path, calibration_npz: Path) -> Path:
    """Pruned hard and plainly, so that there is something to win back."""
    output = tmp_path_factory.mktemp("finetune") / "pruned.onnx"
    done = run(
        digits_cnn, "--sparsity", "0.8", "--criterion", "magnitude", "--no-refit", "--allocation", "uniform",
        "--data", calibration_npz, "-o", output, *COMMON,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return output


def zeros(path: Path) -> dict[str, bytes]:
    model = load(path)
    unpack(model)
    layers, _ = find_layers(model, min_size=1)
    return {layer.name: np.packbits(model.array(layer.name) == 0).tobytes() for layer in layers}


def test_the_command_trains_a_pruned_model(
    tmp_path: Path, pruned: Path, digits_cnn: Path, calibration_npz: Path
) -> None:
    output = tmp_path / "tuned.onnx"
    words = (
        "finetune",
        pruned,
        "--teacher",
        digits_cnn,
        "--data",
        calibration_npz,
        "--steps",
        "100",
        "--lr",
        "0.01",
    )
    done = run(*words, "-o", output, "--json", *COMMON)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    found = report["finetuning"]
    assert found["steps"] == 100
    assert found["after"] < 0.85 * found["before"]
    assert found["difference"] < 1e-5
    assert zeros(output) == zeros(pruned)
    assert report["zeros"] == json.loads(pruned.with_suffix(".json").read_text())["zeros"]
    for one, other in ((pruned, "a.onnx"), (output, "b.onnx")):
        export(one, tmp_path / other, format="dense")
    before, after = (onnx.load(tmp_path / name) for name in ("a.onnx", "b.onnx"))
    for proto in (before, after):
        del proto.graph.initializer[:]
    assert before.SerializeToString() == after.SerializeToString()
    # in this process, where torch is loaded already
    assert main([str(word) for word in (*words, "-o", tmp_path / "again.onnx", *COMMON)]) == 0
    assert (tmp_path / "again.onnx").read_bytes() == output.read_bytes()  # the same seed, the same bytes


def test_prune_and_train_in_rounds(tmp_path: Path, digits_cnn: Path, calibration_npz: Path) -> None:
    output = tmp_path / "rounds.onnx"
    done = run(
        digits_cnn, "--sparsity", "0.9", "--pattern", "block:4x1", "--data", calibration_npz, "--finetune",
        "--schedule", "cubic:2", "--steps", "20", "-o", output, "--json", *COMMON,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert [timing["stage"] for timing in report["timings"]].count("fine-tune") == 2
    assert report["sparsity"] == pytest.approx(0.9, abs=0.001)
    assert report["finetuning"]["steps"] == 20  # of both
    assert report["verdict"] in ("ok", "degraded")


@pytest.mark.slow
def test_two_processes(tmp_path: Path, pruned: Path, digits_cnn: Path, calibration_npz: Path) -> None:
    output = tmp_path / "two.onnx"
    launcher = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0", "--standalone")
    done = run(
        "finetune", pruned, "--teacher", digits_cnn, "--data", calibration_npz, "--steps", "20",
        "-o", output, "--json", *COMMON, launcher=launcher,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)  # one document: the other process says nothing
    assert report["finetuning"]["after"] < report["finetuning"]["before"]
    assert zeros(output) == zeros(pruned)


def test_without_torch(tmp_path: Path, digits_cnn: Path, calibration_npz: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.util as u\n"
        "find = u.find_spec\n"
        "u.find_spec = lambda name, *rest: None if name == 'torch' else find(name, *rest)\n"
    )
    output = tmp_path / "o.onnx"
    done = run(digits_cnn, "--data", calibration_npz, "--finetune", "-o", output, PYTHONPATH=str(tmp_path))
    assert done.returncode == 4
    assert done.stderr.splitlines() == [
        "error: --finetune needs torch, which is not installed",
        "hint: pip install torch",
    ]
    assert not output.exists()


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (("--steps", "5"), "--steps is for fine-tuning"),
        (("--augment", "spin", "--finetune"), "--augment is 'spin'"),
        (("--lr", "0", "--finetune"), "--lr is 0, wanted a number above 0"),
        (("--loss", "huber", "--finetune"), "--loss is 'huber'"),
        (("--schedule", "cubic:0", "--finetune"), "--schedule is 'cubic:0'"),
        (("--schedule", "cubic:9", "--steps", "5", "--finetune"), "needs a step a round, --steps is 5"),
        (("--augment", "none", "--augment", "mix", "--finetune"), "go with nothing else"),
        (("--scope", "block", "--augment", "flip", "--finetune"), "--augment is for --scope model"),
        (("--scope", "block", "--loss", "kl", "--finetune"), "--loss kl is for outputs"),
        (("--loss", "nofile.py:f", "--finetune"), "--loss: nofile.py does not exist"),
        (("--schedule", "cubic:3", "--pattern", "2:4", "--finetune"), "pattern 2:4 is all or nothing"),
    ],
)
def test_wrong_options(
    capsys: pytest.CaptureFixture[str], digits_cnn: Path, words: tuple[str, ...], wanted: str
) -> None:
    status, said = refused(capsys, digits_cnn, *words)
    assert status == 2
    assert wanted in said


def test_a_teacher_that_is_another_model(
    tmp_path: Path, pruned: Path, digits_transformer: Path, calibration_npz: Path
) -> None:
    done = run(
        "finetune",
        pruned,
        "--teacher",
        digits_transformer,
        "--data",
        calibration_npz,
        "-o",
        tmp_path / "o.onnx",
    )
    assert done.returncode == 3
    assert "is no pruned form of digits_transformer.onnx" in done.stderr


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory, samples_dir: Path) -> Path:
    """right.npz, wrong.npz and high.npz to learn from; judge.py: log likelihood of other right labels."""
    folder = tmp_path_factory.mktemp("labelled")
    with np.load(samples_dir / "digits_test.npz") as data:
        image, label = data["image"], data["label"]
    train, test = np.split(np.random.default_rng(0).permutation(len(image)), [360])
    for name, own in (("right", label), ("wrong", (label + 1) % 10), ("high", label + 1)):
        np.savez(folder / f"{name}.npz", image=image[train], label=own[train])
    np.savez(folder / "test.npz", image=image[test], label=label[test])
    (folder / "judge.py").write_text(
        "from pathlib import Path\n"
        "import numpy as np\n"
        "def likelihood(session):\n"
        "    data = np.load(Path(__file__).with_name('test.npz'))\n"
        "    x = session.run(None, {'image': data['image']})[0].astype(np.float64)\n"
        "    x = x - np.log(np.exp(x).sum(1, keepdims=True))\n"
        "    return float(x[np.arange(len(x)), data['label']].mean())\n"
    )
    return folder


def test_labels_teach(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], digits_cnn: Path, labelled: Path
) -> None:
    """Wrong ones teach the wrong thing."""
    found = {}
    for name in ("right", "wrong"):
        words = (
            digits_cnn, "--sparsity", "0.8", "--data", labelled / f"{name}.npz", "--labels", "label",
            "--finetune", "--steps", "25", "--lr", "0.003", "--eval", f"{labelled}/judge.py:likelihood",
            "-o", tmp_path / f"{name}.onnx", "--json", *COMMON,
        )  # fmt: skip
        assert main([str(word) for word in words]) == 0
        found[name] = json.loads(capsys.readouterr().out)
        used = found[name]["finetuning"]["labels"]
        assert used == {"key": "label", "count": 64, "output": "logits", "loss": "cross entropy"}
        assert found[name]["finetuning"]["best"]
    assert found["right"]["metric_after"] > found["wrong"]["metric_after"] + 0.1
    assert found["right"]["finetuning"]["before"] + 2 < found["wrong"]["finetuning"]["before"]


@pytest.mark.parametrize(
    ("words", "status", "wanted"),
    [
        (("--data", "right.npz", "--labels", "label"), 2, "--labels is for fine-tuning"),
        (("--data", "right.npz", "--labels", "y", "--finetune"), 3, "no labels 'y'; found image, label"),
        (("--data", "right.npz", "--labels", "image", "--finetune"), 2, "which is an input of the model"),
        (
            ("--data", "high.npz", "--labels", "label", "--finetune"),
            3,
            "class number 10, but output 'logits'",
        ),
        (("--labels", "label", "--finetune"), 2, "there is no --data"),
        (("--data", "right.npz", "--labels", "label", "--finetune", "--augment", "mix"), 2, "--augment mix"),
        (("--data", "right.npz", "--labels", "label", "--finetune", "--scope", "block"), 2, "--scope block"),
    ],
)
def test_labels_that_cannot_be(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    digits_cnn: Path,
    labelled: Path,
    words: tuple[str, ...],
    status: int,
    wanted: str,
) -> None:
    paths = [str(labelled / word) if word.endswith(".npz") else word for word in words]
    found, said = refused(capsys, digits_cnn, *paths, "-o", tmp_path / "o.onnx", *QUICK, *COMMON)
    assert found == status
    assert wanted in said
    assert not (tmp_path / "o.onnx").exists()
