"""What a user submits: the immutable description of one experiment, checked field by field.

`parse_spec` is the only door: it reads what people write (`"16GiB"`, `"1h30m"`, one shell-like command), refuses every
wrong field at once with its fix, and returns plain numbers. The limits here are what travels; a node may allow less.
"""

import difflib
import os
import re
import shlex
from collections.abc import Callable, Collection, Mapping
from datetime import timedelta
from pathlib import PurePosixPath
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from jobqueue.artifacts import Artifact, path_fault
from jobqueue.errors import InvalidSpec, Problem
from jobqueue.priority import FAST, LONGEST, judge_priority
from jobqueue.quantities import MAX_BYTES, is_number, parse_duration, parse_size
from jobqueue.resources import Resources

WORKSPACE: Final = PurePosixPath("/workspace")
DEFAULT_OUTPUTS: Final = "outputs/"
MAX_PROJECT: Final = 64
MAX_EXPIRES: Final = timedelta(days=30)
MAX_COMMAND_BYTES: Final = 64 * 1024
MAX_ENV_BYTES: Final = 64 * 1024

ALIASES: Final = {
    "ram": "memory",
    "hdd": "disk",
    "gpuMem": "gpu_memory",
    "gpuCount": "gpus",
    "max_duration": "timeout",
}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_RESERVED_VARIABLES = ("JOBQUEUE_", "NVIDIA_", "CUDA_VISIBLE_DEVICES", "LD_", "DOCKER_")
_IMAGE = re.compile(r"[a-z0-9][\w.:/-]{0,399}(?:@sha256:[0-9a-f]{64})?", re.ASCII)
_CONTROL = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")  # lone surrogates too: they are no text to write down
_NOT_TEXT = re.compile(r"[\x00\ud800-\udfff]")
_FAULTS = {
    "missing image": "missing (name one, such as 'python:3.12-slim')",
    "missing command": "missing (say what to run, as in ['python', 'train.py'])",
    "too_long": "more than %(max_length)s of them (leave some out, or put them into a file of the workspace)",
    "dict_type": "not a mapping (use names and values, as in {'SEED': '1'})",
    "tuple_type": "not a list (use one, as in ['model.pt', 'metrics/'])",
}
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MAX_NAME, _MAX_TITLE = 70, 128


def is_name(text: str, *, limit: int = _MAX_NAME) -> bool:
    """Tell whether `text` may be the name of a queue or project: letters, digits, `-` and `_`, at most `limit`."""
    return len(text) <= limit and _NAME.fullmatch(text) is not None


def _command(value: object) -> tuple[str, ...]:
    if isinstance(value, str):
        words = _split(value) if len(value) <= MAX_COMMAND_BYTES else (value,)  # shlex takes the square of the length
    elif not isinstance(value, list | tuple):
        raise ValueError(f"not a command: {value!r:.80} (use a list of words, or one text)")  # noqa: TRY004 - pydantic's rule
    else:
        words = tuple(_word(word) for word in value)
    if not words or not words[0]:
        raise ValueError("empty (say what to run, as in ['python', 'train.py'])")
    if any(_NOT_TEXT.search(word) for word in words):
        raise ValueError("has a NUL or half a character (take it out)")
    if sum(len(word.encode()) for word in words) > MAX_COMMAND_BYTES:
        raise ValueError(f"longer than {MAX_COMMAND_BYTES} bytes (put it into a file of the workspace)")
    return words


def _word(value: object) -> str:
    """Return a word of a command; numbers and paths are written out, as a shell's variables would be."""
    if not isinstance(value, str | os.PathLike) and not is_number(value):
        raise ValueError(f"not a word: {value!r:.80} (use a list of texts, as in ['python', 'train.py'])")
    return str(value)


def _split(text: str) -> tuple[str, ...]:
    try:
        return tuple(shlex.split(text))
    except ValueError as error:
        fault = str(error)
        raise ValueError(f"{fault[:1].lower()}{fault[1:]} in {text!r:.80} (mend it, or use a list of words)") from None


def _image(value: object) -> str:
    if not isinstance(value, str) or not _IMAGE.fullmatch(value):
        raise ValueError(f"not an image: {value!r:.80} (use a name such as 'python:3.12-slim')")
    return value


