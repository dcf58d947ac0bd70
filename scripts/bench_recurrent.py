"""Train small recurrent models, prune them, and print accuracy and file size as a table.

    build/venv-samples/bin/python scripts/bench_recurrent.py FOLDER [--models digits-lstm chars-gru ...]

Wants torch, and for the digits scikit-learn (the environment of scripts/make_samples.py). What was trained is
kept in FOLDER. ``digits``: the 1,797 images of scikit-learn, read row by row by two bidirectional layers of
64 units, top-1 on 597 of them. ``chars``: the modules of Python's standard library, character by character
through an embedding and one layer of 256 units; the next character, top-1 on modules that it has not seen.
"""

from __future__ import annotations

import argparse
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

import onnxprune
from onnxprune import runtime

MODELS = ("digits-lstm", "digits-gru", "chars-lstm", "chars-gru")
STEPS, LENGTH, TRAINED = 1500, 64, {"digits": 1200, "chars": 320}
ALPHABET = "\n" + "".join(map(chr, range(32, 127)))
# The three ways of a row; sparsity and pattern come on top.
WAYS: dict[str, dict[str, Any]] = {
    "onnxprune": {},
    "magnitude, repaired": {"criterion": "magnitude"},
    "magnitude, uniform": {"criterion": "magnitude", "allocation": "uniform", "refit": False},
}
Array = NDArray[Any]


class Digits(nn.Module):
    """Rows of an image (N, 8, 8) to scores (N, 10)."""

    def __init__(self, cell: Callable[..., nn.Module]) -> None:
        super().__init__()
        self.cell = cell(8, 64, num_layers=2, bidirectional=True, batch_first=True)
        self.head = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Average what the last layer says of each row."""
        result: Tensor = self.head(self.cell(x)[0].mean(1))
        return result


class Characters(nn.Module):
    """Numbers of characters (N, T) to scores of the next ones (N, T, characters)."""

    def __init__(self, cell: Callable[..., nn.Module]) -> None:
        super().__init__()
        self.table = nn.Embedding(len(ALPHABET), 64)
        self.cell = cell(64, 256, batch_first=True)
        self.head = nn.Linear(256, len(ALPHABET))

    def forward(self, x: Tensor) -> Tensor:
        """Predict each next character."""
        result: Tensor = self.head(self.cell(self.table(x))[0])
        return result


def digits(cell: Callable[..., nn.Module]) -> tuple[nn.Module, Array, Array, Array]:
    """Return a trained model, calibration inputs, test inputs and their labels."""
    from sklearn.datasets import load_digits

    found = load_digits()
    x, y = torch.tensor(found.images / 16, dtype=torch.float32), torch.tensor(found.target)
    order = torch.randperm(len(x))
    train, test = order[: TRAINED["digits"]], order[TRAINED["digits"] :]
    model, epochs = Digits(cell), 30

    def batches() -> Any:
        for _ in range(epochs):
            for part in train[torch.randperm(len(train))].split(32):
                yield x[part] + 0.1 * torch.randn_like(x[part]), y[part]

    fit(model, batches(), epochs * -(-len(train) // 32))
    return model, x[train[:512]].numpy(), x[test].numpy(), y[test].numpy()


def characters(cell: Callable[..., nn.Module]) -> tuple[nn.Module, Array, Array, Array]:
    """Return the same for the language model: every eighth module is kept for the test."""
    paths = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    number = {c: k for k, c in enumerate(ALPHABET)}

    def read(chosen: list[Path]) -> Array:
        text = "".join(path.read_text(encoding="utf8", errors="ignore") for path in chosen)
        return np.array([number[c] for c in text if c in number])

    train = read([path for k, path in enumerate(paths) if k % 8])
    test = read(paths[::8])
    rng, model = np.random.default_rng(0), Characters(cell)

    def cut(text: Array, count: int) -> Tensor:
        starts = rng.integers(0, len(text) - LENGTH - 1, count)
        return torch.tensor(np.stack([text[s : s + LENGTH + 1] for s in starts]))

    fit(model, ((b[:, :-1], b[:, 1:]) for b in (cut(train, 16) for _ in range(STEPS))), STEPS)
    judge = cut(test, 400).numpy()
    return model, cut(train, TRAINED["chars"])[:, :-1].numpy(), judge[:, :-1], judge[:, 1:]


def fit(model: nn.Module, batches: Any, steps: int) -> None:
    """Train in place."""
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    for x, y in batches:
        loss = F.cross_entropy(model(x).flatten(0, -2), y.flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    model.eval()


def made(folder: Path, name: str) -> tuple[Path, Path]:
    """Return the dense file and its data, trained unless they are there."""
    path, data = folder / f"{name}.onnx", folder / f"{name}.npz"
    if not (path.exists() and data.exists()):
        torch.manual_seed(0)
        task, _, cell = name.partition("-")
        kind = {"lstm": nn.LSTM, "gru": nn.GRU}[cell]
        model, x, test, label = (digits if task == "digits" else characters)(kind)
        axes = {0: torch.export.Dim("N"), **({1: torch.export.Dim("T")} if task == "chars" else {})}
        example = torch.tensor(x[:2])
        torch.onnx.export(
            model,
            (example,),
            path,
            input_names=["x"],
            dynamic_shapes=(axes,),
            dynamo=True,
            external_data=False,
        )
        np.savez(data, x=x, test=test, label=label)
    return path, data


def score(path: Path, data: Path) -> float:
    """Return top-1 in percent."""
    with np.load(data) as archive:
        test, label = archive["test"], archive["label"]
    session = runtime.session(path, threads=1, kernels=False)
    hits = [
        (session.run(None, {"x": test[k : k + 100]})[0].argmax(-1) == label[k : k + 100]).ravel()
        for k in range(0, len(test), 100)
    ]
    return 100 * float(np.concatenate(hits).mean())


def main() -> None:
    """Print a line for each model and sparsity."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--models", nargs="+", default=MODELS, choices=MODELS)
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.5, 0.7, 0.8])
    parser.add_argument("--pattern", default="unstructured")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    ways = {"onnxprune": WAYS["onnxprune"]} if given.pattern == "hidden" else WAYS
    print(f"| model | sparsity | dense | {' | '.join(ways)} | file, kB |\n|{' --- |' * (len(ways) + 4)}")
    for name in given.models:
        path, data = made(given.folder, name)
        with np.load(data) as archive:
            feeds = {"x": archive["x"]}
        for sparsity in given.sparsity:
            found, sizes = [], []
            for options in ways.values():
                target = given.folder / "pruned.onnx"
                onnxprune.prune(
                    path, target, data=feeds, sparsity=sparsity, pattern=given.pattern, force=True, threads=1,
                    target_runtime="stock", cache=False, **options,
                )  # fmt: skip
                found.append(f"{score(target, data):.1f}")
                sizes.append(target.stat().st_size / 1000)
            whole = path.stat().st_size / 1000
            print(
                f"| {name} | {100 * sparsity:.0f} % | {score(path, data):.1f} | {' | '.join(found)} "
                f"| {whole:.0f} -> {sizes[0]:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
