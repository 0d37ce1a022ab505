"""What a worker that has no place does with sound messages among a flood of others: an idle one gets each of them."""

from collections.abc import Iterator

import pytest
from services.garbage import flood, unsigned
from services.place import OpenAt, Place, number, wait_for_sleep

from jobqueue.lifecycle import State

pytestmark = pytest.mark.filterwarnings("ignore::producers.preparation.JobqueueWarning")
# So many that what comes at a time then, up to 10, 16 or 64, begins with garbage and ends with several sound ones.
FLOOD, SOUND = 17, 6


@pytest.fixture(params=["rabbitmq", "redis", "sqs"])
def place(request: pytest.FixtureRequest, open_at: OpenAt) -> Iterator[Place]:
    """A place whose leases are so long that nothing comes back because its time is over."""
    with open_at(request.param, lease="10m", grace="2s") as opened:
        yield opened


def test_no_sound_message_among_garbage_stays_with_a_worker_that_has_no_place(place: Place) -> None:
    seconds = number()
    garbage = garbage_of(place)
    lay(place, [garbage] * FLOOD)
    running = place.submit(f"sleep {seconds}; true")
    # So close to each other that they come together, many at a time.
    behind = [experiment for _ in range(SOUND) if (experiment := place.submit("true")) and lay(place, [garbage] * 2)]
    with place.make_worker("busy") as busy:
        wait_for_sleep(seconds)
        lay(place, [garbage] * FLOOD)
        late = place.submit("true")
        with place.make_worker("idle"):
            assert [each.result(timeout=120) for each in (*behind, late)] == [{"exit_code": 0}] * (SOUND + 1)
        assert (running.state, busy.running) == (State.RUNNING, True)
        running.cancel()
        assert running.wait(60)


def lay(place: Place, messages: list[bytes]) -> bool:
    """Lay what nobody has signed into the queue."""
    flood(place.site.settings, place.site.queue, [unsigned(each) for each in messages])
    return True


def garbage_of(place: Place) -> bytes:
    """Return the envelope of an experiment that is over."""
    experiment = place.submit("true")
    message = place.record_of(experiment).submission.message
    experiment.cancel()
    return message
