"""What a producer registers of an experiment, without a producer."""

from jobqueue.header import Header
from jobqueue.registry.base import Submission


def submission_of(header: Header, *, message: bytes = b"") -> Submission:
    """Return what a producer registers."""
    return Submission(
        id=header.experiment_id,
        queue=header.queue,
        project=header.project,
        resources=header.resources,
        submitted_at=header.submitted_at,
        expires_at=header.expires_at,
        spec_digest="0" * 64,
        message=message,
    )
