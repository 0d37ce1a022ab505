"""What an experiment says of itself while it runs.

A line `::jobqueue progress=0.62 loss=0.41::` of its output, or a JSON line in the file `$JOBQUEUE_PROGRESS`.
"""

import json
import os
import re
from pathlib import Path
from typing import Final

from workers.attempt.redaction import Redactor, redact_json

MAX_PROGRESS_BYTES: Final = 4096
PROGRESS_MARK: Final = b"::jobqueue"
_LINE = re.compile(rb"::jobqueue((?:\s+[A-Za-z_][\w.-]*=[^\s:]+)+)\s*::")
_PAIR = re.compile(r"([A-Za-z_][\w.-]*)=(\S+)")


def parse_progress_line(line: bytes) -> str | None:
    """Return the progress a line of output carries, as a JSON object, or None when it carries none."""
    match = _LINE.search(line) if len(line) <= MAX_PROGRESS_BYTES and PROGRESS_MARK in line else None
    if match is None:
        return None
    pairs = _PAIR.findall(match[1].decode(errors="replace"))
    return json.dumps({name: _number(value) for name, value in pairs})


def parse_progress_json(line: bytes, redactor: Redactor) -> str | None:
    """Return one JSON line as a compact JSON object without secrets, or None when it is not a small object."""
    if len(line) > MAX_PROGRESS_BYTES:
        return None
    try:
        value = json.loads(line, parse_float=_number, parse_constant=str)
        if not isinstance(value, dict):
            return None
        return _written(redact_json(value, redactor), redactor)
    except (ValueError, RecursionError):
        return None


def _written(value: object, redactor: Redactor) -> str | None:
    """Return the JSON, or None when a secret is a part of its form: a secret may be JSON itself."""
    texts = (json.dumps(value), json.dumps(value, ensure_ascii=False))
    return texts[0] if all(redactor.redact(text) == text for text in texts) else None


def _number(text: str) -> float | int | str:
    try:
        return int(text)
    except ValueError:
        pass
    try:
        number = float(text)
    except ValueError:
        return text
    return number if number == number and abs(number) != float("inf") else text  # noqa: PLR0124 - NaN is no JSON


class ProgressFile:
    """Reads the lines that the experiment adds to its progress file, without trusting what lies at that path.

    Args:
        path: the file; it may not be there.
        secrets: values that must not be passed on.
    """

    def __init__(self, path: Path, *, secrets: tuple[bytes, ...] = ()) -> None:
        self._path = path
        self._redactor = Redactor(secrets)
        self._offset = 0

    def poll(self) -> str | None:
        """Return the newest complete progress since the last call, or None."""
        try:
            handle = os.open(self._path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            return None
        try:
            size = os.fstat(handle).st_size
            start = max(self._offset, size - 4 * MAX_PROGRESS_BYTES)
            data = os.pread(handle, size - start, start) if size > start else b""
        except OSError:
            return None
        finally:
            os.close(handle)
        complete = data[: data.rfind(b"\n") + 1]
        self._offset = start + len(complete) if complete else self._offset
        found = (parse_progress_json(line, self._redactor) for line in reversed(complete.splitlines()))
        return next(filter(None, found), None)
