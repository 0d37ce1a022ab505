"""Every container runtime that runs something confines it: limits, folders, network, user."""

from pathlib import Path

from services.runtimes import BOMB, MIB, StartContainer, real, run

from workers.attempt.runtimes.hardening import run_as

THREADS = """
import threading
end = threading.Event()
threads = [threading.Thread(target=end.wait) for _ in range(300)]
for thread in threads:
    thread.start()
end.set()
print("all")
"""


@real
def test_a_fork_bomb_stays_within_its_limit(start: StartContainer, workspace: Path) -> None:
    how, reader = run(start("python", "-c", BOMB, pids=40))
    # Either it could not have more, or it was killed for it. Without an engine the kernel counts for the whole user:
    # where others of the same user end meanwhile, the bomb gets a few more.
    assert (how.code == 0 and 10 < int(reader.text()) <= 60) or "processes" in how.error


@real
def test_threads_within_the_limit_are_had_with_little_memory(start: StartContainer) -> None:
    how, reader = run(start("python", "-c", THREADS, memory_bytes=128 * MIB))
    assert (how.code, reader.text()) == (0, "all\n"), reader.text("stderr")


@real
def test_the_memory_limit_kills_and_says_so(start: StartContainer) -> None:
    hog = "x = []\nwhile True: x.append(b'x' * 10_000_000)"
    how, _ = run(start("python", "-c", hog, memory_bytes=128 * MIB))
    assert (how.code, how.is_out_of_memory) == (137, True)
    assert how.memory_peak_bytes >= 100 * MIB


@real
def test_an_exit_with_137_of_its_own_is_not_out_of_memory(start: StartContainer) -> None:
    how, _ = run(start("sh", "-c", "kill -KILL $$"))
    assert (how.code, how.is_out_of_memory) == (137, False)


@real
def test_the_environment_comes_whole(start: StartContainer) -> None:
    env = {
        "UNICODE": "gr\u00fc\u00dfe \U0001f40d",
        "LINES_OF": "a\nb\n",
        "HUGE": "x" * 100_000,
        "EMPTY": "",
        "EQUAL": "a=b=c",
    }
    show = "import os; [print(repr(os.environ[n])) for n in ('UNICODE', 'LINES_OF', 'HUGE', 'EMPTY', 'EQUAL')]"
    how, reader = run(start("python", "-X", "utf8", "-c", show, env=env))
    assert how.code == 0
    assert reader.text().splitlines() == [repr(value) for value in env.values()]


@real
def test_the_workspace_is_writable_and_the_rest_is_not(start: StartContainer, workspace: Path, tmp_path: Path) -> None:
    (tmp_path / "input").mkdir()
    (tmp_path / "input" / "file").write_text("given")
    (tmp_path / "input").chmod(0o777)
    refused = "for file in /x /usr/x /inputs/data/x; do echo x > $file; done"
    command = f"pwd; cat /inputs/data/file; echo made > made; echo x > /tmp/x; {refused}"
    how, reader = run(start("sh", "-c", command, inputs={"data": tmp_path / "input"}))
    assert reader.text() == "/workspace\ngiven"
    assert reader.text("stderr").count("Read-only file system") == 3, reader.text("stderr")
    assert (workspace / "made").read_text() == "made\n"
    assert (workspace / "made").stat().st_uid == run_as()[0]
    assert how.code != 0


@real
def test_without_a_network_there_is_only_a_loopback(start: StartContainer) -> None:
    how, reader = run(
        start("sh", "-c", "cat /proc/net/dev | tail -n +3 | cut -d: -f1; cat /proc/net/route | tail -n +2")
    )
    assert how.code == 0
    assert reader.text().split() == ["lo"]


@real
def test_it_holds_no_file_but_its_three_streams(start: StartContainer) -> None:
    _, reader = run(start("python", "-c", "import os; print(sorted(os.listdir('/proc/self/fd'), key=int)[:-1])"))
    assert reader.text() == "['0', '1', '2']\n"


@real
def test_it_runs_as_nobody_without_any_privilege(start: StartContainer) -> None:
    _, reader = run(start("sh", "-c", "id -u; grep -E '^(CapEff|CapBnd|NoNewPrivs)' /proc/self/status"))
    user, *status = reader.text().splitlines()
    assert int(user) == run_as()[0] != 0
    assert {line.split()[0]: int(line.split()[1], 16) for line in status}["CapEff:"] == 0
    assert {line.split()[0]: int(line.split()[1], 16) for line in status}["NoNewPrivs:"] == 1
