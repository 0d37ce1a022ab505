"""The documentation: what it shows runs, what it names exists, where it points there is something.

A page's blocks run in order, in a folder of its own, against a site that `jobqueue dev` has started.

    ```python                 runs, all of a page in one interpreter; with a title it is written to that file
    ```text                   after Python: what that printed, `…` standing for anything
    ```console [like]         `$ command`, then its output; `like`: with other numbers, ids, folders
    ```bash                   does not run here; its syntax and the names in it are checked
    ```toml spec|settings     is written to spec.toml, or is what `jobqueue.toml` may hold
"""

import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import click
import pytest
from celery.bin.celery import celery
from services.waiting import wait_until

from jobqueue.config import PREFIX, Settings
from jobqueue.lifecycle import Reason
from jobqueue.spec import DEFAULT_OUTPUTS, ExperimentSpec
from producers.cli import jobqueue
from workers.attempt.health import Trouble
from workers.attempt.planning import THREAD_VARIABLES

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "SECURITY.md",
    *sorted(page for page in (ROOT / "docs").glob("*.md") if page.name != "benchmarks.md"),
]
_START = timedelta(seconds=120)
_SECONDS_PER_STEP = 180
_FENCE = re.compile(r"^```(?P<kind>\w+)(?P<rest>[^\n]*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
_ASSIGNMENT = re.compile(r"[A-Z_]+=")
_REASON = re.compile(r"`([A-Z]{4,}(?:_[A-Z]+)+)`")
_PATH = re.compile(r"(?<![\w/.-])(?:jobqueue|workers|producers|proto|tests|docs|charts|examples|requirements)/[\w/.-]+")
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_WORKER_VARIABLES = re.compile(r'"(JOBQUEUE_[A-Z_]+)"')
# Keeps one interpreter for all Python of a page: a block comes in as one line of JSON, what it printed goes out so.
_INTERPRETER = """
import contextlib, io, json, sys, traceback
space = {"__name__": "page"}
for line in sys.stdin:
    printed, failed = io.StringIO(), ""
    with contextlib.redirect_stdout(printed):
        try:
            exec(compile(json.loads(line), "<page>", "exec"), space)
        except BaseException:
            failed = traceback.format_exc()
    print(json.dumps([printed.getvalue(), failed]), flush=True)
"""


@dataclass(frozen=True, kw_only=True)
class Block:
    """One fenced block of a page."""

    page: Path
    line: int
    kind: str
    rest: str
    text: str

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks_of(page: Path) -> list[Block]:
    text = page.read_text()
    return [
        Block(
            page=page,
            line=text.count("\n", 0, match.start()) + 1,
            kind=match["kind"],
            rest=match["rest"].strip(),
            text=match["text"],
        )
        for match in _FENCE.finditer(text)
    ]


ALL_BLOCKS = [block for page in PAGES for block in blocks_of(page)]
_RUNNING_PAGES = sorted({block.page for block in ALL_BLOCKS if block.kind in ("python", "console")})
_SHELL_BLOCKS = [block for block in ALL_BLOCKS if block.kind in ("bash", "console")]


def _programs(folder: Path) -> Path:
    """Make what an installation puts on the PATH, and a `make demo` that uses this interpreter."""
    folder.mkdir()
    this_python = f'sed "s|.venv/bin/python|{sys.executable}|"'
    print_demo = f'MAKEFLAGS= {shutil.which("make")} --no-print-directory -n "$@"'
    lines = {
        "jobqueue": f'exec {sys.executable} -c "from producers.cli import main; main()" "$@"',
        "celery": f'exec {sys.executable} -m celery "$@"',
        "python": f'exec {sys.executable} "$@"',
        "make": f'cd {ROOT} && eval "$({print_demo} | tail -n 1 | {this_python})"',
    }
    for name, line in lines.items():
        (folder / name).write_text(f"#!/bin/sh\n{line}\n")
        (folder / name).chmod(0o755)
    return folder


@pytest.fixture
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, str]]:
    """The variables of a shell beside a running `jobqueue dev`."""
    folder = tmp_path_factory.mktemp("docs")
    short = Path(f"/tmp/jq-{os.getpid()}-{os.urandom(3).hex()}")  # a socket's path is short
    short.symlink_to(folder)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    variables = {
        **kept,
        "PATH": f"{_programs(folder / 'bin')}:{kept['PATH']}",
        "PYTHONPATH": str(ROOT),
        "PYTHONWARNINGS": "ignore",
        "NO_COLOR": "1",
        "TMPDIR": str(short),
        "DOCKER_HOST": "unix:///nonexistent/docker.sock",
        "JOBQUEUE_STATE_DIR": str(short / "state"),
        "JOBQUEUE_CACHE_DIR": str(short / "cache"),
        "JOBQUEUE_RUNTIME": "process",
        "JOBQUEUE_GRACE": "2s",
        "JOBQUEUE_LEASE": "6s",
    }
    log = folder / "dev.log"
    with log.open("w") as output:
        words = [str(folder / "bin" / "jobqueue"), "dev", "--no-flower"]
        dev = subprocess.Popen(words, env=variables, stdout=output, stderr=output)
    try:
        wait_until(lambda: "worker.ready" in log.read_text() or dev.poll() is not None, what="a site", within=_START)
        assert dev.poll() is None, log.read_text()
        yield variables
    finally:
        dev.terminate()
        dev.wait(60)
        short.unlink()


