"""Whose turn it is among request queues."""

from workers.delivery.turns import LISTENED, UNKNOWN, Turns, choose


def make_turns(*served: str) -> Turns:
    turns = Turns()
    for queue in served:
        turns.note(queue)
    return turns


def test_who_was_served_longest_ago_goes_first_and_who_never_was_before_that() -> None:
    turns = make_turns("a", "b", "c", "a")
    assert turns.order(["a", "b", "c", "d"]) == ["d", "b", "c", "a"]


def test_few_queues_are_all_listened_at_although_nothing_waits() -> None:
    waiting = dict.fromkeys((f"q{number}" for number in range(LISTENED)), 0)
    assert set(choose(waiting, turns=Turns())) == set(waiting)


def test_of_many_those_in_which_something_waits_have_their_turn() -> None:
    waiting: dict[str, int | None] = {f"q{number:04d}": 0 for number in range(1000)}
    full = [f"q{number:04d}" for number in range(0, 200, 10)]
    waiting.update(dict.fromkeys(full, 3))
    turns, served = Turns(), []
    for _ in range(2 * len(full)):
        served.append(choose(waiting, turns=turns)[0])
        turns.note(served[-1])
    assert sorted(served[: len(full)]) == sorted(full) == sorted(served[len(full) :])
    assert len(choose(waiting, turns=turns)) == LISTENED


def test_places_that_are_left_go_to_what_was_served_last_unless_listening_is_charged() -> None:
    waiting: dict[str, int | None] = {f"q{number:02d}": 0 for number in range(20)}
    waiting["q19"] = 1
    turns = make_turns("q03", "q04")
    chosen = choose(waiting, turns=turns)
    assert len(chosen) == LISTENED
    assert {"q19", "q03", "q04"} <= set(chosen)
    assert choose(waiting, turns=turns, is_charging=True) == ["q19"]


def test_a_queue_of_which_nobody_knows_what_waits_has_its_turn() -> None:
    waiting: dict[str, int | None] = {f"q{number:02d}": 0 for number in range(20)}
    waiting["q07"] = None
    assert choose(waiting, turns=Turns(), is_charging=True) == ["q07"]


def test_one_queue_alone_is_listened_at_whatever_it_costs() -> None:
    assert choose({"q": 0}, turns=Turns(), is_charging=True) == ["q"]


def test_named_queues_are_listened_at_beside_all_that_patterns_find() -> None:
    found: dict[str, int | None] = {f"q{number:02d}": 1 for number in range(20)}
    names = [f"n{number}" for number in range(10)]
    chosen = choose({**found, **dict.fromkeys(names, 0)}, turns=Turns(), named=names)
    assert set(names) <= set(chosen)
    assert len(chosen) == len(names) + LISTENED


def test_what_is_known_to_wait_goes_before_what_is_not_known_which_keeps_a_few_places() -> None:
    waiting: dict[str, int | None] = {f"a{number:03d}": None for number in range(1000)}
    full = [f"z{number:03d}" for number in range(20)]
    waiting.update(dict.fromkeys(full, 1))
    chosen = choose(waiting, turns=Turns(), is_charging=True)
    assert [waiting[queue] for queue in chosen].count(None) == UNKNOWN
    assert len(set(full).intersection(chosen)) == LISTENED - UNKNOWN
    few = choose({**dict.fromkeys(waiting), "z000": 1}, turns=Turns(), is_charging=True)
    assert len(few) == LISTENED
    assert "z000" in few
