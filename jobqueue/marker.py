"""The result marker: the truth about an experiment's end, as one small object that is written once."""

import json
from dataclasses import asdict, dataclass
from datetime import datetime

from jobqueue.errors import ArtifactRefused
from jobqueue.ids import ExperimentId, parse_experiment_id
from jobqueue.lifecycle import Reason, State


@dataclass(frozen=True, kw_only=True)
class Marker:
    """How an experiment ended, in the words of the attempt that wrote first.

    Attributes:
        attempt, token: of the writer; a writer whose answer was lost knows its own marker by them.
        state: a final one.
        manifest: the store key of the outputs' manifest; empty when there are none.
        manifest_sha256: of its bytes, in hex, so that nobody can put another one in its place; empty in older markers.
        finished_at: aware.
    """

    experiment_id: ExperimentId
    attempt: int
    token: int
    state: State
    reason: Reason
    detail: str = ""
    exit_code: int | None = None
    last_lines: tuple[str, ...] = ()
    manifest: str = ""
    manifest_sha256: str = ""
    finished_at: datetime

    def is_of(self, attempt: int, token: int) -> bool:
        """Tell whether this attempt wrote it."""
        return (self.attempt, self.token) == (attempt, token)


def marker_to_json(marker: Marker) -> bytes:
    """Return the marker as it lies in the store."""
    fields = {**asdict(marker), "reason": marker.reason.name, "finished_at": marker.finished_at.isoformat()}
    return json.dumps(fields, indent=1).encode()


def marker_from_json(content: bytes) -> Marker:
    """Return the marker that lies in the store.

    Raises:
        ArtifactRefused: it is not one, or of a state that is not final.
    """
    try:
        fields = json.loads(content)
        finished_at = datetime.fromisoformat(fields.pop("finished_at"))
        state, exit_code = State(fields.pop("state")), fields.pop("exit_code", None)
        if finished_at.tzinfo is None or not state.is_final:
            raise ValueError("its time has no zone, or its state is not final")  # noqa: TRY301
        return Marker(
            experiment_id=parse_experiment_id(fields.pop("experiment_id")),
            attempt=int(fields.pop("attempt")),
            token=int(fields.pop("token")),
            state=state,
            reason=Reason[fields.pop("reason")],
            detail=str(fields.pop("detail", "")),
            exit_code=None if exit_code is None else int(exit_code),
            last_lines=tuple(str(line) for line in fields.pop("last_lines", ())),
            manifest=str(fields.pop("manifest", "")),
            manifest_sha256=str(fields.pop("manifest_sha256", "")),
            finished_at=finished_at,
            **fields,
        )
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        raise ArtifactRefused(f"not a result marker: {error}") from None
