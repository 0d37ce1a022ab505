"""What goes ahead of a request queue, and how soon the others have their turn."""

from jobqueue.brokers.precedence import IN_A_ROW, Precedence
from jobqueue.routing import first_queue

QUEUE = "a_cpu"
FIRST = first_queue(QUEUE)


def test_what_is_served_first_is_asked_for_first() -> None:
    assert Precedence().order(QUEUE) == (FIRST, QUEUE)


def test_after_some_in_a_row_the_request_queue_itself_is_next_and_then_it_begins_anew() -> None:
    precedence = Precedence()
    for _ in range(IN_A_ROW):
        assert not precedence.is_others_turn(QUEUE)
        precedence.note(FIRST)
    assert precedence.order(QUEUE) == (QUEUE, FIRST)
    precedence.note(QUEUE)
    assert precedence.order(QUEUE) == (FIRST, QUEUE)


def test_what_is_refused_takes_nobodys_turn_but_that_of_what_goes_ahead() -> None:
    precedence = Precedence()
    for _ in range(IN_A_ROW):
        assert not precedence.is_others_turn(QUEUE)
        precedence.note_refused(FIRST)
        precedence.note_refused(QUEUE)
    precedence.note_refused(QUEUE)
    assert precedence.is_others_turn(QUEUE)


def test_one_queue_says_nothing_of_another() -> None:
    precedence = Precedence()
    for _ in range(IN_A_ROW):
        precedence.note(FIRST)
    assert precedence.order("b_cpu") == ("b_cpu_first", "b_cpu")
