"""What a sender lets the attempts of one experiment read: addresses, under the sender's signature.

It travels inside the sealed spec, as the signature alone: the addresses stand in the spec. A node without credentials
shows it to a clerk of the store, who believes the sender and not the node.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from jobqueue.errors import Untrusted
from jobqueue.ids import ExperimentId, KeyId
from jobqueue.keys import KeyRing, SigningKey
from jobqueue.spec import ExperimentSpec

_DOMAIN: Final = b"jobqueue/v1/permit"
_STORES: Final = ("store:", "s3://")


@dataclass(frozen=True, kw_only=True)
class Permit:
    """What may be read for one experiment.

    Attributes:
        uris: as they stand in the spec, sorted.
    """

    experiment_id: ExperimentId
    queue: str
    uris: tuple[str, ...] = field(repr=False)
    sender_key_id: KeyId
    signature: bytes = field(repr=False)

    def check(self, *, keys: KeyRing) -> None:
        """Return when a sender that is trusted for its queue has signed it.

        Raises:
            NotFound: the sender is not trusted for it.
            Untrusted: the sender has signed something else.
            KeyRefused: a key file here is not to be used.
        """
        sender = keys.trusted(self.sender_key_id, queue=self.queue)
        if not sender.has_signed(_signed_bytes(self.experiment_id, self.queue, self.uris), self.signature):
            raise Untrusted("the signature of the permit does not hold")


def make_permit(spec: ExperimentSpec, *, experiment_id: ExperimentId, queue: str, sender: SigningKey) -> Permit:
    """Return the permit to read what a spec names."""
    uris = uris_of(spec)
    return Permit(
        experiment_id=experiment_id,
        queue=queue,
        uris=uris,
        sender_key_id=sender.public.key_id,
        signature=sender.sign(_signed_bytes(experiment_id, queue, uris)),
    )


def uris_of(spec: ExperimentSpec) -> tuple[str, ...]:
    """Return what a spec has read from stores before it starts, sorted; other addresses could be secrets."""
    artifacts = [*spec.inputs.values(), *([spec.workspace] if spec.workspace else [])]
    uris = {artifact.uri for artifact in artifacts}
    return tuple(sorted(uri for uri in uris if uri.startswith(_STORES) and "?" not in uri))


def _signed_bytes(experiment_id: ExperimentId, queue: str, uris: Iterable[str]) -> bytes:
    """Return what is signed, each part after its length, so that no two permits give the same bytes."""
    parts = [_DOMAIN, experiment_id.encode(), queue.encode(), *(uri.encode() for uri in uris)]
    return b"".join(len(part).to_bytes(4) + part for part in parts)
