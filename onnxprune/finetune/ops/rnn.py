"""LSTM, GRU and RNN: torch's fused versions where the attributes allow it, else a loop over the time steps.

Both ways take the weights as they stand in the file, so gradients reach W, R, B and P by name.
Sequences that end early keep their state from there on, whatever the direction, and their outputs are zero.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from onnxprune.finetune.ops import activation
from onnxprune.finetune.registry import Unsupported, op

# From the gates of x and the state to the next state, the output first.
Step: TypeAlias = Callable[..., tuple[Tensor, ...]]


class _Kind(NamedTuple):
    """An activation: its function of (x, alpha, beta) and the defaults of alpha and beta.

    A default is None when the function takes none, and NaN when it must be given: the specification and
    ONNX Runtime disagree on it.
    """

    call: Callable[[Tensor, float, float], Tensor]
    alpha: float | None = None
    beta: float | None = None


_MUST = float("nan")
_ACTIVATIONS = {
    "relu": _Kind(lambda x, a, b: torch.relu(x)),
    "tanh": _Kind(lambda x, a, b: torch.tanh(x)),
    "sigmoid": _Kind(lambda x, a, b: torch.sigmoid(x)),
    "softsign": _Kind(lambda x, a, b: activation.Softsign(x)),
    "softplus": _Kind(lambda x, a, b: activation.Softplus(x)),
    "leakyrelu": _Kind(lambda x, a, b: F.leaky_relu(x, a), 0.01),
    "elu": _Kind(lambda x, a, b: F.elu(x, a), 1.0),
    "thresholdedrelu": _Kind(lambda x, a, b: activation.ThresholdedRelu(x, alpha=a), _MUST),
    "hardsigmoid": _Kind(lambda x, a, b: activation.HardSigmoid(x, alpha=a, beta=b), 0.2, 0.5),
    "affine": _Kind(lambda x, a, b: a * x + b, _MUST, _MUST),
    "scaledtanh": _Kind(lambda x, a, b: a * torch.tanh(b * x), _MUST, _MUST),
}


@op(7, host=(4,))
def LSTM(
    X: Tensor,
    W: Tensor,
    R: Tensor,
    B: Tensor | None = None,
    sequence_lens: Tensor | None = None,
    initial_h: Tensor | None = None,
    initial_c: Tensor | None = None,
    P: Tensor | None = None,
    *,
    activation_alpha: Sequence[float] = (),
    activation_beta: Sequence[float] = (),
    activations: Sequence[str] = (),
    clip: float | None = None,
    direction: str = "forward",
    hidden_size: int | None = None,
    input_forget: int = 0,
    layout: int = 0,
) -> tuple[Tensor, ...]:
    flags = _directions(direction, W)
    names, functions = _activations(
        ("Sigmoid", "Tanh", "Tanh"), activations, activation_alpha, activation_beta, clip, len(flags)
    )
    X, h, c = _states(X, R, layout, initial_h, initial_c)
    plain = (
        clip is None
        and P is None
        and not input_forget
        and names == [["sigmoid", "tanh", "tanh"]] * len(flags)
    )
    if plain and _fusible(X, sequence_lens):
        outputs = _fused("lstm", X, W, R, B, sequence_lens, (h, c), flags, order=(0, 2, 3, 1))
        return _arranged(outputs, layout)

    def step(d: int) -> Step:
        f, g, last = functions[d]
        RT = R[d].t()
        Pi, Po, Pf = (None, None, None) if P is None else P[d].chunk(3)

        def run(gates: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
            i, o, forget, new = (gates + h @ RT).chunk(4, 1)
            i = f(_peep(i, Pi, c))
            forget = 1 - i if input_forget else f(_peep(forget, Pf, c))
            c = forget * c + i * g(new)
            return f(_peep(o, Po, c)) * last(c, clipped=False), c

        return run

    return _arranged(_looped(X, W, B, sequence_lens, (h, c), flags, step), layout)


@op(7, host=(4,))
def GRU(
    X: Tensor,
    W: Tensor,
    R: Tensor,
    B: Tensor | None = None,
    sequence_lens: Tensor | None = None,
    initial_h: Tensor | None = None,
    *,
    activation_alpha: Sequence[float] = (),
    activation_beta: Sequence[float] = (),
    activations: Sequence[str] = (),
    clip: float | None = None,
    direction: str = "forward",
    hidden_size: int | None = None,
    layout: int = 0,
    linear_before_reset: int = 0,
) -> tuple[Tensor, ...]:
    flags = _directions(direction, W)
    names, functions = _activations(
        ("Sigmoid", "Tanh"), activations, activation_alpha, activation_beta, clip, len(flags)
    )
    X, h = _states(X, R, layout, initial_h)
    plain = clip is None and linear_before_reset and names == [["sigmoid", "tanh"]] * len(flags)
    if plain and _fusible(X, sequence_lens):
        return _arranged(_fused("gru", X, W, R, B, sequence_lens, (h,), flags, order=(1, 0, 2)), layout)
    H = R.shape[2]

    def step(d: int) -> Step:
        f, g = functions[d]
        gates_T, hidden_T = R[d, : 2 * H].t(), R[d, 2 * H :].t()
        bias = None if B is None else B[d, 5 * H :]  # of R for the hidden gate: inside the reset or not

        def run(gates: Tensor, h: Tensor) -> tuple[Tensor]:
            z, r = f(gates[:, : 2 * H] + h @ gates_T).chunk(2, 1)
            if linear_before_reset:
                past = h @ hidden_T
                past = r * (past if bias is None else past + bias)
            else:
                past = (r * h) @ hidden_T
            new = g(gates[:, 2 * H :] + past)
            return ((1 - z) * new + z * h,)

        return run

    apart = H if linear_before_reset else 0
    return _arranged(_looped(X, W, B, sequence_lens, (h,), flags, step, apart), layout)


@op(7, host=(4,))
def RNN(
    X: Tensor,
    W: Tensor,
    R: Tensor,
    B: Tensor | None = None,
    sequence_lens: Tensor | None = None,
    initial_h: Tensor | None = None,
    *,
    activation_alpha: Sequence[float] = (),
    activation_beta: Sequence[float] = (),
    activations: Sequence[str] = (),
    clip: float | None = None,
    direction: str = "forward",
    hidden_size: int | None = None,
    layout: int = 0,
) -> tuple[Tensor, ...]:
    flags = _directions(direction, W)
    names, functions = _activations(
        ("Tanh",), activations, activation_alpha, activation_beta, clip, len(flags)
    )
    X, h = _states(X, R, layout, initial_h)
    fused = {"tanh": "rnn_tanh", "relu": "rnn_relu"}.get(names[0][0])
    if fused and clip is None and names == [names[0]] * len(flags) and _fusible(X, sequence_lens):
        return _arranged(_fused(fused, X, W, R, B, sequence_lens, (h,), flags, order=(0,)), layout)

    def step(d: int) -> Step:
        (f,), RT = functions[d], R[d].t()
        return lambda gates, h: (f(gates + h @ RT),)

    return _arranged(_looped(X, W, B, sequence_lens, (h,), flags, step), layout)


def _directions(direction: str, W: Tensor) -> list[bool]:
    """One flag per direction: whether it goes backwards in time."""
    known = {"forward": [False], "reverse": [True], "bidirectional": [False, True]}
    flags = known.get(direction.lower())
    if flags is None or len(flags) != W.shape[0]:
        raise Unsupported(f"direction {direction!r} with weights for {W.shape[0]} directions")
    return flags


def _activations(
    default: tuple[str, ...],
    given: Sequence[str],
    alphas: Sequence[float],
    betas: Sequence[float],
    clip: float | None,
    directions: int,
) -> tuple[list[list[str]], list[list[Any]]]:
    """Return names and functions per direction; alpha and beta are dealt out to those that take one."""
    count = len(default)
    wanted = [name.lower() for name in given or default * directions]
    if len(wanted) != count * directions:
        raise Unsupported(f"{len(wanted)} activations, wanted {count * directions}")
    alpha, beta = iter(alphas), iter(betas)
    functions = []
    for name in wanted:
        kind = _ACTIVATIONS.get(name)
        if kind is None:
            raise Unsupported(f"activation {name!r} is not known")
        a = 0.0 if kind.alpha is None else next(alpha, kind.alpha)
        b = 0.0 if kind.beta is None else next(beta, kind.beta)
        if a != a or b != b:
            raise Unsupported(f"activation {name!r} without its alpha or beta: runtimes disagree")
        functions.append(_activation(kind, a, b, clip))
    split = [slice(d * count, (d + 1) * count) for d in range(directions)]
    return [wanted[s] for s in split], [functions[s] for s in split]


def _activation(kind: _Kind, alpha: float, beta: float, clip: float | None) -> Callable[..., Tensor]:
    def function(x: Tensor, *, clipped: bool = True) -> Tensor:
        if clip is not None and clipped:
            x = torch.clamp(x, -clip, clip)
        return kind.call(x, alpha, beta)

    return function


def _peep(gate: Tensor, weight: Tensor | None, c: Tensor) -> Tensor:
    return gate if weight is None else gate + weight * c


def _states(X: Tensor, R: Tensor, layout: int, *given: Tensor | None) -> tuple[Tensor, ...]:
    """Return X as (time, batch, features) and each state as (directions, batch, hidden)."""
    X = (X.transpose(0, 1) if layout else X).to(R.dtype)  # under autocast it may be half
    zero = X.new_zeros(R.shape[0], X.shape[1], R.shape[2])
    states = [zero if s is None else (s.transpose(0, 1) if layout else s).to(R.dtype) for s in given]
    return X, *states


def _arranged(outputs: tuple[Tensor, ...], layout: int) -> tuple[Tensor, ...]:
    if not layout:
        return outputs
    Y, *states = outputs
    return Y.permute(2, 0, 1, 3), *(s.transpose(0, 1) for s in states)


# -- torch's own -------------------------------------------------------------------------------------


def _fusible(X: Tensor, lens: Tensor | None) -> bool:
    """Torch refuses empty batches and empty sequences."""
    return X.numel() > 0 and (lens is None or int(lens.min()) > 0)


def _fused(
    kernel: str,
    X: Tensor,
    W: Tensor,
    R: Tensor,
    B: Tensor | None,
    lens: Tensor | None,
    states: tuple[Tensor, ...],
    flags: list[bool],
    *,
    order: tuple[int, ...],
) -> tuple[Tensor, ...]:
    """Call a kernel of torch; ``order``: which gate of ONNX is torch's first, second, ..."""
    T, batch, _ = X.shape
    if lens is not None and int(lens.min()) == T:
        lens = None
    backwards = flags == [True]
    turn = (
        _turned(lens, T, X) if backwards else None
    )  # a kernel runs forwards or both ways, not only backwards
    if turn is not None:
        X = X.gather(0, turn.expand_as(X))
    weights = _flat_weights(W, R, B, order)
    hx: Any = states if kernel == "lstm" else states[0]
    options = (B is not None, 1, 0.0, torch.is_grad_enabled(), len(flags) == 2)
    run = getattr(torch._VF, kernel)
    if lens is None:
        Y, *last = run(X, hx, weights, *options, False)
    else:
        packed: Any = pack_padded_sequence(X, lens, enforce_sorted=False)
        sort, back = packed.sorted_indices, packed.unsorted_indices
        moved = tuple(s.index_select(1, sort) for s in states)
        Y, *last = run(
            packed.data, packed.batch_sizes, moved if kernel == "lstm" else moved[0], weights, *options
        )
        Y, _ = pad_packed_sequence(packed._replace(data=Y), total_length=T)
        last = [s.index_select(1, back) for s in last]
    if turn is not None:
        Y = Y.gather(0, turn.expand_as(Y))
    return Y.reshape(T, batch, len(flags), -1).transpose(1, 2), *last


