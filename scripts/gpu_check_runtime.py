"""The part of gpu_check that goes through onnxruntime-gpu.

Every session has ``session.disable_cpu_ep_fallback=1``: a node that would run on the CPU is an error. That
our kernel ran is read from ONNX Runtime's profile, which names the provider of each node.
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from gpu_check_model import WORDS, minilm
from onnx import TensorProto, helper, numpy_helper

from onnxprune import runtime
from onnxprune.kernels.tune import random_weight
from onnxprune.model import Model
from onnxprune.passes.device_ops import rewrite_device
from onnxprune.passes.device_products import device_matrix, find_device_products
from onnxprune.storage.device import LAYOUTS
from onnxprune.storage.device.functions import IMAGES

if TYPE_CHECKING:
    from gpu_check import Check

CUDA = "CUDAExecutionProvider"
ALONE = {"session.disable_cpu_ep_fallback": "1"}
LIMIT = 5e-3  # of the largest output, float16
DENSITIES = {"delta": 0.1, "nm-tile": 0.5}
RUNS = 50


def chain(layers: int, width: int, inner: int, layout_name: str, rows: int, side: int = 0) -> Model:
    """``layers`` times MatMul, Add, Relu in float16, widths in turns; with zeros that the layout can use.

    With ``side`` of images: 1x1 Conv and Relu on ``rows`` images of side x side pixels.
    """
    layout, nodes, tensors, x = LAYOUTS[layout_name], [], [], "x"
    for i in range(layers):
        k, n = (width, inner) if i % 2 == 0 else (inner, width)
        weight = random_weight(layout, (n, k), DENSITIES.get(layout_name, 0.3), seed=i)
        scale = np.float16(1 / np.sqrt(k * np.count_nonzero(weight) / weight.size))
        bias = np.random.default_rng(i).standard_normal(n).astype(np.float16) * np.float16(0.1)
        weight = weight * scale * 2
        stored = weight[:, :, None, None] if side else np.ascontiguousarray(weight.T)
        tensors.append(numpy_helper.from_array(stored, f"w{i}"))
        tensors.append(numpy_helper.from_array(bias, f"b{i}"))
        if side:
            nodes.append(helper.make_node("Conv", [x, f"w{i}", f"b{i}"], [f"s{i}"], f"product{i}"))
        else:
            nodes.append(helper.make_node("MatMul", [x, f"w{i}"], [f"p{i}"], f"product{i}"))
            nodes.append(helper.make_node("Add", [f"p{i}", f"b{i}"], [f"s{i}"]))
        nodes.append(helper.make_node("Relu", [f"s{i}"], [f"y{i}"]))
        x = f"y{i}"
    value = helper.make_tensor_value_info
    last = inner if layers % 2 else width
    graph = helper.make_graph(
        nodes,
        "chain",
        [value("x", TensorProto.FLOAT16, [rows, width, *[side] * 2 * bool(side)])],
        [value(x, TensorProto.FLOAT16, [rows, last, *[side] * 2 * bool(side)])],
        tensors,
    )
    return Model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


def switched(model: Model, layout_name: str, many_rows: int | None = None) -> Model:
    """A copy with all products on the kernel of a layout; 2:4 on cuSPARSELt from ``many_rows`` on."""
    copy = model.copy()
    found, _ = find_device_products(copy)
    for product in found.values():
        assert device_matrix(copy, product) is not None
    many = {} if many_rows is None else dict.fromkeys(found, many_rows)
    rewrite_device(copy, dict.fromkeys(found, LAYOUTS[layout_name]), many)
    return copy


def open_session(model: Model, *, kernels: bool, graph: bool = False, profile: str | None = None) -> Any:
    """Make a session for CUDA alone."""
    provider = (CUDA, {"enable_cuda_graph": "1" if graph else "0"})
    return runtime.session(
        model.to_bytes(), providers=(provider,), config=ALONE, kernels=kernels, profile=profile, name="model"
    )


def bound(session: Any, x: np.ndarray) -> tuple[Any, Any]:
    """A binding of input and output in device memory, and the output's value."""
    ort = runtime.onnxruntime()
    binding, output = session.io_binding(), session.get_outputs()[0]
    given = ort.OrtValue.ortvalue_from_numpy(x, "cuda", 0)
    made = ort.OrtValue.ortvalue_from_shape_and_type([int(d) for d in output.shape], np.float16, "cuda", 0)
    binding.bind_ortvalue_input(session.get_inputs()[0].name, given)
    binding.bind_ortvalue_output(output.name, made)
    return binding, made


