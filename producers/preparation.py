"""From what a user writes to a spec to be sealed: all fields checked first, then workspace and inputs uploaded."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from heapq import nlargest
from pathlib import Path
from typing import Any, Final

from jobqueue.artifacts import Artifact
from jobqueue.errors import ArtifactRefused, InvalidSpec, Problem
from jobqueue.quantities import describe_size
from jobqueue.routing import is_request_queue
from jobqueue.spec import ExperimentSpec, parse_spec
from jobqueue.storage.base import Store
from producers.packaging import Checked, check_input, check_workspace, pack_workspace, upload_input
from producers.packaging.ignoring import IGNORE_FILE

_TO_UPLOAD: Final = Artifact(uri="store:to-upload")
_WORKSPACE: Final = "workspace"
_NAMED: Final = 3


class JobqueueWarning(UserWarning):
    """Something about a submission that works, and yet is probably not what was meant."""


@dataclass(frozen=True, kw_only=True)
class Draft:
    """A checked submission of which some parts still lie on this disk.

    Attributes:
        spec: without the parts below; what stands in their place is not to be used.
        workspace: the folder to pack.
        inputs: the files and folders to upload, by input name.
        place: which one of many it is, as in `[3]`; empty for one alone.
        notes: what the user should be told before anything is uploaded.
    """

    spec: ExperimentSpec
    workspace: Path | None = None
    inputs: Mapping[str, Path] = field(default_factory=dict)
    place: str = ""
    notes: tuple[str, ...] = ()

    @property
    def has_uploads(self) -> bool:
        """Tell whether something has to be uploaded."""
        return self.workspace is not None or bool(self.inputs)


@dataclass(frozen=True, kw_only=True)
class Packed:
    """What was looked at and uploaded before, by path, so that many specs with one workspace do it once."""

    checked: dict[tuple[str, Path], Checked] = field(default_factory=dict)
    workspaces: dict[Path, tuple[Artifact, tuple[str, ...]]] = field(default_factory=dict)
    inputs: dict[Path, tuple[Artifact, tuple[str, ...]]] = field(default_factory=dict)

    def check(self, path: Path, *, name: str) -> Checked:
        """Return what there is to know of what the field `name` leads to."""
        if (name, path) not in self.checked:
            found = check_workspace(path) if name == _WORKSPACE else check_input(path, field=name)
            self.checked[name, path] = found
        return self.checked[name, path]


def check_fields(
    fields: Mapping[str, Any], *, project: str, check_address: Callable[[str], object], packed: Packed
) -> Draft:
    """Return a draft of the experiment that `fields` describe; of this disk it is found out what can be packed.

    Args:
        fields: the arguments of `submit_experiment`.
        project: of the experiment that names none.
        check_address: raises `ArtifactRefused` for what is not the address of an artifact.
        packed: remembers what was looked at.

    Raises:
        InvalidSpec: with every wrong field.
    """
    given = {"project": project, **{name: value for name, value in fields.items() if value is not None}}
    problems = _check_queue(given.get("queue"))
    workspace = _check_workspace(given, problems, packed)
    inputs = _check_inputs(given, problems, packed)
    problems += _check_addresses(given.get("inputs", {}), check_address)
    _check_secrets(given, problems)
    try:
        spec = parse_spec(given)
    except InvalidSpec as error:
        told = {problem.path for problem in error.problems}
        further = [problem for problem in problems if problem.path not in told]
        raise InvalidSpec([*error.problems, *further]) from None
    local = {f"inputs.{name}": path for name, path in inputs.items()}
    if workspace is not None:
        local[_WORKSPACE] = workspace
    checked = {name: packed.check(path, name=name) for name, path in local.items()}
    problems += _check_disk(checked, disk=spec.disk)
    if problems:
        raise InvalidSpec(problems)
    notes = tuple(note for each in checked.values() for note in each.notes)
    return Draft(spec=spec, workspace=workspace, inputs=inputs, notes=notes)


def placed(error: InvalidSpec, place: str) -> InvalidSpec:
    """Return the error with the paths of its problems, as in `[3].memory`, below `place`."""
    problems = [replace(found, path=".".join(filter(None, (place, found.path)))) for found in error.problems]
    return InvalidSpec(problems)


def _check_disk(checked: Mapping[str, Checked], *, disk: int) -> list[Problem]:
    """Refuse what no node could unpack, before it is packed: what is at an address may come to it."""
    total = sum(each.size_bytes for each in checked.values())
    if total <= disk:
        return []
    heaviest = nlargest(_NAMED, checked.items(), key=lambda pair: pair[1].size_bytes)
    told = "; ".join(
        f"{name} has {describe_size(each.size_bytes)}" + (f", most of it in {each.largest}" if each.largest else "")
        for name, each in heaviest
    )
    way_out = f"list what is not needed in {IGNORE_FILE}, or ask for more with disk="
    return [Problem(path="disk", message=f"{describe_size(disk)} is less than its files: {told} ({way_out})")]


def _check_queue(queue: object) -> list[Problem]:
    if not isinstance(queue, str) or is_request_queue(queue):
        return []
    return [Problem(path="queue", message=f"{queue!r:.80} is not a request queue (leave out its ending)")]


def _check_workspace(given: dict[str, Any], problems: list[Problem], packed: Packed) -> Path | None:
    value = given.get(_WORKSPACE)
    if value is None or isinstance(value, Artifact):
        return None
    del given[_WORKSPACE]
    try:
        folder = _locate(value)
    except ValueError as error:
        problems.append(Problem(path=_WORKSPACE, message=f"{error} (use a folder, such as '.')"))
        return None
    problems += packed.check(folder, name=_WORKSPACE).problems
    return folder


def _locate(value: object) -> Path:
    """Return the absolute path that a user means.

    Raises:
        ValueError: it is none, or in the home of somebody whom this machine does not know.
    """
    text = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"not a path: {value!r:.80}")
    try:
        return Path(text).expanduser().absolute()
    except RuntimeError:
        raise ValueError(f"no such home folder: {value!r:.80}") from None


def _check_inputs(given: dict[str, Any], problems: list[Problem], packed: Packed) -> dict[str, Path]:
    """Leave addresses in `given["inputs"]` as artifacts, and return the paths by name."""
    inputs = given.get("inputs", {})
    if not isinstance(inputs, Mapping):
        del given["inputs"]
        message = f"not a mapping: {inputs!r:.80} (use names and paths, as in {{'data': 'data/'}})"
        problems.append(Problem(path="inputs", message=message))
        return {}
    artifacts, paths = {}, {}
    for name, value in inputs.items():
        artifacts[name] = _TO_UPLOAD
        if isinstance(value, Artifact):
            artifacts[name] = value
        elif isinstance(value, str) and ("://" in value or value.startswith("store:")):
            artifacts[name] = _read_address(value)
        else:
            try:
                paths[name] = _locate(value)
            except ValueError as error:
                message = f"{error} (use a path, or an address such as s3://bucket/key)"
                problems.append(Problem(path=f"inputs.{name}", message=message))
            else:
                problems += packed.check(paths[name], name=f"inputs.{name}").problems
    given["inputs"] = artifacts
    return paths


def _read_address(text: str) -> Artifact:
    """Return what lies at an address; behind it may stand `#sha256=` with the digest that it must have."""
    uri, mark, digest = text.rpartition("#sha256=")
    return Artifact(uri=uri, sha256=digest.lower() or "none") if mark else Artifact(uri=text)


def _check_addresses(inputs: Mapping[str, Artifact], check_address: Callable[[str], object]) -> list[Problem]:
    problems = []
    for name, artifact in inputs.items():
        if artifact is _TO_UPLOAD:
            continue
        try:
            check_address(artifact.uri)
        except ArtifactRefused as error:
            problems.append(Problem(path=f"inputs.{name}", message=str(error)))
    return problems


def _check_secrets(given: dict[str, Any], problems: list[Problem]) -> None:
    """Put values into the place of names."""
    names = given.pop("secrets", ())
    if isinstance(names, Mapping):
        given["secrets"] = names
        return
    if not isinstance(names, list | tuple | set | frozenset) or not all(isinstance(name, str) for name in names):
        problems.append(Problem(path="secrets", message="not a list of names (use a list, as in ['WANDB_API_KEY'])"))
        return
    given["secrets"] = {name: os.environ[name] for name in names if name in os.environ}
    for name in sorted(set(names) - set(given["secrets"])):
        message = "is not set in this environment (export it, or leave it out)"
        problems.append(Problem(path=f"secrets.{name}", message=message))


def upload(draft: Draft, *, store: Store, packed: Packed) -> tuple[ExperimentSpec, list[str]]:
    """Upload what lies on this disk, and return the whole spec, and what the user should be told.

    Raises:
        StoreUnavailable: the store does not answer.
        InvalidSpec: a file cannot be packed, or changed meanwhile.
    """
    parts: dict[str, Any] = {}
    warnings = _warn_of_image(draft.spec.image)
    if draft.workspace is not None:
        if draft.workspace not in packed.workspaces:
            artifact, left_out = pack_workspace(draft.workspace, store)
            packed.workspaces[draft.workspace] = artifact, tuple(left_out)
        parts[_WORKSPACE], told = packed.workspaces[draft.workspace]
        warnings += told
    if draft.inputs:
        for name, path in draft.inputs.items():
            if path not in packed.inputs:
                artifact, left_out = upload_input(path, store, field=f"inputs.{name}")
                packed.inputs[path] = artifact, tuple(left_out)
            warnings += packed.inputs[path][1]
        uploaded = {name: packed.inputs[path][0] for name, path in draft.inputs.items()}
        parts["inputs"] = {**draft.spec.inputs, **uploaded}
    return draft.spec.model_copy(update=parts), warnings


def _warn_of_image(image: str) -> list[str]:
    name, _, digest = image.partition("@")
    tag = name.rsplit("/", 1)[-1].partition(":")[2]
    if digest or tag not in ("", "latest"):
        return []
    return [f"image {image!r} is not pinned: it may be another one tomorrow (name a tag, or better a digest)"]
