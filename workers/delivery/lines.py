"""How a worker's log lines look: one event and its fields, as text for people or as JSON for machines."""

import logging
from collections.abc import MutableMapping
from typing import Any, Literal

import structlog


def make_formatter(form: Literal["text", "json"]) -> logging.Formatter:
    """Return the formatter for every handler of a worker."""
    renderer: Any = structlog.processors.JSONRenderer()
    if form == "text":
        # Plain: the richer one prints the local variables of every frame, and with them specs and secrets.
        plain = structlog.dev.plain_traceback
        renderer = structlog.dev.ConsoleRenderer(
            colors=False, pad_event_to=0, pad_level=False, exception_formatter=plain
        )
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[
            structlog.stdlib.add_log_level,
            structlog.stdlib.ExtraAdder(),
            _without_celerys_context,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
        ],
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            *([structlog.processors.format_exc_info] if form == "json" else []),
            renderer,
            _without_controls,
        ],
    )


def _without_controls(_logger: Any, _method: str, line: Any) -> str:
    """Return lines that drive no terminal, whoever wrote what stands in them."""
    return "".join(letter if letter in "\n\t" or letter.isprintable() else repr(letter)[1:-1] for letter in line)


def _without_celerys_context(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Leave out what Celery attaches to its own lines; its text says the same."""
    event.pop("data", None)
    return event
