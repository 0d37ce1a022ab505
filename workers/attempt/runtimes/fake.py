"""A runtime in memory that does what a script says, for tests of whatever supervises containers.

>>> runtime = FakeRuntime()
>>> runtime.script = Script(output=[("stdout", b"hello")], exit=Exit(code=3))
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from threading import Condition

from jobqueue.errors import RuntimeFailure
from workers.attempt.runtimes.base import Container, Exit, Plan

TERMINATED = 143
KILLED = 137


@dataclass(frozen=True, kw_only=True)
class Script:
    """What a container does from its start on.

    Attributes:
        output: pieces by stream, printed at once.
        exit: how it ends.
        is_held: whether it runs until `FakeContainer.finish` or `stop`, or ends at once.
        ignores_terminate: whether `stop` has to kill it.
        terminated, last_words: how it ends when `stop` asks it to, and what it prints then.
    """

    output: Sequence[tuple[str, bytes]] = ()
    exit: Exit = field(default_factory=lambda: Exit(code=0))
    is_held: bool = False
    ignores_terminate: bool = False
    terminated: Exit = field(default_factory=lambda: Exit(code=TERMINATED))
    last_words: bytes = b""


class FakeContainer:
    """A `Container` whose life the test leads; its attributes tell what was done to it.

    Attributes:
        plan: what it was started by.
        calls: the names of the methods that were called, oldest first.
        is_paused, is_removed: as it is now.
        grace: what the last `stop` allowed.
    """

    def __init__(self, plan: Plan, script: Script, check: Callable[[], None]) -> None:
        self.plan = plan
        self.labels = plan.labels
        self.calls: list[str] = []
        self.is_paused = False
        self.is_removed = False
        self.grace: timedelta | None = None
        self._script = script
        self._check = check
        self._output = list(script.output)
        self._passed = 0
        self._exit = None if script.is_held else script.exit
        self._changed = Condition()

    @property
    def is_running(self) -> bool:
        """Whether it has not ended; a paused one is running."""
        return self._exit is None

    def emit(self, stream: str, piece: bytes) -> None:
        """Let it print."""
        with self._changed:
            self._output.append((stream, piece))
            self._changed.notify_all()

    def finish(self, how: Exit | None = None) -> None:
        """Let it end, as its script says unless `how` does; once it ended, that stands."""
        with self._changed:
            self._exit = self._exit or how or self._script.exit
            self._changed.notify_all()

    def follow(self, sink: Callable[[str, bytes], None]) -> None:
        """Pass on what was not passed yet, until it ended; what a paused one has to say comes after `resume`."""
        self._record("follow")
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._passed < len(self._output) or self._exit is not None)
                if self._passed == len(self._output):
                    return
                stream, piece = self._output[self._passed]
            sink(stream, piece)
            self._passed += 1

    def wait(self, timeout: timedelta) -> Exit | None:
        """Return how it ended; the engine is asked at the end of the wait."""
        self._record("wait")
        with self._changed:
            self._changed.wait_for(lambda: self._exit is not None, timeout=timeout.total_seconds())
        self._check()
        return None if self.is_paused else self._exit

    def stop(self, grace: timedelta) -> None:
        """End it as its script says; without any grace it has no say."""
        self._record("stop")
        self.is_paused = False
        self.grace = grace
        if self._script.ignores_terminate or not grace:
            self.finish(Exit(code=KILLED))
        elif self.is_running:
            if self._script.last_words:
                self.emit("stdout", self._script.last_words)
            self.finish(self._script.terminated)

    def pause(self) -> None:
        """Note that it is frozen."""
        self._record("pause")
        self.is_paused = self._exit is None

    def resume(self) -> None:
        """Note that it goes on."""
        self._record("resume")
        self.is_paused = False

    def remove(self) -> None:
        """Kill it and take it off the runtime."""
        self._record("remove")
        self.is_paused = False
        self.is_removed = True
        self.finish(Exit(code=KILLED))

    def _record(self, call: str) -> None:
        self.calls.append(call)
        self._check()


class FakeRuntime:
    """A `ContainerRuntime` in memory; several workers of one test may share it, as they share a node's engine.

    Attributes:
        script: what the next containers do; a function of the plan, or one script for all.
        containers: every container that was started, oldest first, the removed ones too.
        images: what each image resolves to, or the error that it raises; others resolve to themselves.
        is_down: whether everything that is asked of it fails, as with an engine that was killed.
    """

    name = "fake"
    notice = "nothing runs: this runtime only pretends"

    def __init__(self, script: Script | Callable[[Plan], Script] = Script()) -> None:
        self.script = script
        self.containers: list[FakeContainer] = []
        self.images: dict[str, str | RuntimeFailure] = {}
        self.is_down = False

    def check(self) -> None:
        """Fail when it is down."""
        if self.is_down:
            raise RuntimeFailure("the fake engine is down", hint="set is_down to False")

    def resolve(self, image: str, *, hold: Path | None = None) -> str:
        """Return or raise what `images` says."""
        del hold
        self.check()
        answer = self.images.get(image, image)
        if isinstance(answer, RuntimeFailure):
            raise answer
        return answer

    def vet(self) -> None:
        """It may be used."""

    def find_fault(self, network: str) -> str:
        """It has every network."""
        del network
        return ""

    def start(self, plan: Plan) -> Container:
        """Start a container that follows the script."""
        self.resolve(plan.image)
        script = self.script if isinstance(self.script, Script) else self.script(plan)
        container = FakeContainer(plan, script, self.check)
        self.containers.append(container)
        return container

    def find(self, node_id: str) -> list[Container]:
        """Return this node's containers that were not removed."""
        self.check()
        return [each for each in self.containers if each.labels.node_id == node_id and not each.is_removed]

    def tidy(self) -> str:
        """Nothing is fetched."""
        return ""

    def close(self) -> None:
        """Containers go on."""