def _path(value: object) -> str:
    """Return a path relative to the workspace; a trailing slash (a folder) is kept."""
    text = str(value) if isinstance(value, os.PathLike) else value
    if not isinstance(text, str) or not text.strip() or _CONTROL.search(text):
        raise ValueError(f"not a path: {text!r:.80} (use one inside the workspace, such as 'model.pt')")
    path = PurePosixPath(text)
    if path.is_relative_to(WORKSPACE):
        path = path.relative_to(WORKSPACE)
    if path.is_absolute() or ".." in path.parts or (text.startswith("~") and path.parts[0] != text):
        raise ValueError(f"outside the workspace: {text!r:.80} (use a path inside {WORKSPACE})")
    if path.parts and (fault := path_fault(str(path))):
        raise ValueError(f"{text!r:.80} {fault} (use a shorter one)")
    return f"{path}/" if text.endswith("/") and path.parts else str(path)


def _named(limit: int) -> Callable[[object], str]:
    def check(value: object) -> str:
        if not isinstance(value, str) or not is_name(value, limit=limit):
            raise ValueError(f"not a name: {value!r:.80} (use letters, digits, - and _, at most {limit})")
        return value

    return check


def _title(value: object) -> str:
    if not isinstance(value, str) or not value.strip() or len(value) > _MAX_TITLE or _CONTROL.search(value):
        raise ValueError(f"not a name: {value!r:.80} (use at most {_MAX_TITLE} printable characters)")
    return value


def _input_name(value: object) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", value):
        raise ValueError(f"not an input name: {value!r:.80} (use letters, digits, . - and _, at most 64)")
    return value


def _variable(value: object) -> str:
    if not isinstance(value, str) or not _VARIABLE.fullmatch(value):
        raise ValueError(f"not a variable name: {value!r:.80} (use letters, digits and _)")
    if value.startswith(_RESERVED_VARIABLES):
        raise ValueError(f"{value} is set by the node (take it out)")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str) and not is_number(value):
        raise ValueError(f"not a text: {type(value).__name__} (write it as a text)")
    if _NOT_TEXT.search(str(value)):
        raise ValueError("has a NUL or half a character (take it out)")
    return str(value)


def _artifact(value: object) -> Artifact:
    if not isinstance(value, Artifact):
        raise ValueError(f"not an artifact: {type(value).__name__} (pack it first)")  # noqa: TRY004 - pydantic's rule
    if not value.uri or _CONTROL.search(value.uri):
        raise ValueError("has no address (use one such as 's3://bucket/key')")
    if value.sha256 and not _SHA256.fullmatch(value.sha256):
        raise ValueError("has a malformed sha256 (use 64 lower-case hex digits, or none)")
    if not (0 <= value.size_bytes <= MAX_BYTES and 0 <= value.unpacked_bytes <= MAX_BYTES):
        raise ValueError("has a size that cannot be (use 0 when it is not known)")
    return value


def _positive(parse: Callable[[object], Any]) -> Callable[[object], Any]:
    def check(value: object) -> Any:
        if not (parsed := parse(value)):
            raise ValueError("must be more than 0")
        return parsed

    return check


