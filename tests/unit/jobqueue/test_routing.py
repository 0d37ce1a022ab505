"""Which queue an experiment goes to, and the names of its companions."""

import pytest
from hypothesis import given
from strategies import specs

from jobqueue.errors import InvalidSpec
from jobqueue.routing import (
    COMPANIONS,
    choose_queue,
    dead_letter_queue,
    deferred_queue,
    is_request_queue,
    reporting_queue,
    request_queues,
)
from jobqueue.spec import ExperimentSpec, parse_spec

SQS_LIMIT = 80


def spec_of(**fields: object) -> ExperimentSpec:
    return parse_spec({"image": "busybox", "command": "true", **fields})


def test_the_project_and_the_gpus_choose_the_queue() -> None:
    assert choose_queue(spec_of(project="lab")) == "lab_cpu"
    assert choose_queue(spec_of(project="lab", gpus=1)) == "lab_gpu"


def test_a_queue_that_is_named_wins() -> None:
    assert choose_queue(spec_of(project="lab", gpus=1, queue="big")) == "big"


@pytest.mark.parametrize("ending", COMPANIONS)
def test_nothing_can_be_submitted_to_a_companion(ending: str) -> None:
    with pytest.raises(InvalidSpec, match="queue"):
        choose_queue(spec_of(queue=f"default_cpu{ending}"))


def test_companions_are_told_from_request_queues() -> None:
    for queue in request_queues("default"):
        assert is_request_queue(queue)
        for companion in (reporting_queue(queue), deferred_queue(queue), dead_letter_queue(queue)):
            assert companion.startswith(queue)
            assert not is_request_queue(companion)


@given(specs())
def test_every_name_with_every_ending_is_legal_on_sqs(spec: ExperimentSpec) -> None:
    for ending in ("", *COMPANIONS):
        name = (spec.queue or request_queues(spec.project)[0]) + ending
        assert len(name) <= SQS_LIMIT
        assert name.replace("-", "").replace("_", "").isalnum()
        assert name.isascii()


def test_the_longest_names_are_legal_on_sqs() -> None:
    longest = [*request_queues("p" * 64), choose_queue(spec_of(queue="q" * 70))]
    assert max(len(queue + ending) for queue in longest for ending in COMPANIONS) <= SQS_LIMIT
