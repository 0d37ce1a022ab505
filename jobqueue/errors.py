"""The one tree of errors a user can meet.

    JobqueueError
      InvalidSpec              every wrong field at once
      InvalidSetting           a `JOBQUEUE_*` that cannot be used
      Unavailable              a server that does not answer
        BrokerUnavailable        RegistryUnavailable      StoreUnavailable
      NoSuchQueue              NotFound                 IdempotencyMismatch
      ExperimentFailed         ExperimentCancelled      ExperimentTimeout
      Superseded               a write with an older fencing token
      Refused                  an envelope that a worker must not act on
        BadEnvelope              Untrusted                Undecryptable            Early
      KeyRefused               a key file that must not be used
      RuntimeFailure           the container engine, or an image it cannot have
        ImageRefused             ImagePullFailed          DiskFull
      ArtifactRefused          an archive, input or output that breaks a rule

Every error carries a `code` (stable, for programs) and a `hint` (what to do, for people).
"""

from dataclasses import dataclass
from datetime import timedelta
from typing import ClassVar

from jobqueue.printable import plain_lines


class JobqueueError(Exception):
    """What every error of this project is.

    Args:
        message: what happened, in one sentence.
        hint: what to do about it; empty where there is nothing to do.
    """

    code: ClassVar[str] = "error"
    hint: str = ""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        if hint is not None:
            self.hint = hint

    def __str__(self) -> str:
        """Return both for whoever reads it, in a terminal too: names and details are what others wrote."""
        return plain_lines(f"{self.message} ({self.hint})" if self.hint else self.message)

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.args, self.__dict__))


def _rebuild(kind: type[JobqueueError], args: tuple[object, ...], state: dict[str, object]) -> JobqueueError:
    error = kind.__new__(kind)
    error.args = args
    error.__dict__.update(state)
    return error


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One wrong field: where it is (`inputs.data`), what is wrong, with the fix."""

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


class InvalidSpec(JobqueueError, ValueError):
    """The spec cannot be accepted; `problems` names every wrong field."""

    code = "invalid_spec"

    def __init__(self, problems: list[Problem]) -> None:
        lines = "\n".join(f"  {problem}" for problem in problems)
        count = len(problems)
        super().__init__(f"{count} wrong field{'s' if count != 1 else ''} in the experiment:\n{lines}")
        self.problems = tuple(problems)


class InvalidSetting(JobqueueError, ValueError):
    """A setting (`JOBQUEUE_*` or `jobqueue.toml`) cannot be used."""

    code = "invalid_setting"


class Unavailable(JobqueueError, ConnectionError):
    """A server this project depends on does not answer."""


class BrokerUnavailable(Unavailable):
    """The broker does not answer; nothing was submitted."""

    code = "broker_unavailable"
    hint = "is it running, and is JOBQUEUE_BROKER_URL right? `jobqueue doctor` checks both, `jobqueue dev` starts one"


class RegistryUnavailable(Unavailable):
    """The registry does not answer."""

    code = "registry_unavailable"
    hint = "is it running, and is JOBQUEUE_REGISTRY_URL right? `jobqueue doctor` checks both, `jobqueue dev` starts one"


class StoreUnavailable(Unavailable):
    """The artifact store does not answer, or answers with a server error."""

    code = "store_unavailable"
    hint = "is it running, and is JOBQUEUE_STORAGE_URL right? `jobqueue doctor` checks both"


class NoSuchQueue(JobqueueError, LookupError):
    """The request queue does not exist."""

    code = "no_such_queue"
    hint = "`jobqueue queues create NAME` makes it"


class NotFound(JobqueueError, LookupError):
    """No experiment, artifact or key has that name."""

    code = "not_found"


class IdempotencyMismatch(JobqueueError, ValueError):
    """The idempotency key was used before, for another spec."""

    code = "idempotency_mismatch"
    hint = "use another key, or submit the very same spec"


class ExperimentFailed(JobqueueError):
    """The experiment ended as FAILED.

    Args:
        message: the reason's sentence with its numbers.
        hint: what the user can do.
        reason: the name of the `Reason`.
        exit_code: of the container, if it got that far.
        last_lines: the end of its output, oldest first.
    """

    code = "experiment_failed"

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        reason: str = "",
        exit_code: int | None = None,
        last_lines: tuple[str, ...] = (),
    ) -> None:
        super().__init__(message, hint=hint)
        self.reason = reason
        self.exit_code = exit_code
        self.last_lines = last_lines

    def __str__(self) -> str:
        tail = "".join(f"\n  | {plain_lines(line)}" for line in self.last_lines)
        return super().__str__() + tail


class ExperimentCancelled(JobqueueError):
    """The experiment ended as CANCELLED."""

    code = "experiment_cancelled"


class ExperimentTimeout(JobqueueError, TimeoutError):
    """The experiment was not final within the time that the caller gave."""

    code = "experiment_timeout"
    hint = "it goes on; ask again, or cancel it"


class Superseded(JobqueueError):
    """A newer lease was granted, or the experiment is final: this attempt's writes are refused."""

    code = "superseded"


class Refused(JobqueueError):
    """An envelope that a worker must not act on.

    Args:
        message: what is wrong with it.
        hint: what to do about it.
        experiment_id: from the header, once its signature has held; empty: never answer it, nobody known has asked.

    Attributes:
        sender_key_id: whose signature has held although what it signs is malformed; empty: never answer it either.
    """

    code = "refused"
    sender_key_id = ""

    def __init__(self, message: str, *, hint: str | None = None, experiment_id: str = "") -> None:
        super().__init__(message, hint=hint)
        self.experiment_id = experiment_id


class BadEnvelope(Refused):
    """The bytes are too large, not an envelope, or of an unknown version."""

    code = "bad_envelope"


class Early(Refused):
    """Sound, but sent at a time that is still to come: the clocks of its sender and of this node differ.

    Args:
        remaining: until its time has come, by this node's clock.
    """

    code = "early"
    hint = "compare the clocks of the sender and of this node"

    def __init__(
        self,
        message: str,
        *,
        remaining: timedelta = timedelta(0),
        hint: str | None = None,
        experiment_id: str = "",
    ) -> None:
        super().__init__(message, hint=hint, experiment_id=experiment_id)
        self.remaining = remaining


class Untrusted(Refused):
    """The signature is absent or wrong, or its sender is not trusted for this queue."""

    code = "untrusted"


class Undecryptable(Refused):
    """Signed by a trusted sender, but not sealed to a key that this node has."""

    code = "undecryptable"
    hint = "the sender sealed to a key this node does not have; `jobqueue keys show` lists them"


class KeyRefused(JobqueueError):
    """A key that must not be used: others can read its file, it is malformed, or it is a weak one."""

    code = "key_refused"


class RuntimeFailure(JobqueueError):
    """The container engine is down or refuses to do what a sound plan asks."""

    code = "runtime_failure"


class ImageRefused(RuntimeFailure):
    """The image does not exist, or the node's policy denies it."""

    code = "image_refused"


class ImagePullFailed(RuntimeFailure):
    """The image could not be fetched now; later it may be."""

    code = "image_pull_failed"


class DiskFull(RuntimeFailure):
    """A disk of this node has no room for what an attempt needs; another node's may have."""

    code = "disk_full"
    hint = "free some room on the node"


class ArtifactRefused(JobqueueError):
    """An archive, an input or an output breaks a rule; the message names the entry."""

    code = "artifact_refused"
