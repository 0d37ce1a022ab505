"""Where an experiment is and how it came there: as a sentence, and as a table that survives in a saved notebook."""

import json
import unicodedata
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape

from jobqueue.errors import JobqueueError
from jobqueue.lifecycle import Reason, State
from jobqueue.printable import plain_lines
from jobqueue.quantities import describe_size
from jobqueue.registry.base import PastAttempt, Record
from jobqueue.resources import Resources

_COLOURS = {State.SUCCEEDED: "#1a7f37", State.FAILED: "#cf222e", State.CANCELLED: "#6e7781"}
_COLOUR_BEFORE = "#0969da"
# Between lines of a message, and within emoji and the words of several scripts.
_JOINERS = "\n\t\u200c\u200d"


@dataclass(frozen=True, kw_only=True)
class View:
    """What there is to tell of one experiment now.

    Attributes:
        sentence: where it is and why, for people.
        progress: what it last said of itself; empty when it has said nothing.
        rows: label and text, in the order in which they are shown.
    """

    id: str
    name: str
    state: State
    sentence: str
    progress: dict[str, object]
    rows: tuple[tuple[str, str], ...]


def make_view(record: Record) -> View:
    """Return the view of a record."""
    submission = record.submission
    rows = [
        ("queue", submission.queue),
        ("asks for", _describe_resources(submission.resources)),
        ("submitted", _describe_time(submission.submitted_at)),
    ]
    if record.started_at:
        rows.append(("started", _describe_time(record.started_at)))
    if record.finished_at:
        rows.append(("finished", _describe_time(record.finished_at)))
    rows += [(f"attempt {past.attempt}", _describe_attempt(past)) for past in record.history]
    progress = parse_progress(record.progress)
    if progress:
        rows.append(("progress", describe_progress(progress)))
    return View(
        id=submission.id,
        name=submission.name,
        state=record.state,
        sentence=_explain(record),
        progress=progress,
        rows=tuple(rows),
    )


def explain(record: Record) -> str:
    """Return in one sentence where an experiment is, and why; nothing in it drives a terminal."""
    return plain_lines(_explain(record))


def _explain(record: Record) -> str:
    if record.state.is_final:
        return f"{record.state}: {_describe_end(record)}"
    if record.state is State.QUEUED:
        return _explain_waiting(record)
    words = [str(record.state)]
    if record.state is State.PREPARING and record.phase:
        words.append(f"({record.phase})")
    words.append(f"attempt {record.attempt}")
    if record.worker_id:
        words.append(f"on {record.worker_id}")
    if record.is_cancelled:
        words.append("and is being cancelled")
    progress = parse_progress(record.progress)
    return " ".join(words) + (f": {describe_progress(progress)}" if progress else "")


def _explain_waiting(record: Record) -> str:
    queue = record.submission.queue
    if not record.reason:
        return f"QUEUED: waiting in {queue!r} for a worker to take it"
    return f"QUEUED: waiting in {queue!r} for attempt {record.attempt + 1}, as {_describe_end(record)}"


def _describe_end(record: Record) -> str:
    if record.reason is None:
        return "no reason is recorded"
    verdict = record.reason.verdict
    sentence = f"{verdict.sentence}: {record.detail}" if record.detail else verdict.sentence
    hint = f"; {verdict.hint}" if verdict.hint else ""
    return f"{sentence} [{record.reason.name}]{hint}"


def parse_progress(text: str) -> dict[str, object]:
    """Return the last progress as a mapping; empty when there is none, or it is not an object."""
    try:
        progress = json.loads(text) if text else {}
    except (ValueError, RecursionError):
        return {}
    return progress if isinstance(progress, dict) else {}


def describe_progress(progress: dict[str, object]) -> str:
    """Return progress as one line: `progress=0.62 loss=0.41`."""
    return " ".join(f"{name}={_describe_value(value)}" for name, value in progress.items())


def _describe_value(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _describe_resources(resources: Resources) -> str:
    words = [f"{resources.cpus:g} cpus", f"{describe_size(resources.memory_bytes)} memory"]
    if resources.gpus:
        each = f" of {describe_size(resources.gpu_memory_bytes)}" if resources.gpu_memory_bytes else ""
        words.insert(0, f"{resources.gpus} GPU{'s' if resources.gpus > 1 else ''}{each}")
    return ", ".join(words)


def _describe_attempt(past: PastAttempt) -> str:
    reason: Reason = past.reason
    return f"{reason.verdict.sentence}: {past.detail}" if past.detail else reason.verdict.sentence


def _describe_time(at: datetime) -> str:
    return at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def to_html(view: View) -> str:
    """Return a static table: no script, no style sheet, every text escaped and kept from turning its surroundings."""
    colour = _COLOURS.get(view.state, _COLOUR_BEFORE)
    title = f"{_shown(view.name)} <code>{_shown(view.id)}</code>" if view.name else f"<code>{_shown(view.id)}</code>"
    rows = "".join(
        f'<tr><th style="text-align:left">{_shown(label)}</th><td style="text-align:left">{_shown(text)}</td></tr>'
        for label, text in view.rows
    )
    return (
        f'<div><p><b style="color:{colour}">{escape(view.state)}</b> {title}</p>'
        f"<p>{_shown(view.sentence)}</p>{_bar(view)}<table>{rows}</table></div>"
    )


def error_to_html(experiment_id: str, error: JobqueueError) -> str:
    """Return what is shown in the place of the table where there is none."""
    text = f"{error.message} ({error.hint})" if error.hint else error.message
    return f"<p><code>{_shown(experiment_id)}</code>: {_shown(text)}</p>"


def _shown(text: str) -> str:
    """Return a text as HTML whose direction of writing is its own, and in which what is unseen is shown."""
    seen = "".join(letter if _is_seen(letter) else letter.encode("unicode_escape").decode() for letter in text)
    return f"<bdi>{escape(seen)}</bdi>"


def _is_seen(letter: str) -> bool:
    """Tell whether it is no control: of a terminal, of the direction of writing, or half a character."""
    return letter in _JOINERS or not unicodedata.category(letter).startswith("C")


def _bar(view: View) -> str:
    share = view.progress.get("progress")
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
        return ""
    return f'<progress value="{share:.4f}" max="1"></progress> {share:.0%}'
