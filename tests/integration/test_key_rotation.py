"""Keys are rotated and revoked while experiments are submitted, on machines that share no key."""

import time
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta

import pytest
from services.images import BUSYBOX
from services.place import LONG, OpenAt, Place
from services.waiting import wait_until

from jobqueue.keys import Reader, SealingPublicKey, Signer, SigningPublicKey, make_pair, revoke, trust
from jobqueue.lifecycle import State
from producers.client import Client
from producers.handle import Experiment

pytestmark = pytest.mark.filterwarnings("ignore::producers.preparation.JobqueueWarning")

PAUSE_SECONDS = 0.6
# A second, and some: then every folder of keys has been read again.
LOOKED_AT_AGAIN_SECONDS = 2.0


class Pair:
    """A sender and a node, each with a folder of keys of its own."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.sender_keys, self.node_keys = (place.site.folder / name for name in ("sender's", "node's"))
        self.client = Client(place.site.settings.model_copy(update={"keys": self.sender_keys}))
        make_pair(self.node_keys, Signer.NODE)
        self.exchange(*self.make())
        self.log = place.site.folder / "cpu.log"

    def make(self, *, after: timedelta = timedelta(0)) -> tuple[SigningPublicKey, SealingPublicKey]:
        """Make new keys for both."""
        used_from = datetime.now(UTC) + after
        sender = make_pair(self.sender_keys, Signer.SENDER, used_from=used_from)
        return sender, make_pair(self.node_keys, Reader.NODE, used_from=used_from)

    def exchange(self, sender: SigningPublicKey, node: SealingPublicKey) -> None:
        """Have each trust the other's."""
        trust(self.node_keys, sender.line)
        trust(self.sender_keys, node.line)

    @property
    def used(self) -> tuple[SigningPublicKey, SealingPublicKey]:
        """The keys that what is submitted now is signed with and sealed to."""
        ring = self.client._connections.keys
        return ring.sender().public, ring.recipient(self.place.site.queue)

    def submit_for(self, seconds: float) -> list[Experiment]:
        """Submit one after the other, for so long."""
        until, experiments = time.monotonic() + seconds, [self.submit()]
        while time.monotonic() < until:
            experiments.append(self.submit())
            time.sleep(PAUSE_SECONDS)
        return experiments

    def submit(self) -> Experiment:
        """Submit something that ends at once."""
        return self.client.submit(image=BUSYBOX, command=["true"], memory="128MiB", disk="1GiB")

    def refusals(self) -> int:
        """Return how often the worker has told of messages that it refused."""
        return self.log.read_text(errors="replace").count("delivery.refused")


@pytest.fixture
def pair(open_at: OpenAt) -> Iterator[Pair]:
    with open_at("redis") as place:
        pair = Pair(place)
        with closing(pair.client):
            yield pair


@pytest.mark.security_case("rotated key")
def test_a_rotation_of_all_keys_under_load_loses_nothing(pair: Pair) -> None:
    """A sender and a node rotate their keys while experiments are submitted, then revoke the old ones.

    Refused: nothing that is good; old and new keys are valid side by side.
    Evidence: experiments of both keys succeed, and the worker refuses no message.
    """
    with pair.place.make_worker(environment={"JOBQUEUE_KEYS": str(pair.node_keys)}):
        old, experiments = pair.used, [pair.submit()]
        new = pair.make(after=timedelta(hours=1))
        experiments += pair.submit_for(LOOKED_AT_AGAIN_SECONDS)  # nobody else knows the new keys yet
        pair.exchange(*new)
        experiments += pair.submit_for(LOOKED_AT_AGAIN_SECONDS)
        assert pair.used == old
        pair.client._connections.keys._now = lambda: datetime.now(UTC) + timedelta(hours=1)
        assert pair.used == new
        experiments += pair.submit_for(LOOKED_AT_AGAIN_SECONDS)
        assert [each.result(timeout=120) for each in experiments] == [{"exit_code": 0}] * len(experiments)
        revoke(pair.sender_keys, old[0].key_id)
        revoke(pair.node_keys, old[0].key_id)
        revoke(pair.sender_keys, old[1].key_id)
        experiments = pair.submit_for(LOOKED_AT_AGAIN_SECONDS)
        assert [each.result(timeout=120) for each in experiments] == [{"exit_code": 0}] * len(experiments)
        assert pair.refusals() == 0


@pytest.mark.security_case("revoked key")
def test_what_a_revoked_sender_submits_is_dropped_without_a_restart(pair: Pair) -> None:
    """A sender goes on submitting after its key was revoked on the nodes.

    Refused: within 10 seconds, without a restart: dropped and counted, never started or answered.
    Evidence: what was submitted before succeeds, what is submitted later stays QUEUED, and its message goes.
    """
    trust(pair.node_keys, make_pair(pair.place.site.folder / "other's", Signer.SENDER).line)
    with pair.place.make_worker(environment={"JOBQUEUE_KEYS": str(pair.node_keys)}):
        assert pair.submit().result(timeout=120) == {"exit_code": 0}
        revoke(pair.node_keys, pair.used[0].key_id)
        wait_until(lambda: pair.submit() is not None and pair.refusals() > 0, what="a refusal", within=LONG)
        experiment = pair.submit()
        wait_until(lambda: pair.place.depth() == 0, what="its message gone", within=LONG)
        assert experiment.state == State.QUEUED
