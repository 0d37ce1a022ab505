"""What of a folder does not travel: what the ignore files say, what is never wanted, and what looks like a secret."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Final

from jobqueue.errors import InvalidSpec, Problem

if TYPE_CHECKING:
    from pathspec import GitIgnoreSpec

IGNORE_FILE: Final = ".jobqueueignore"
_IGNORE_FILES: Final = (IGNORE_FILE, ".gitignore")
_NEVER: Final = frozenset({".git", "__pycache__", ".venv", "node_modules", ".ipynb_checkpoints"})
_SECRETS: Final = (
    ".env", ".env.*", "*.pem", "*.p12", "*.pfx", "id_rsa", "id_dsa", "id_ecdsa", "id_ed25519", ".git-credentials",
    ".netrc", ".pypirc", ".ssh", ".aws", ".gnupg",
)  # fmt: skip
_NO_SECRETS: Final = (".env.example", ".env.sample", ".env.template")


def is_never_wanted(name: str) -> bool:
    """Tell whether a file or folder of that name is made by tools and never part of the work."""
    return name in _NEVER


def looks_secret(name: str) -> bool:
    """Tell whether a file or folder of that name is likely to hold a secret."""
    name = name.lower()
    return name not in _NO_SECRETS and any(fnmatchcase(name, pattern) for pattern in _SECRETS)


@dataclass(frozen=True, kw_only=True)
class Patterns:
    """The patterns of one ignore file.

    Attributes:
        folder: where it lies, relative to the workspace, with a trailing slash; empty for the workspace itself.
        is_ours: it is `.jobqueueignore`, whose word counts for secrets too.
    """

    folder: str
    is_ours: bool
    spec: "GitIgnoreSpec" = field(repr=False)

    def decide(self, path: str) -> bool | None:
        """Tell whether they leave `path` out (True), keep it (`!pattern`: False), or say nothing (None)."""
        return self.spec.check_file(path.removeprefix(self.folder)).include


def read_patterns(folder: Path, *, relative: str) -> tuple[Patterns, ...]:
    """Return the patterns of the ignore files that lie in `folder`, the stronger ones first.

    Raises:
        InvalidSpec: one of them cannot be read or understood.
    """
    found = []
    for name in _IGNORE_FILES:
        try:
            text = (folder / name).read_text(encoding="utf-8", errors="surrogateescape")
            found.append(Patterns(folder=relative, is_ours=name == IGNORE_FILE, spec=_parse(text)))
        except (FileNotFoundError, IsADirectoryError):
            continue
        except (OSError, ValueError) as error:
            message = f"{relative}{name} cannot be used: {error}"
            raise InvalidSpec([Problem(path="workspace", message=message)]) from None
    return tuple(found)


def is_ignored(path: str, patterns: Sequence[Patterns]) -> bool:
    """Tell whether the ignore files leave a path out; a folder's ends with a slash; the strongest come first."""
    decisions = (each.decide(path) for each in patterns)
    return next((decision for decision in decisions if decision is not None), False)


def is_asked_for(path: str, patterns: Sequence[Patterns]) -> bool:
    """Tell whether our own ignore file explicitly keeps a path (`!name`), secret or not."""
    decisions = (each.decide(path) for each in patterns if each.is_ours)
    return next((not decision for decision in decisions if decision is not None), False)


def _parse(text: str) -> "GitIgnoreSpec":
    from pathspec import GitIgnoreSpec

    return GitIgnoreSpec.from_lines(text.splitlines())
