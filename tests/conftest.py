"""Fixtures for all tests: the sample models, their data, and models written as text."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Before numpy: on the small matrices of the tests, BLAS threads wait for each other more than they work.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    import numpy as np
    import onnx
    from numpy.typing import NDArray

REPOSITORY = Path(__file__).resolve().parent.parent

# Same examples on every run, whatever the machine's speed; HYPOTHESIS_PROFILE=search looks for new ones.
settings.register_profile(
    "default", derandomize=True, deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("search", settings.get_profile("default"), derandomize=False, max_examples=2000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


@pytest.fixture(scope="session", autouse=True)
def private_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep what a run caches out of the developer's home, and earlier runs out of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def samples_dir() -> Path:
    return REPOSITORY / "samples"


@pytest.fixture(scope="session")
def digits_cnn(samples_dir: Path) -> Path:
    """Convolutions (3x3, depthwise, 1x1, residual) and two Gemm; input ``image`` (batch, 1, 8, 8)."""
    return samples_dir / "digits_cnn.onnx"


@pytest.fixture(scope="session")
def digits_transformer(samples_dir: Path) -> Path:
    """Embedding and two encoder layers with decomposed attention; input ``tokens`` (batch, 16)."""
    return samples_dir / "digits_transformer.onnx"


@pytest.fixture(scope="session")
def calibration_npz(samples_dir: Path) -> Path:
    """512 unlabelled inputs for ``digits_cnn``."""
    return samples_dir / "digits.npz"


@pytest.fixture(scope="session")
def calibration_tokens_npz(samples_dir: Path) -> Path:
    """512 unlabelled inputs for ``digits_transformer``."""
    return samples_dir / "digits_tokens.npz"


@pytest.fixture(scope="session")
def build_model() -> Callable[..., onnx.ModelProto]:
    """Return ``build(text, weights, opset=17)``: a checked model from ``onnx.parser`` graph text.

    ``weights`` maps names to arrays that become initializers, so the text stays readable::

        build_model("g (float[N, 4] x) => (float[N, 3] y) { y = MatMul(x, w) }", {"w": w})
    """

    def build(
        text: str, weights: Mapping[str, NDArray[Any]] | None = None, opset: int = 17
    ) -> onnx.ModelProto:
        import onnx
        import onnx.parser
        from onnx import numpy_helper

        model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": {opset}]> {text}')
        model.graph.initializer.extend(
            numpy_helper.from_array(array, name) for name, array in (weights or {}).items()
        )
        onnx.checker.check_model(model, full_check=True)
        return model

    return build


@pytest.fixture(scope="session")
def run_model() -> Callable[..., list[NDArray[Any]]]:
    """Return ``run(model, feed)``: the outputs that ONNX Runtime computes, one thread."""

    def run(model: onnx.ModelProto | Path, feed: Mapping[str, NDArray[Any]]) -> list[NDArray[np.generic]]:
        from onnxprune import runtime

        outputs: list[NDArray[Any]] = runtime.session(model, threads=1).run(None, dict(feed))
        return outputs

    return run