def milliseconds(session: Any, binding: Any) -> float:
    """Median of single runs, the device waited for."""
    for _ in range(5):
        session.run_with_iobinding(binding)
    times = []
    for _ in range(RUNS):
        binding.synchronize_inputs()
        begin = time.perf_counter()
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        times.append(time.perf_counter() - begin)
    return 1e3 * sorted(times)[RUNS // 2]


def expected(model: Model, x: np.ndarray) -> np.ndarray:
    """What the chain computes, in float64 between its layers' roundings to float16."""
    y = x.astype(np.float64)
    for i in range(sum(node.op_type == "Relu" for node in model.graph.node)):
        weight, bias = (model.array(f"{name}{i}").astype(np.float64) for name in "wb")
        if x.ndim > 2:
            y = np.einsum("bkhw,nk->bnhw", y, weight[:, :, 0, 0], optimize=True) + bias[:, None, None]
        else:
            y = y @ weight + bias
        y = np.maximum(y, 0).astype(np.float16).astype(np.float64)
    return y


def error_of(found: Any, wanted: np.ndarray) -> float:
    """Largest difference over the largest value; infinite where something is not a number."""
    error = np.abs(np.asarray(found, np.float64) - wanted).max() / max(float(np.abs(wanted).max()), 1e-6)
    return float(error) if error == error else np.inf


def who_ran(model: Model, x: np.ndarray) -> dict[str, set[str]]:
    """Op -> providers that ran it, of one run with our kernels."""
    with tempfile.TemporaryDirectory() as folder:
        session = open_session(model, kernels=True, profile=str(Path(folder) / "run"))
        session.run(None, {"x": x})
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf8"))
    found: dict[str, set[str]] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            found.setdefault(event["args"]["op_name"], set()).add(event["args"].get("provider", "?"))
    return found


def check_layout(check: Check, name: str, side: int = 0) -> None:
    """One layer: who ran, the output, IO binding, CUDA graph, the function without our kernels."""
    layout = LAYOUTS[name]
    model = chain(1, 1024, 2048, name, 5, side)
    x = np.random.default_rng(5).standard_normal((5, 1024, *[side] * 2 * bool(side))).astype(np.float16)
    device, wanted = switched(model, name), expected(model, x)
    limit = LIMIT if layout.exact else 0.05
    ran = who_ran(device, x)
    ours = {op: who for op, who in ran.items() if op.startswith(layout.prefix)}
    fine = list(ours.values()) == [{CUDA}] and len(ran) == 1
    what = f"{name}, 1x1 Conv" if side else name
    check.say("runtime", f"{what}: what ran", ", ".join(f"{o} on {'/'.join(w)}" for o, w in ran.items()),
              "ok" if fine else "FAILED")  # fmt: skip
    errors = {"run": error_of(open_session(device, kernels=True).run(None, {"x": x})[0], wanted)}
    errors["function"] = error_of(open_session(device, kernels=False).run(None, {"x": x})[0], wanted)
    for graph in (False, True):
        session = open_session(device, kernels=True, graph=graph)
        binding, output = bound(session, x)
        for _ in range(3):  # capture, then replays
            session.run_with_iobinding(binding)
        errors["graph" if graph else "binding"] = error_of(output.numpy(), wanted)
    text = ", ".join(f"{key} {error:.2g}" for key, error in errors.items())
    check.say("runtime", f"{what}: errors", text, "ok" if max(errors.values()) <= limit else "FAILED")


def check_corrupt(check: Check) -> None:
    """A broken weight is refused when the session is made, by a message that names the node."""
    model = switched(chain(1, 256, 256, "block-64", 1), "block-64")
    slots = next(t for t in model.graph.initializer if t.name.endswith("_slots"))
    array = numpy_helper.to_array(slots).copy()
    array[0, 0] = 2**30
    slots.CopyFrom(numpy_helper.from_array(array, slots.name))
    try:
        open_session(model, kernels=True)
    except Exception as error:
        good = "names a block that is not there" in str(error) and "product0" in str(error)
        check.say(
            "runtime",
            "a broken weight",
            "is refused" if good else str(error)[:200],
            "ok" if good else "FAILED",
        )
    else:
        check.say("runtime", "a broken weight", "was not noticed", "FAILED")


def check_model(
    check: Check,
    name: str,
    rows: int,
    many_rows: int | None = None,
    width: int = 2048,
    inner: int = 4096,
    side: int = 0,
) -> None:
    """Twelve layers, dense and switched, each with CUDA graph and without; with ``side`` 1x1 convolutions."""
    model = chain(12, width, inner, name, rows, side)
    x = np.random.default_rng(5).standard_normal((rows, width, *[side] * 2 * bool(side))).astype(np.float16)
    device, wanted = switched(model, name, many_rows), expected(model, x)
    times = {}
    for graph in (False, True):
        for what, each in (("dense", model), ("ours", device)):
            session = open_session(each, kernels=what == "ours", graph=graph)
            binding, output = bound(session, x)
            times[what, graph] = milliseconds(session, binding)
            error = error_of(output.numpy(), wanted)
            if error > 0.05:
                check.say("runtime", f"{name}: 12 layers, {what}", f"off by {error:.2g}", "FAILED")
    text = ", ".join(
        f"{'CUDA graph' if graph else 'launches'}: dense {times['dense', graph]:.3f} ms, "
        f"ours {times['ours', graph]:.3f} ms, {times['dense', graph] / times['ours', graph]:.2f}x"
        for graph in (False, True)
    )
    size = f"{rows} images of {side}x{side}, 1x1 Conv" if side else f"M={rows}"
    what = f"{name}{' by cuSPARSELt' * (many_rows is not None)}: 12 layers of {width}x{inner}, {size}"
    check.say("runtime", what, text, "")


def check_minilm(check: Check, name: str, batch: int, tokens: int) -> None:
    """A whole transformer: dense and switched, each with CUDA graph and without, against the CPU."""
    model = minilm(name, DENSITIES.get(name, 0.3), batch, tokens)
    x = np.random.default_rng(5).integers(0, WORDS, (batch, tokens))
    wanted = runtime.session(model.to_bytes(), kernels=False).run(None, {"x": x})[0].astype(np.float64)
    device = switched(model, name)
    ours = {op: who for op, who in who_ran(device, x).items() if op.startswith(LAYOUTS[name].prefix)}
    fine, texts = bool(ours) and all(who == {CUDA} for who in ours.values()), []
    for graph in (False, True):
        times = []
        for what, each in (("dense", model), ("ours", device)):
            session = open_session(each, kernels=what == "ours", graph=graph)
            binding, output = bound(session, x)
            times.append(milliseconds(session, binding))
            error = error_of(output.numpy(), wanted)
            fine &= error <= 0.05
            texts.append(f"{what}{' in a graph' * graph} {times[-1]:.3f} ms (error {error:.2g})")
        texts.append(f"{times[0] / times[1]:.2f}x")
    what = f"{name}: MiniLM, {batch} x {tokens} tokens"
    check.say("runtime", what, ", ".join(texts), "ok" if fine else "FAILED")


def check_runtime(check: Check) -> None:
    """All of it; one that breaks does not keep the others from running."""
    ort = runtime.onnxruntime()
    if CUDA not in ort.get_available_providers():
        packages = ", ".join(f"{n} {v}" for n, v in runtime.installed_packages().items()) or "none"
        check.say("runtime", "onnxruntime-gpu", f"is not there ({packages})", "missing")
        return
    tasks: list[tuple[str, Any]] = [(name, lambda n=name: check_layout(check, n)) for name in LAYOUTS]
    for name, layout in LAYOUTS.items():
        if layout.prefix in IMAGES:
            tasks.append((f"{name}: 1x1 Conv", lambda n=name: check_layout(check, n, 14)))
    tasks.append(("a broken weight", lambda: check_corrupt(check)))
    for name, rows in (
        ("bitmap-tile", 1),
        ("bitmap-tile", 16),
        ("delta", 1),
        ("nm-tile", 16),
        ("block-64", 512),
    ):
        tasks.append((f"{name}: 12 layers", lambda n=name, m=rows: check_model(check, n, m)))
    for name, images in (("block-64", 8), ("nm-tile", 1), ("bitmap-tile", 1)):  # against cuDNN
        task = lambda n=name, m=images: check_model(check, n, m, width=256, inner=1024, side=14)  # noqa: E731
        tasks.append((f"{name}: 12 convolutions", task))
    for name, batch, tokens in (("bitmap-tile", 1, 16), ("nm-tile", 1, 32), ("block-64", 8, 128)):
        task = lambda n=name, b=batch, t=tokens: check_minilm(check, n, b, t)  # noqa: E731
        tasks.append((f"{name}: MiniLM", task))
    if check.kernels is not None and not check.kernels.cusparselt["problem"]:
        tasks.append(("cuSPARSELt: 12 layers", lambda: check_model(check, "nm-tile", 4096, 512)))
    for what, task in tasks:
        try:
            task()
        except Exception as error:  # the table says so
            check.say(
                "runtime", what, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}", "FAILED"
            )
