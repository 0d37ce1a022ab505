"""Log lines like those of the workers, for the processes of a node that load neither Celery nor what makes theirs."""

import json
import logging
from datetime import UTC, datetime
from typing import Final

from jobqueue.printable import plain_lines

_EVERY_RECORDS: Final = frozenset(vars(logging.makeLogRecord({})))


class PlainLines(logging.Formatter):
    """One event and its fields on a line.

    Args:
        form: `text` or `json`.
    """

    def __init__(self, form: str = "text") -> None:
        super().__init__()
        self._form = form

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record, and after a text the traceback that it has."""
        fields = {name: value for name, value in vars(record).items() if name not in _EVERY_RECORDS}
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        at = datetime.fromtimestamp(record.created, UTC).isoformat().replace("+00:00", "Z")
        event, level = record.getMessage(), record.levelname.lower()
        if self._form == "json":
            return json.dumps({**fields, "event": event, "level": level, "timestamp": at}, default=str)
        trace = fields.pop("exception", "")
        said = " ".join(f"{name}={value}" for name, value in fields.items())
        return plain_lines("\n".join(filter(None, [f"{at} [{level}] {event} {said}".rstrip(), trace])))