def _turned(lens: Tensor | None, T: int, X: Tensor) -> Tensor:
    """Time index (T, batch or 1, 1) that turns each sequence round within its length."""
    t = torch.arange(T, device=X.device).reshape(T, 1, 1)
    if lens is None:
        return (T - 1 - t).expand(T, X.shape[1], 1)
    ends = lens.to(X.device, torch.int64).reshape(1, -1, 1)
    return torch.where(t < ends, ends - 1 - t, t)


def _flat_weights(W: Tensor, R: Tensor, B: Tensor | None, order: tuple[int, ...]) -> list[Tensor]:
    """Weights in torch's order of gates, all in one piece of memory as cuDNN wants them."""
    D, G, H = W.shape[0], len(order), R.shape[2]
    perm = list(order)
    pieces = [m.reshape(D, G, H, -1)[:, perm] for m in (W, R)]
    if B is not None:
        pieces += [b.reshape(D, G, H)[:, perm] for b in B.chunk(2, 1)]
    per_direction = [[piece[d].reshape(-1) for piece in pieces] for d in range(D)]
    matrices = [m for parts in per_direction for m in parts[:2]]
    biases = [b for parts in per_direction for b in parts[2:]]
    parts = torch.split(torch.cat(matrices + biases), [p.numel() for p in matrices + biases])
    flat = []
    for d in range(D):
        flat += [parts[2 * d].view(G * H, -1), parts[2 * d + 1].view(G * H, H)]
        flat += parts[2 * D + 2 * d : 2 * D + 2 * d + 2]
    return flat


