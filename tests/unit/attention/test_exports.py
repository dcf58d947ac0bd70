"""Attention as torch exports it, by both exporters and as one operator."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxprune.attention.find import find_attention
from onnxprune.attention.statistics import observe
from onnxprune.calibration.store import ArrayStore
from onnxprune.io import load

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")  # both exporters need it
pytestmark = pytest.mark.filterwarnings("ignore")  # torch warns of itself

WIDTH, HEADS, TOKENS = 24, 3, 5
EXPORTERS = {"TorchScript": (False, 17), "dynamo": (True, 18), "dynamo, Attention": (True, 23)}


class Block(torch.nn.Module):  # type: ignore[misc,name-defined]
    """Pre-norm self-attention with residual; with fewer heads of keys they are shared."""

    def __init__(self, causal: bool = False, kv_heads: int = HEADS) -> None:
        super().__init__()
        size = WIDTH // HEADS
        self.norm, self.q = torch.nn.LayerNorm(WIDTH), torch.nn.Linear(WIDTH, WIDTH)
        self.k, self.v = (torch.nn.Linear(WIDTH, kv_heads * size) for _ in range(2))
        self.o, self.size, self.causal = torch.nn.Linear(WIDTH, WIDTH), size, causal

    def heads(self, x: Any) -> Any:
        return x.view(*x.shape[:2], -1, self.size).transpose(1, 2)

    def forward(self, x: Any) -> Any:
        h = self.norm(x)
        q, k, v = self.heads(self.q(h)), self.heads(self.k(h)), self.heads(self.v(h))
        if k.shape[1] != HEADS:
            k, v = (y.repeat_interleave(HEADS // y.shape[1], 1) for y in (k, v))
        y = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return x + self.o(y.transpose(1, 2).reshape(x.shape))

    def probabilities(self, x: Any) -> Any:
        h = self.norm(x)
        q, k = self.heads(self.q(h)), self.heads(self.k(h))
        scores = q @ k.repeat_interleave(HEADS // k.shape[1], 1).transpose(2, 3) / self.size**0.5
        if self.causal:
            scores = scores.masked_fill(~torch.ones(TOKENS, TOKENS).tril().bool(), -torch.inf)
        return scores.softmax(-1)


class Encoder(torch.nn.Module):  # type: ignore[misc,name-defined]
    """torch's own layer: one weight for queries, keys and values, tokens before samples inside."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.TransformerEncoderLayer(WIDTH, HEADS, 48, batch_first=True)

    def forward(self, x: Any) -> Any:
        return self.layer(x)

    def probabilities(self, x: Any) -> Any:
        return self.layer.self_attn(x, x, x, average_attn_weights=False)[1]


MODULES = {
    "plain": Block,
    "causal": lambda: Block(causal=True),
    "shared keys": lambda: Block(kv_heads=1),
    "encoder layer": Encoder,
}


@pytest.fixture
def store() -> Iterator[ArrayStore]:
    with ArrayStore(2**28) as held:
        yield held


# One module per exporter, and the rest with the quick one; --slow runs all.
CASES = [
    pytest.param(name, exporter, marks=() if name == "plain" or not dynamo else pytest.mark.slow)
    for name in MODULES
    for exporter, (dynamo, _) in EXPORTERS.items()
]


@pytest.mark.parametrize(("name", "exporter"), CASES)
def test_found_and_measured(name: str, exporter: str, tmp_path: Path, store: ArrayStore) -> None:
    torch.manual_seed(0)
    module, (dynamo, opset) = MODULES[name]().eval(), EXPORTERS[exporter]
    x = torch.randn(2, TOKENS, WIDTH)
    sizes: dict[str, Any] = {"dynamic_axes": {"x": {0: "batch", 1: "tokens"}}}
    if dynamo:
        sizes = {"dynamic_shapes": [{0: "batch", 1: "tokens"}], "verbose": False}
    path = tmp_path / "model.onnx"
    torch.onnx.export(module, (x,), path, input_names=["x"], dynamo=dynamo, opset_version=opset, **sizes)
    model = load(path)
    (block,), rejected = find_attention(model)
    assert not rejected
    assert block.form == ("Attention" if opset == 23 else "decomposed")
    assert len(block.weights.names) == (2 if name == "encoder layer" else 4)
    assert block.residual == "x" and block.heads in (HEADS, None)
    (found,) = observe(model, [block], [{"x": x.numpy()}], [None], store, threads=1)
    with torch.no_grad():
        P = module.probabilities(x).numpy()
    np.testing.assert_allclose(found.received[0], P.mean((1, 2)), rtol=1e-4, atol=1e-6)
    entropy = -(P * np.log(np.where(P > 0, P, 1))).sum(3).mean((0, 2))
    np.testing.assert_allclose(found.sums.head_entropy, entropy, rtol=1e-4)
    assert found.sums.contribution is not None and (found.sums.head_effect > 0).all()
