"""What a node keeps of inputs: no more than its bound, the longest unused going first, never what an attempt needs."""

import errno
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from services.waiting import wait_until

from jobqueue.errors import DiskFull, StoreUnavailable
from jobqueue.lifecycle import Reason
from workers.attempt import holds, input_cache
from workers.attempt.ending import outcome_of_error
from workers.attempt.holds import Kept, choose
from workers.attempt.input_cache import CONTENT, Fill, InputCache, Wanted
from workers.attempt.trees import remove
from workers.file_locks import locked, open_folder, try_lock

BOUND = 100


@pytest.fixture
def cache(tmp_path: Path) -> InputCache:
    return InputCache(folder=tmp_path, size_bytes=BOUND)


class Source:
    """Where inputs come from; counts how often each was asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def want(self, name: str, size_bytes: int, **changes: Any) -> Wanted:
        def bring(folder: Path, pulse: Callable[[], None]) -> str:
            self.asked.append(name)
            pulse()
            (folder / CONTENT).write_bytes(name[:1].encode() * size_bytes)
            return name

        return replace(Wanted(name=name, expected_bytes=size_bytes, bring=bring), **changes)


@pytest.fixture
def source() -> Source:
    return Source()


def kept(cache: InputCache) -> set[str]:
    return {path.name for path in (cache.folder / "kept").iterdir()}


def get(cache: InputCache, wanted: Wanted, attempt: str) -> Path:
    return cache.get(wanted, cache.folder / "attempts" / attempt / wanted.name)


def end(cache: InputCache, attempt: str) -> None:
    assert remove(cache.folder / "attempts" / attempt)


def leave(cache: InputCache, name: str) -> Path:
    """Leave what a process that is killed while `name` arrives leaves."""
    left = cache.folder / "incoming" / name
    left.mkdir(parents=True)
    (left / CONTENT).write_bytes(b"half")
    return left


def lock_folder(cache: InputCache, name: str) -> tuple[Path, int]:
    """Do what another process does that is at a folder in `incoming`."""
    folder = leave(cache, name)
    handle = open_folder(folder)
    assert try_lock(handle)
    return folder, handle


def test_what_was_used_longest_ago_goes_first(cache: InputCache, source: Source) -> None:
    for name in "abc":
        get(cache, source.want(name, 30), name)
        end(cache, name)
    get(cache, source.want("a", 30), "again")
    end(cache, "again")
    get(cache, source.want("d", 30), "d")
    assert kept(cache) == {"a", "c", "d"}
    assert source.asked == ["a", "b", "c", "d"]


def test_what_an_attempt_needs_stays_whatever_comes(cache: InputCache, source: Source) -> None:
    paths = [get(cache, source.want(name, 60), "one") for name in "abc"]
    assert [path.read_bytes()[:1] for path in paths] == [b"a", b"b", b"c"]
    assert cache.fill() == Fill(count=3, size_bytes=180, held=3)
    end(cache, "one")
    cache.trim()
    assert kept(cache) == {"c"}


def test_the_end_of_a_long_use_is_the_last_one(cache: InputCache, source: Source) -> None:
    get(cache, source.want("long", 40), "long")
    get(cache, source.want("short", 40), "short")
    end(cache, "short")
    cache.trim()
    end(cache, "long")
    get(cache, source.want("new", 40), "new")
    assert kept(cache) == {"long", "new"}


def test_what_is_larger_than_the_cache_is_delivered_and_not_kept(cache: InputCache, source: Source) -> None:
    get(cache, source.want("small", 40), "small")
    end(cache, "small")
    path = get(cache, replace(source.want("large", BOUND + 1), name=""), "one")
    assert path.stat().st_size == BOUND + 1
    assert path.is_relative_to(cache.folder / "attempts" / "one")
    assert kept(cache) == {"small"}
    end(cache, "one")
    assert not path.exists()
    assert not list((cache.folder / "incoming").iterdir())


def test_a_cache_of_nothing_keeps_nothing(cache: InputCache, source: Source) -> None:
    empty = replace(cache, size_bytes=0)
    assert get(empty, source.want("a", 10), "one").stat().st_size == 10
    assert kept(empty) == set()


def test_room_is_made_before_the_next_one_arrives(cache: InputCache, source: Source) -> None:
    get(cache, source.want("a", 60), "a")
    end(cache, "a")
    seen: list[set[str]] = []
    wanted = source.want("b", 60)

    def bring(folder: Path, pulse: Callable[[], None]) -> str:
        seen.append(kept(cache))
        return wanted.bring(folder, pulse)

    get(cache, replace(wanted, bring=bring), "b")
    assert seen == [set()]


def test_a_full_disk_is_told_before_anything_arrives_and_is_the_nodes_fault(
    cache: InputCache, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    get(cache, source.want("old", 10), "old")
    end(cache, "old")
    monkeypatch.setattr(input_cache, "free_bytes", lambda _: 20 - 10 * len(kept(cache)))
    with pytest.raises(DiskFull, match="30 B are to arrive and 20 B are free") as raised:
        get(cache, source.want("a", 30), "one")
    assert source.asked == ["old"]
    assert kept(cache) == set()
    assert outcome_of_error(raised.value).reason is Reason.NODE_DISK_FULL
    assert get(cache, source.want("a", 20), "one").exists()


def test_room_that_another_process_is_making_is_waited_for(
    cache: InputCache, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    get(cache, source.want("old", 10), "old")
    end(cache, "old")
    monkeypatch.setattr(input_cache, "free_bytes", lambda _: 0)
    removed: list[Path] = []
    may_remove = Event()

    def remove_slowly(folder: Path) -> bool:
        removed.append(folder)
        may_remove.wait()
        monkeypatch.setattr(input_cache, "free_bytes", lambda _: 20)
        return remove(folder)

    monkeypatch.setattr(holds, "remove", remove_slowly)
    other = Thread(target=replace(cache, floor_bytes=1).trim)
    other.start()
    wait_until(lambda: removed, what="a removal")
    asked: list[int] = []

    def check() -> None:
        asked.append(1)
        if len(asked) > 2:
            may_remove.set()

    try:
        assert get(cache, source.want("a", 20, check=check), "one").exists()
    finally:
        may_remove.set()
        other.join()
    assert len(removed) == 1


def test_who_waits_for_room_can_be_called_off(
    cache: InputCache, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check() -> None:
        raise StoreUnavailable("called off")

    get(cache, source.want("old", 10), "old")
    _, handle = lock_folder(cache, "going-1")
    monkeypatch.setattr(input_cache, "free_bytes", lambda _: 0)
    with pytest.raises(StoreUnavailable):
        get(cache, source.want("a", 20, check=check), "one")
    os.close(handle)


def test_what_arrives_for_others_is_no_room_to_wait_for(
    cache: InputCache, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, handle = lock_folder(cache, "b")
    monkeypatch.setattr(input_cache, "free_bytes", lambda _: 0)
    with pytest.raises(DiskFull):
        get(cache, source.want("a", 20), "one")
    os.close(handle)


@pytest.mark.parametrize("step", ["make room", "keep"])
def test_who_waits_for_a_stopped_process_with_the_lock_can_be_called_off(
    cache: InputCache, source: Source, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    wanted = source.want("a", 20)
    with ExitStack() as stopped:

        def stop() -> None:
            stopped.enter_context(locked(cache.folder / "cache.lock"))

        def look(_: Path) -> int:
            stop()
            return BOUND

        def bring(folder: Path, pulse: Callable[[], None]) -> str:
            stop()
            return wanted.bring(folder, pulse)

        def check() -> None:
            raise StoreUnavailable("called off")

        if step == "make room":
            monkeypatch.setattr(input_cache, "free_bytes", look)
        with pytest.raises(StoreUnavailable):
            get(cache, replace(wanted, bring=bring, check=check), "one")
    assert not list((cache.folder / "incoming").iterdir())


def test_a_beginning_that_fails_leaves_nothing_that_nobody_can_remove(
    cache: InputCache, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> Path:
        raise OSError(errno.EDQUOT, "disk quota exceeded")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", refuse)
        with pytest.raises(OSError, match="quota"):
            get(cache, source.want("a", 10), "one")
    cache.trim()
    assert not list((cache.folder / "incoming").iterdir())


def test_a_disk_below_its_floor_keeps_only_what_is_needed(
    cache: InputCache, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "ab":
        get(cache, source.want(name, 10), name)
    end(cache, "a")
    monkeypatch.setattr(input_cache, "free_bytes", lambda _: 5)
    replace(cache, floor_bytes=6).trim()
    assert kept(cache) == {"b"}


def test_an_arrival_that_fails_leaves_nothing(cache: InputCache, source: Source) -> None:
    def bring(folder: Path, _pulse: Callable[[], None]) -> str:
        (folder / CONTENT).write_bytes(b"half")
        raise StoreUnavailable("it went away")

    with pytest.raises(StoreUnavailable):
        get(cache, source.want("a", 10, bring=bring), "one")
    assert not list((cache.folder / "incoming").iterdir())
    assert get(cache, source.want("a", 10), "one").stat().st_size == 10


def test_what_a_killed_process_left_is_removed_and_never_used(cache: InputCache, source: Source) -> None:
    leave(cache, "a")
    other = leave(cache, "b")
    assert get(cache, source.want("a", 10), "one").read_bytes() == b"a" * 10
    assert not other.exists()
    assert not list((cache.folder / "incoming").iterdir())


def test_what_was_let_go_by_a_killed_process_is_removed_by_the_next_look(cache: InputCache) -> None:
    left = leave(cache, "0" * 32)
    cache.trim()
    assert not left.exists()


def test_what_another_process_is_at_is_left_alone(cache: InputCache) -> None:
    left, handle = lock_folder(cache, "a")
    cache.trim()
    assert left.exists()
    os.close(handle)


@pytest.mark.parametrize("damage", ["truncated", "no size", "no content", "not a number"])
def test_what_is_damaged_is_brought_again(cache: InputCache, source: Source, damage: str) -> None:
    path = get(cache, source.want("a", 10), "one")
    end(cache, "one")
    use = path.with_name("use")
    {
        "truncated": lambda: os.truncate(path, 5),
        "no size": use.unlink,
        "no content": path.unlink,
        "not a number": lambda: use.write_text("x"),
    }[damage]()
    assert get(cache, source.want("a", 10), "two").read_bytes() == b"a" * 10
    assert source.asked == ["a", "a"]


class Slow(Source):
    """A source that waits for a word before it brings anything."""

    def __init__(self) -> None:
        super().__init__()
        self.may_bring = False

    def want(self, name: str, size_bytes: int, **changes: Any) -> Wanted:
        wanted = super().want(name, size_bytes, **changes)

        def bring(folder: Path, pulse: Callable[[], None]) -> str:
            (folder / "begun").touch()
            wait_until(lambda: self.may_bring, what="the word")
            return wanted.bring(folder, pulse)

        return replace(wanted, bring=bring)


def begin(cache: InputCache, slow: Slow) -> tuple[Thread, list[Path]]:
    got: list[Path] = []
    thread = Thread(target=lambda: got.append(get(cache, slow.want("a", 10), "one")))
    thread.start()
    wait_until((cache.folder / "incoming" / "a" / "begun").exists, what="the beginning")
    return thread, got


def test_of_two_that_need_the_same_one_brings_it(cache: InputCache, source: Source) -> None:
    slow, asked = Slow(), []
    first, got = begin(cache, slow)
    second = Thread(target=lambda: got.append(get(cache, source.want("a", 10, check=lambda: asked.append(1)), "two")))
    second.start()
    wait_until(lambda: len(asked) > 2, what="somebody who waits")
    slow.may_bring = True
    first.join()
    second.join()
    assert got[0] == got[1]
    assert (slow.asked, source.asked) == (["a"], [])
    assert cache.fill().held == 1


def test_who_waits_can_be_called_off(cache: InputCache, source: Source) -> None:
    def check() -> None:
        raise StoreUnavailable("called off")

    slow = Slow()
    first, _ = begin(cache, slow)
    with pytest.raises(StoreUnavailable):
        get(cache, source.want("a", 10, check=check), "two")
    slow.may_bring = True
    first.join()


def test_who_brings_nothing_any_more_is_not_waited_for(
    cache: InputCache, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = Slow()
    first, got = begin(cache, slow)
    long_ago = time.time() - 2 * input_cache.STALLED.total_seconds()
    os.utime(cache.folder / "incoming" / "a", (long_ago, long_ago))
    path = get(cache, source.want("a", 10), "two")
    slow.may_bring = True
    first.join()
    assert got == [path]
    assert not list((cache.folder / "incoming").iterdir())


def test_nothing_that_is_held_is_chosen() -> None:
    things = [Kept(name=name, size_bytes=10, used_at_ns=at, is_held=name in "ac") for at, name in enumerate("abcd")]
    assert [thing.name for thing in choose(things, bound_bytes=0)] == ["b", "d"]
    assert [thing.name for thing in choose(things, bound_bytes=35)] == ["b"]
    assert [thing.name for thing in choose(things, bound_bytes=100, missing_bytes=11)] == ["b", "d"]
    assert choose(things, bound_bytes=40) == []


NAMES = st.sampled_from("abcdefgh")
ATTEMPTS = st.integers(0, 3)
SIZES = dict(zip("abcdefgh", (1, 10, 30, 40, 50, 90, 100, 101), strict=True))


class Attempts(RuleBasedStateMachine):
    """Attempts come, take inputs, end, and are killed half-way, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="jobqueue-cache-"))
        self.cache = InputCache(folder=self.folder, size_bytes=BOUND)
        self.source = Source()
        self.needed: dict[int, dict[str, Path]] = {}
        self.is_tidy = True

    @rule(attempt=ATTEMPTS, name=NAMES)
    def take(self, attempt: int, name: str) -> None:
        asked = len(self.source.asked)
        wanted = self.source.want(name, SIZES[name])
        self.needed.setdefault(attempt, {})[name] = get(self.cache, wanted, str(attempt))
        self.is_tidy = self.is_tidy or len(self.source.asked) > asked

    @rule(attempt=ATTEMPTS)
    def end(self, attempt: int) -> None:
        end(self.cache, str(attempt))
        self.needed.pop(attempt, None)
        self.is_tidy = False

    @rule(name=NAMES)
    def be_killed(self, name: str) -> None:
        if not (self.folder / "incoming" / name).exists():
            leave(self.cache, name)
        self.is_tidy = False

    @rule()
    def trim(self) -> None:
        self.cache.trim()
        self.is_tidy = True

    @invariant()
    def what_is_needed_is_there_and_whole(self) -> None:
        for held in self.needed.values():
            for name, path in held.items():
                assert path.read_bytes() == name.encode() * SIZES[name]

    @invariant()
    def it_is_within_its_bound_but_for_what_is_needed(self) -> None:
        fill = self.cache.fill()
        held = {name for names in self.needed.values() for name in names if SIZES[name] <= BOUND}
        assert fill.held == len(held)
        if self.is_tidy:
            assert fill.size_bytes <= max(BOUND, sum(SIZES[name] for name in held))
            assert not (self.folder / "incoming").exists() or not list((self.folder / "incoming").iterdir())

    def teardown(self) -> None:
        shutil.rmtree(self.folder)


Attempts.TestCase.settings = settings(max_examples=25, stateful_step_count=20, deadline=None)
test_whatever_comes_the_bound_is_kept_and_what_is_needed_is_there = Attempts.TestCase
