"""Sizes and durations as people write them, as numbers and back.

Binary and decimal units are told apart: `16GiB`, `16Gi` are 16 x 2^30, `16G`, `16GB` are 16 x 10^9. StudioML wrote its
binary sizes in lower case (`4gb`); they are read as it meant them.
"""

import re
from datetime import timedelta
from numbers import Integral, Real
from typing import TypeGuard

_DECIMAL = {"": 1, "B": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15}
_BINARY = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40, "P": 2**50}
_SIZE = re.compile(r"(?P<number>\d{1,30}(?:\.\d{1,30})?)\s*(?P<unit>[A-Za-z]*)")
_SECONDS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_DURATION = re.compile(r"(?:\d+(?:\.\d+)?(?:ms|[smhdw]))+")
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|[smhdw])")
_ISO = re.compile(r"P(?:(\d+)D)?(?:T(?:(\d+)H)?(?:(\d+)M)?(?:(\d+(?:\.\d+)?)S)?)?")
_FOUR_DIGITS = 999.5

MAX_BYTES = 2**62
MAX_DURATION = timedelta(days=3650)


def is_number(value: object) -> TypeGuard[float]:
    """Tell whether it is a number, of Python's own or of such as numpy's; True and False are none."""
    return isinstance(value, Real) and not isinstance(value, bool)


def parse_size(value: object) -> int:
    """Return a size in bytes.

    Args:
        value: text such as `16GiB`, `500MB`, `4gb`, or a whole number of bytes.

    Raises:
        ValueError: it is neither, or is not between 0 and 2^62; the message says what to write.
    """
    if isinstance(value, bool) or not isinstance(value, int | Integral | str):
        raise ValueError(f"not a size: {value!r:.80} (use a text such as '16GiB' or '500MB')")  # noqa: TRY004 - pydantic's rule
    size = _parse_size_text(value) if isinstance(value, str) else int(value)
    if not 0 <= size <= MAX_BYTES:
        raise ValueError(f"not a size: {value!r:.80} (use a number from 0 up, such as '16GiB')")
    return size


def _parse_size_text(text: str) -> int:
    match = _SIZE.fullmatch(text.strip())
    factor = _unit_bytes(match["unit"]) if match else None
    if match is None or factor is None:
        raise ValueError(f"not a size: {text!r:.80} (use KiB, MiB, GiB, TiB or KB, MB, GB, TB, as in '16GiB')")
    whole, _, fraction = match["number"].partition(".")
    scaled: int = int(whole + fraction) * factor // 10 ** len(fraction)
    return scaled


def _unit_bytes(unit: str) -> int | None:
    if unit.lower() in ("kb", "mb", "gb", "tb", "pb") and unit.islower():
        return _BINARY[unit[0].upper()]
    if len(unit) >= len("Gi") and unit[1:].lower() in ("i", "ib"):
        return _BINARY.get(unit[0].upper())
    if unit[1:] in ("", "B"):
        return _DECIMAL.get(unit[:1].upper())
    return None


def describe_size(size_bytes: int) -> str:
    """Return a size for people, to three digits or the whole number: `1.46 GiB`, `1023 MiB`."""
    for letter, factor in reversed(_BINARY.items()):
        if size_bytes >= factor:
            number = size_bytes / factor
            return f"{number:.3g} {letter}iB" if number < _FOUR_DIGITS else f"{number:.0f} {letter}iB"
    return f"{size_bytes} B"


def parse_duration(value: object) -> timedelta:
    """Return a duration.

    Args:
        value: text such as `90s`, `1h30m`, `2d`, ISO 8601 such as `PT6H`, a number of seconds, or a timedelta.

    Raises:
        ValueError: it is none of them, or is not between 0 and ten years; the message says what to write.
    """
    if isinstance(value, timedelta):
        duration = value
    elif is_number(value) and abs(value) <= MAX_DURATION.total_seconds():
        duration = timedelta(seconds=float(value))
    elif isinstance(value, str):
        duration = _parse_duration_text(value.strip())
    else:
        raise ValueError(f"not a duration: {value!r:.80} (use a text such as '90s', '1h30m' or '2d')")
    if not timedelta(0) <= duration <= MAX_DURATION:
        raise ValueError(f"not a duration: {value!r:.80} (use one from 0s to {format_duration(MAX_DURATION)})")
    return duration


def _parse_duration_text(text: str) -> timedelta:
    if _DURATION.fullmatch(text):
        seconds = sum(float(number) * _SECONDS[unit] for number, unit in _PART.findall(text))
    elif (match := _ISO.fullmatch(text)) and any(match.groups()):
        days, hours, minutes, rest = (float(group or 0) for group in match.groups())
        seconds = days * 86400 + hours * 3600 + minutes * 60 + rest
    else:
        raise ValueError(f"not a duration: {text!r:.80} (use s, m, h or d, as in '90s', '1h30m' or '2d')")
    if seconds > MAX_DURATION.total_seconds():
        raise ValueError(f"not a duration: {text!r:.80} (use one from 0s to {format_duration(MAX_DURATION)})")
    return timedelta(seconds=seconds)


def format_duration(duration: timedelta) -> str:
    """Return a text that `parse_duration` reads back, such as `1h30m` (to the millisecond)."""
    milliseconds = duration // timedelta(milliseconds=1)
    parts = []
    for unit, size in (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)):
        count, milliseconds = divmod(milliseconds, size)
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts) or "0s"