@pytest.mark.parametrize("page", _RUNNING_PAGES, ids=lambda page: page.name)
def test_what_a_page_shows_happens(page: Path, environment: Mapping[str, str], tmp_path: Path) -> None:
    blocks = blocks_of(page)
    for block in ALL_BLOCKS:  # every page may use the program that one of them shows
        if title := _title(block):
            (tmp_path / title).write_text(block.text)
    words = [sys.executable, "-c", _INTERPRETER]
    with subprocess.Popen(
        words, cwd=tmp_path, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as interpreter:
        try:
            for block, following in zip(blocks, [*blocks[1:], None], strict=True):
                _follow(block, following, folder=tmp_path, environment=environment, interpreter=interpreter)
        finally:
            assert interpreter.stdin is not None
            interpreter.stdin.close()


def _follow(
    block: Block,
    following: Block | None,
    *,
    folder: Path,
    environment: Mapping[str, str],
    interpreter: subprocess.Popen[str],
) -> None:
    if block.kind == "python" and not _title(block):
        printed = _run_python(block, interpreter)
        if following is not None and following.kind == "text":
            _compare(following.text, printed, place=following.place)
    elif block.kind == "console":
        for command, expected in _commands(block):
            done = subprocess.run(
                ["bash", "-c", command],
                cwd=folder,
                env=dict(environment),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=False,
                timeout=_SECONDS_PER_STEP,
            )
            assert done.returncode == 0, f"{block.place}: {command}\n{done.stdout}"
            if expected:
                place = f"{block.place}: {command}"
                _compare(expected, done.stdout, place=place, is_like=block.rest == "like")


def _run_python(block: Block, interpreter: subprocess.Popen[str]) -> str:
    assert interpreter.stdin is not None
    assert interpreter.stdout is not None
    interpreter.stdin.write(json.dumps(block.text) + "\n")
    interpreter.stdin.flush()
    printed, failed = json.loads(interpreter.stdout.readline())
    assert not failed, f"{block.place}:\n{failed}"
    return str(printed)


def _title(block: Block) -> str:
    if block.kind == "toml" and block.rest == "spec":
        return "spec.toml"
    found = re.fullmatch(r'title="([\w.-]+)"', block.rest)
    return found[1] if found else ""


def _commands(block: Block) -> list[tuple[str, str]]:
    """Return each command with the output that is shown below it."""
    assert block.text.startswith("$ "), f"{block.place}: a console block begins with `$ `"
    found: list[tuple[str, str]] = []
    for line in block.text.splitlines():
        if line.startswith("$ "):
            found.append((line[2:], ""))
        elif found[-1][0].endswith("\\"):
            found[-1] = (f"{found[-1][0][:-1]} {line.strip()}", "")
        else:
            found[-1] = (found[-1][0], f"{found[-1][1]}{line}\n")
    return found


def _compare(expected: str, printed: str, *, place: str, is_like: bool = False) -> None:
    """Compare line by line; `…` stands for the rest of a word or line, alone for any number of lines."""
    shown = expected
    if is_like:
        expected, printed = _without_chance(expected), _without_chance(printed)
    lines = [r"(?:.*\n)*?" if line == "…" else _pattern(line) for line in expected.rstrip("\n").splitlines()]
    text = "".join(f"{line.rstrip()}\n" for line in printed.splitlines())
    assert re.fullmatch("".join(lines), text), f"{place}\n--- shown\n{shown}--- printed\n{printed}"


def _without_chance(text: str) -> str:
    """Put one word in the place of each id, folder and number that is another one every time."""
    text = re.sub(r"exp-[0-9a-z]{26}", "exp-ID", text)
    text = re.sub(r"/tmp/[\w./-]+?/state/", "/tmp/state/", text)
    text = re.sub(r"\S*bin/jobqueue", "bin/jobqueue", text)
    return re.sub(r"(?<![\w.])\d[\d.,]*(?=[ \n])", "N", text)


def _pattern(line: str) -> str:
    # Columns are as wide as what stands in them.
    words = [re.escape(word).replace("…", r"\S(?:.*\S)?") for word in line.split()]
    return r"\s*" + r"[ ]+".join(words) + r"[ ]*\n"


@pytest.mark.parametrize("block", ALL_BLOCKS, ids=lambda block: block.place)
def test_a_block_is_of_a_kind_that_is_tested(block: Block) -> None:
    assert block.kind in ("python", "text", "console", "bash", "toml", "mermaid"), block.place
    if block.kind == "bash":
        subprocess.run(["bash", "-n", "-c", block.text], check=True)
    if block.kind == "toml":
        known = Settings.model_fields if block.rest == "settings" else ExperimentSpec.model_fields
        assert set(tomllib.loads(block.text)) <= set(known), block.place


@pytest.mark.parametrize("block", _SHELL_BLOCKS, ids=lambda block: block.place)
def test_commands_and_their_options_exist(block: Block) -> None:
    for words in _shell_commands(block):
        match words:
            case ["jobqueue", *rest] | ["docker", "compose", "exec", "node", "jobqueue", *rest]:
                _check_jobqueue(rest, place=block.place)
            case ["docker", "compose", "exec", "-T", "node", "jobqueue", *rest]:
                _check_jobqueue(rest, place=block.place)
            case ["celery", *rest]:
                assert rest[:2] == ["-A", "jobqueue"], block.place
                assert rest[2] in celery.commands, f"{block.place}: there is no `celery {rest[2]}`"
            case ["make", target]:
                assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), block.place
            case ["pip", "install", *packages]:
                _check_extras(packages, place=block.place)