def _number(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError(f"not a number: {value} (write how many)")  # noqa: TRY004 - pydantic's rule
    return value


_Artifact = Annotated[Artifact, BeforeValidator(_artifact)]
_Command = Annotated[tuple[str, ...], BeforeValidator(_command)]
_Image = Annotated[str, BeforeValidator(_image)]
_Path = Annotated[str, BeforeValidator(_path)]
_Size = Annotated[int, BeforeValidator(parse_size)]
_PositiveSize = Annotated[int, BeforeValidator(_positive(parse_size))]
_Duration = Annotated[timedelta, BeforeValidator(_positive(parse_duration))]
_Title = Annotated[str, BeforeValidator(_title)]
_InputName = Annotated[str, BeforeValidator(_input_name)]
_Variable = Annotated[str, BeforeValidator(_variable)]
_Text = Annotated[str, BeforeValidator(_text)]
_Project = Annotated[str, BeforeValidator(_named(MAX_PROJECT))]
_Queue = Annotated[str, BeforeValidator(_named(_MAX_NAME))]


class ExperimentSpec(BaseModel):
    """One experiment, immutable: sizes in bytes, durations as timedeltas; `submit_experiment` explains each field."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    image: _Image
    command: _Command
    workspace: _Artifact | None = None
    inputs: dict[_InputName, _Artifact] = Field(default_factory=dict, max_length=64)
    outputs: tuple[_Path, ...] = Field(default=(DEFAULT_OUTPUTS,), max_length=256)
    env: dict[_Variable, _Text] = Field(default_factory=dict, max_length=512)
    secrets: dict[_Variable, _Text] = Field(default_factory=dict, max_length=64, repr=False)
    gpus: Annotated[int, BeforeValidator(_number)] = Field(default=0, ge=0, le=1024)
    gpu_memory: _Size = 0
    cpus: Annotated[float, BeforeValidator(_number)] = Field(default=1.0, gt=0, le=4096, allow_inf_nan=False)
    memory: _PositiveSize = 2 * 2**30
    disk: _PositiveSize = 10 * 2**30
    shm_size: _PositiveSize = 64 * 2**20
    timeout: _Duration = timedelta(hours=24)
    stall_timeout: _Duration | None = None
    expires: _Duration = timedelta(days=7)
    retries: Annotated[int, BeforeValidator(_number)] = Field(default=0, ge=0, le=100)
    network: Literal["none", "egress", "bridge"] = "none"
    project: _Project = "default"
    queue: _Queue | None = None
    priority: Literal["normal", "fast"] = "normal"
    name: _Title | None = None
    labels: dict[_Title, _Text] = Field(default_factory=dict, max_length=64)
    idempotency_key: _Title | None = None

    @property
    def resources(self) -> Resources:
        """What scheduling needs to know; it travels in the clear header."""
        return Resources(
            cpus=self.cpus,
            memory_bytes=self.memory,
            disk_bytes=self.disk,
            shm_bytes=self.shm_size,
            gpus=self.gpus,
            gpu_memory_bytes=self.gpu_memory,
        )


def parse_spec(fields: Mapping[str, Any]) -> ExperimentSpec:
    """Return the spec that `fields` describe.

    Args:
        fields: as the arguments of `submit_experiment`, StudioML's names accepted; `workspace` and `inputs` are
            `Artifact`s here.

    Raises:
        InvalidSpec: with every wrong field, by path, and what to write instead.
    """
    given = {ALIASES.get(name, name): value for name, value in fields.items()}
    twice = [
        Problem(path=alias, message=f"the same as {name}, which is given as well (keep one of them)")
        for alias, name in ALIASES.items()
        if {alias, name} <= fields.keys()
    ]
    if given.get("priority") == FAST:
        given.setdefault("timeout", LONGEST)
    try:
        spec = ExperimentSpec.model_validate(given)
    except ValidationError as error:
        details = error.errors(include_url=False)
        wrong = {str(detail["loc"][0]) for detail in details}
        sound = {name: value for name, value in given.items() if str(name) not in wrong}
        rest = ExperimentSpec.model_validate({"image": "any", "command": "any", **sound})
        raise InvalidSpec([*map(_problem, details), *twice, *_cross_check(rest, wrong=wrong)]) from None
    if problems := [*twice, *_cross_check(spec)]:
        raise InvalidSpec(problems)
    return spec


def _cross_check(spec: ExperimentSpec, *, wrong: Collection[str] = ()) -> list[Problem]:
    """Return what is wrong between fields that are each right by themselves; `wrong` ones are not judged by."""
    problems = []
    if spec.gpu_memory and not spec.gpus and "gpus" not in wrong:
        problems.append(Problem(path="gpu_memory", message="asked for without a GPU (add gpus=1)"))
    if spec.shm_size > spec.memory and not {"shm_size", "memory"} & set(wrong):
        problems.append(Problem(path="shm_size", message="larger than memory (ask for less, or more memory)"))
    if spec.expires > MAX_EXPIRES:
        problems.append(Problem(path="expires", message=f"longer than {MAX_EXPIRES.days}d (submit it again then)"))
    problems += [
        Problem(path=f"env.{name}", message="also given as a secret (keep one of them)")
        for name in sorted(spec.env.keys() & spec.secrets.keys())
    ]
    if sum(len(name) + len(value.encode()) for name, value in spec.env.items()) > MAX_ENV_BYTES:
        problems.append(Problem(path="env", message=f"more than {MAX_ENV_BYTES} bytes (use a file of the workspace)"))
    return [*problems, *judge_priority(spec)]


def _problem(detail: Any) -> Problem:
    path = ".".join(str(part) for part in detail["loc"] if part != "[key]")
    kind, message, context = detail["type"], detail["msg"], detail.get("ctx", {})
    if kind == "extra_forbidden":
        message = f"unknown field{_did_you_mean(path)}"
    elif kind == "value_error":
        message = str(context["error"])
    elif told := _FAULTS.get(kind) or _FAULTS.get(f"{kind} {path}"):
        message = told % context
    else:
        hides = path == "workspace" or path.startswith(("inputs", "secrets"))
        message = f"{message[:1].lower()}{message[1:]}" + ("" if hides else f", got {detail['input']!r:.80}")
    return Problem(path=path, message=message)


def _did_you_mean(name: str) -> str:
    close = difflib.get_close_matches(name, [*ExperimentSpec.model_fields, *ALIASES], n=1)
    return f" (did you mean {close[0]!r}?)" if close else f" (known: {', '.join(sorted(ExperimentSpec.model_fields))})"
