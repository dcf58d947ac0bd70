"""Numbers, sizes, times and names as people read them; plain text, no terminal codes."""

from __future__ import annotations

import math
import os

_SIZE_UNITS = (("GB", 1e9), ("MB", 1e6), ("kB", 1e3))
_COUNT_UNITS = (("G", 1e9), ("M", 1e6), ("k", 1e3))
_TIME_UNITS = (("ms", 1e3), ("us", 1e6), ("ns", 1e9))


def clean(text: object) -> str:
    r"""Return ``text`` on one line with control and invisible characters spelled out.

    Names come from model files that nobody vouches for: an escape sequence in a node name must
    not reach the terminal.

    >>> clean("conv" + chr(27) + "[31m")
    'conv\\x1b[31m'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in str(text))


def shorten(text: str, width: int) -> str:
    """Cut the middle out of ``text`` so that it fits ``width`` columns; both ends tell names apart.

    >>> shorten("/model/layer.0/attention/query/MatMul", 20)
    '/model/l..ery/MatMul'
    """
    if len(text) <= width:
        return text
    head = max(0, (width - 2) // 2 - 1)
    return f"{text[:head]}..{text[len(text) - (width - 2 - head) :]}"


def digits(value: float, significant: int = 3) -> str:
    """Write ``value`` with ``significant`` digits, never fewer than its whole part has.

    >>> [digits(v) for v in (0.98712, 12.345, 1044.2, 0.0, 99.96, 0.00001234)]
    ['0.987', '12.3', '1044', '0', '100', '1.23e-05']
    """
    if not math.isfinite(value):
        return str(value)
    if value == 0:
        return "0"
    if abs(value) < 1e-4:
        return f"{value:.{significant - 1}e}"
    # Rounding first: 99.96 becomes a number with one digit more before the point.
    rounded = float(f"{value:.{significant - 1}e}")
    places = significant - 1 - math.floor(math.log10(abs(rounded)))
    return f"{value:.{max(places, 0)}f}"


def known(value: float | None, significant: int = 3) -> str:
    """Write ``value`` as :func:`digits` does, nothing for None."""
    return "" if value is None else digits(value, significant)


def size(byte_count: float) -> str:
    """Write a number of bytes in decimal units, as file managers do.

    >>> size(90_400_000), size(512)
    ('90.4 MB', '512 B')
    """
    for unit, scale in _SIZE_UNITS:
        if abs(byte_count) >= 0.9995 * scale:
            return f"{digits(byte_count / scale)} {unit}"
    return f"{byte_count:.0f} B"


def size_pair(before: float, after: float) -> str:
    """Write two sizes in the unit of the larger one.

    >>> size_pair(90_400_000, 30_100_000)
    '90.4 -> 30.1 MB'
    """
    for unit, scale in _SIZE_UNITS:
        if max(before, after) >= 0.9995 * scale:
            return f"{digits(before / scale)} -> {digits(after / scale)} {unit}"
    return f"{before:.0f} -> {after:.0f} B"


def smaller(before: float, after: float) -> str:
    """Compare two file sizes in words.

    >>> smaller(90_400_000, 30_100_000)
    '3.0x smaller (90.4 -> 30.1 MB)'
    """
    pair = size_pair(before, after)
    if not before or not after or abs(before / after - 1) < 0.005:
        return f"same size ({pair})"
    if after < before:
        ratio = before / after
        return (
            f"{ratio:.1f}x smaller ({pair})"
            if ratio >= 1.05
            else f"{percent(1 - after / before)} smaller ({pair})"
        )
    ratio = after / before
    return f"{ratio:.1f}x larger ({pair})" if ratio >= 1.5 else f"{percent(ratio - 1)} larger ({pair})"


def count(number: float) -> str:
    """Write a number of things.

    >>> count(10_614_528), count(864)
    ('10.6 M', '864')
    """
    for unit, scale in _COUNT_UNITS:
        if abs(number) >= 0.9995 * scale:
            return f"{digits(number / scale)} {unit}"
    return f"{number:.0f}"


def seconds(duration: float) -> str:
    """Write a duration given in seconds.

    >>> seconds(0.000238), seconds(12.34), seconds(150)
    ('238 us', '12.3 s', '2 min 30 s')
    """
    if duration >= 99.95:
        minutes, rest = divmod(round(duration), 60)
        hours, minutes = divmod(minutes, 60)
        return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
    if duration >= 0.9995 or duration <= 0:
        return f"{digits(duration)} s"
    unit, scale = next((item for item in _TIME_UNITS if duration * item[1] >= 0.9995), _TIME_UNITS[-1])
    return f"{digits(duration * scale)} {unit}"


def percent(share: float) -> str:
    """Write a share of 1 in percent.

    >>> percent(0.7), percent(0.99996)
    ('70.0 %', '99.996 %')
    """
    text = f"{100 * share:.1f}"
    if (text == "100.0" and share < 1) or (text == "0.0" and share > 0):
        text = f"{100 * share:.3f}"  # almost all is not all
    return f"{text} %"


def closeness(value: float) -> str:
    """Write a cosine or correlation; what is not 1 does not look like 1 down to the sixth digit.

    >>> closeness(0.98712), closeness(0.99998), closeness(1.0)
    ('0.987', '0.99998', '1')
    """
    if value == 1:
        return "1"
    return next(text for places in (3, 4, 5, 6) if float(text := f"{value:.{places}f}") < 1 or places == 6)


def shape(dims: tuple[int, ...] | list[int]) -> str:
    """Write a shape.

    >>> shape((64, 3, 7, 7)), shape(())
    ('64x3x7x7', 'scalar')
    """
    return "x".join(str(dim) for dim in dims) or "scalar"


def plural(number: int, noun: str) -> str:
    """Write a count with its noun.

    >>> plural(1, "layer"), plural(24, "layer")
    ('1 layer', '24 layers')
    """
    return f"{count(number)} {noun}" + ("" if number == 1 else "s")


def near(path: str) -> str:
    """Shorten an absolute path to one below the current folder when it lies there."""
    try:
        short = os.path.relpath(path)
    except (OSError, ValueError):  # the current folder is gone, or on another drive
        return path
    return path if short.startswith("..") else short