def _shell_commands(block: Block) -> Iterator[list[str]]:
    """Yield the words of each simple command."""
    lines = [command for command, _ in _commands(block)] if block.kind == "console" else [block.text]
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        words = shlex.shlex(line, posix=True, punctuation_chars=True)
        words.whitespace_split = True
        for is_between, group in itertools.groupby(words, key=lambda word: not word.strip("();<>|&")):
            found = list(itertools.dropwhile(lambda word: word in ("do", "export") or _ASSIGNMENT.match(word), group))
            if found and not is_between:
                yield found


def _check_jobqueue(words: Sequence[str], *, place: str) -> None:
    ours = list(itertools.takewhile(lambda word: word != "--", words))
    command: click.Command = jobqueue
    for index, word in enumerate(ours):
        if isinstance(command, click.Group) and not word.startswith("-"):
            found = command.get_command(click.Context(command), word)
            assert found is not None, f"{place}: there is no `jobqueue {' '.join(words[: index + 1])}`"
            command = found
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    options = [word.partition("=")[0] for word in ours if word.startswith("-") and word != "-"]
    wrong = [option for option in options if option not in {*known, "--help"}]
    assert not wrong, f"{place}: `jobqueue {' '.join(ours)}` has no {', '.join(wrong)}"


def _check_extras(packages: Sequence[str], *, place: str) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for found in re.findall(r"\[([\w,]+)\]", " ".join(packages)):
        assert set(found.split(",")) <= set(extras), place


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = _FENCE.sub("", page.read_text())
    for target in _LINK.findall(text):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), f"{page.name}: {target}"
        if anchor:
            assert anchor in _anchors(there), f"{page.name}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_a_page_names_exist(page: Path) -> None:
    missing = [path for path in _PATH.findall(page.read_text()) if not (ROOT / path.rstrip(".")).exists()]
    assert not missing


