"""A step that is tried again, and what is said about it."""

import logging
from collections.abc import Callable, Iterator

import pytest
from stamina.instrumentation import set_on_retry_hooks

from jobqueue.errors import StoreUnavailable, Unavailable
from workers.attempt.patience import log_retries, patiently


@pytest.fixture
def _logged() -> Iterator[None]:
    log_retries()
    yield
    set_on_retry_hooks(None)


def failing_once() -> Callable[[], str]:
    errors: list[Unavailable] = [StoreUnavailable("503")]

    def step(secret: str = "s3cret") -> str:
        if errors:
            raise errors.pop()
        return secret

    return step


@pytest.mark.usefixtures("_logged")
def test_a_retry_is_one_line_of_ours_with_the_error_and_nothing_of_the_step(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    with caplog.at_level(logging.DEBUG):
        assert patiently(StoreUnavailable, failing_once()) == "s3cret"
    (record,) = caplog.records
    assert (record.name, record.message, record.levelno) == (
        "workers.attempt.patience",
        "step.retried",
        logging.WARNING,
    )
    fields = vars(record)
    assert (fields["error"], fields["retry"]) == ("503", 1)
    assert "s3cret" not in repr(fields)
    printed = capfd.readouterr()
    assert "stamina" not in printed.out + printed.err