# -- step by step ------------------------------------------------------------------------------------


def _looped(
    X: Tensor,
    W: Tensor,
    B: Tensor | None,
    lens: Tensor | None,
    states: tuple[Tensor, ...],
    flags: list[bool],
    step: Callable[[int], Step],
    apart: int = 0,
) -> tuple[Tensor, ...]:
    """Run the time steps of each direction; the last ``apart`` biases of R are left to the step."""
    valid = None
    if lens is not None and (X.shape[0] == 0 or int(lens.min()) < X.shape[0]):
        valid = (torch.arange(X.shape[0])[:, None] < lens).to(X.device).unsqueeze(2)
    outputs, last = [], []
    for d, backwards in enumerate(flags):
        gates = X @ W[d].t()
        if B is not None:
            of_W, of_R = B[d].chunk(2)
            gates = gates + (of_W + (F.pad(of_R[:-apart], (0, apart)) if apart else of_R))
        Y, state = _one_way(gates, valid, [s[d] for s in states], step(d), backwards)
        outputs.append(Y)
        last.append(state)
    final = [torch.stack(parts) for parts in zip(*last, strict=True)]
    if lens is not None and len(final) and int(lens.min()) == 0:  # ONNX Runtime: no steps, no state
        empty = (lens == 0).to(X.device)[:, None]
        final = [torch.where(empty, 0.0, s) for s in final]
    return torch.stack(outputs, 1), *final


def _one_way(
    gates: Tensor, valid: Tensor | None, state: list[Tensor], run: Step, backwards: bool
) -> tuple[Tensor, list[Tensor]]:
    T = gates.shape[0]
    rows, outputs = gates.unbind(0), [state[0]] * T
    for t in range(T - 1, -1, -1) if backwards else range(T):
        new = list(run(rows[t], *state))
        if valid is None:
            state, outputs[t] = new, new[0]
        else:
            state = [torch.where(valid[t], n, s) for n, s in zip(new, state, strict=True)]
            outputs[t] = torch.where(valid[t], new[0], 0.0)
    if not outputs:
        return gates.new_zeros(0, *state[0].shape), state
    return torch.stack(outputs), state