def _anchors(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", _FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


def test_the_table_of_settings_is_the_settings() -> None:
    rows = _table(ROOT / "docs" / "nodes.md", "JOBQUEUE_")
    assert list(rows) == [f"{PREFIX}{name.upper()}" for name in Settings.model_fields]
    for name, field in Settings.model_fields.items():
        if field.default_factory is None and field.default not in ("", (), None):
            shown = rows[f"{PREFIX}{name.upper()}"][0].strip("`")
            given = Settings.model_validate({name: shown}) if name != "state_dir" else None
            assert given is None or getattr(given, name) == field.default, f"{name}: {shown}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_variables_that_a_page_names_exist(page: Path) -> None:
    settings = {f"{PREFIX}{name.upper()}" for name in Settings.model_fields}
    ours = {*settings, *(f"{name}_FILE" for name in settings), "JOBQUEUE_PROGRESS", *_container_variables()}
    named = set(re.findall(r"\bJOBQUEUE_[A-Z_]*[A-Z]\b", page.read_text()))
    assert named <= ours, named - ours


def test_every_variable_of_a_container_is_explained() -> None:
    page = (ROOT / "docs" / "researchers.md").read_text()
    assert all(f"`{name}`" in page for name in _container_variables())


def _container_variables() -> set[str]:
    return set(_WORKER_VARIABLES.findall((ROOT / "workers/attempt/planning.py").read_text()))


def test_the_table_of_arguments_is_the_spec() -> None:
    rows = _table(ROOT / "docs" / "researchers.md", "", heading="| argument |")
    assert set(rows) == set(ExperimentSpec.model_fields)
    words = {name: cells[0].strip("`") for name, cells in rows.items()}
    shown = {name: word for name, word in words.items() if word not in ("", "none", "{}", "by project", "outputs/")}
    fields = {name: float(word) if name in ("gpus", "cpus", "retries") else word for name, word in shown.items()}
    assert words["outputs"] == DEFAULT_OUTPUTS
    described = ExperimentSpec.model_validate({"image": "i", "command": "c", **fields})
    assert described == ExperimentSpec(image="i", command="c")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_reasons_that_a_page_names_exist(page: Path) -> None:
    named = {name for name in _REASON.findall(page.read_text()) if not name.startswith(PREFIX)}
    others = {
        *(name.upper() for name in Settings.model_fields),
        "DOCKER_HOST",
        "DOCKER_TLS_VERIFY",
        "CUDA_VISIBLE_DEVICES",
        "NVIDIA_VISIBLE_DEVICES",
        *THREAD_VARIABLES,
    }
    assert named <= {*Reason.__members__, *Trouble.__members__, *others}


def _table(page: Path, prefix: str, *, heading: str = "") -> dict[str, list[str]]:
    """Return the rows of the first table with that heading, or whose first cell begins so: name, further cells."""
    text = page.read_text()
    text = text[text.index(heading) :].partition("\n\n")[0] if heading else text
    rows = [line.strip("|").split("|") for line in text.splitlines() if line.startswith(f"| `{prefix}")]
    return {row[0].strip().strip("`"): [cell.strip() for cell in row[1:]] for row in rows}


def test_every_page_is_reached_from_the_readme() -> None:
    linked = {target.partition("#")[0] for target in _LINK.findall((ROOT / "README.md").read_text())}
    assert {str(page.relative_to(ROOT)) for page in PAGES[1:]} <= linked
