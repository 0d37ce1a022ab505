"""What of a folder does not travel: what the ignore files say, what is never wanted, and what looks like a secret."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import translate
from pathlib import Path
from typing import TYPE_CHECKING, Final

from jobqueue.errors import InvalidSpec, Problem

if TYPE_CHECKING:
    from pathspec import GitIgnoreSpec

IGNORE_FILE: Final = ".jobqueueignore"
_GIT_IGNORE_FILE: Final = ".gitignore"
_IGNORE_FILES: Final = (IGNORE_FILE, _GIT_IGNORE_FILE)
_NEVER: Final = frozenset({".git", "__pycache__", ".venv", "node_modules", ".ipynb_checkpoints"})
_SECRETS: Final = re.compile("|".join(map(translate, (
    ".env", ".env.*", "*.pem", "*.p12", "*.pfx", "id_rsa", "id_dsa", "id_ecdsa", "id_ed25519", ".git-credentials",
    "id_*_sk", ".netrc", "_netrc", ".pypirc", ".npmrc", ".pgpass", ".htpasswd", ".vault-token", ".s3cfg", ".boto",
    "*.ppk", "*.jks", "*.keystore", "*.kdbx", "*.kubeconfig", "kubeconfig", "application_default_credentials.json",
    ".ssh", ".aws", ".azure", ".gnupg", ".kube", ".dockercfg", "gcloud",
))))  # fmt: skip
# A private key as text, one of ours, what an engine keeps of registries, a repository's address with a password; then
# the key of a service account.
_KEYS: Final = (
    re.compile(
        # Blanks, not line ends, at the beginning: else a file of nothing but line ends takes minutes.
        rb"^[ \t]*(?:-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----|jobqueue-[a-z0-9-]+-private |"
        rb"client-key-data: |(?:\{[ \t]*)?\"auths\"\s*:\s*\{|url[ \t]*=[ \t]*https?://(?!git@)[^/\s@]+@)",
        re.MULTILINE,
    ),
    re.compile(rb"\"private_key\"\s*:\s*\"-----BEGIN "),
)
# Larger files are no keys.
MAX_KEY_BYTES: Final = 1 << 16
_NO_SECRETS: Final = (".env.example", ".env.sample", ".env.template")


def is_never_wanted(name: str) -> bool:
    """Tell whether a file or folder of that name is made by tools and never part of the work."""
    return name in _NEVER


def holds_key(path: Path) -> bool:
    """Tell whether a small file has a private key or a password in it, in one of the usual forms.

    Raises:
        OSError: it cannot be read.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        content = os.read(descriptor, MAX_KEY_BYTES)
        return any(key.search(content) for key in _KEYS)
    finally:
        os.close(descriptor)


def looks_secret(name: str) -> bool:
    """Tell whether a file or folder of that name is likely to hold a secret."""
    name = name.lower()
    return name not in _NO_SECRETS and _SECRETS.match(name) is not None


@dataclass(frozen=True, kw_only=True)
class Patterns:
    """The patterns of one ignore file.

    Attributes:
        folder: where it lies, relative to the workspace, with a trailing slash; empty for the workspace itself.
        below: for one that lies above the workspace: the workspace relative to it, with a trailing slash.
        is_ours: it is `.jobqueueignore`, whose word counts for secrets too.
    """

    folder: str
    is_ours: bool
    spec: "GitIgnoreSpec" = field(repr=False)
    below: str = ""

    def decide(self, path: str) -> bool | None:
        """Tell whether they leave `path` out (True), keep it (`!pattern`: False), or say nothing (None)."""
        return self.spec.check_file(self.below + path.removeprefix(self.folder)).include


def read_patterns(folder: Path, *, relative: str) -> tuple[Patterns, ...]:
    """Return the patterns of the ignore files that lie in `folder`, the stronger ones first.

    Raises:
        InvalidSpec: one of them cannot be read or understood.
    """
    found = []
    for name in _IGNORE_FILES:
        spec = _read(folder / name, shown=relative + name)
        if spec is not None:
            found.append(Patterns(folder=relative, is_ours=name == IGNORE_FILE, spec=spec))
    return tuple(found)


def read_patterns_above(root: Path) -> tuple[Patterns, ...]:
    """Return what the git repository around the workspace `root` says of it, the stronger files first.

    A file that leaves out the workspace as a whole does not count: its owner has asked for that folder.
    """
    around = [root, *root.parents]
    top = next((index for index, folder in enumerate(around) if os.access(folder / ".git", os.F_OK)), 0)
    found = []
    for folder in around[1 : top + 1]:
        spec = _read(folder / _GIT_IGNORE_FILE, shown=str(folder / _GIT_IGNORE_FILE))
        below = f"{root.relative_to(folder)}/"
        if spec is not None and not spec.check_file(below).include:
            found.append(Patterns(folder="", is_ours=False, spec=spec, below=below))
    return tuple(found)


def is_ignored(path: str, patterns: Sequence[Patterns]) -> bool:
    """Tell whether the ignore files leave a path out; a folder's ends with a slash; the strongest come first."""
    decisions = (each.decide(path) for each in patterns)
    return next((decision for decision in decisions if decision is not None), False)


def is_asked_for(path: str, patterns: Sequence[Patterns]) -> bool:
    """Tell whether our own ignore file explicitly keeps a path (`!name`), secret or not."""
    decisions = (each.decide(path) for each in patterns if each.is_ours)
    return next((not decision for decision in decisions if decision is not None), False)


def _read(path: Path, *, shown: str) -> "GitIgnoreSpec | None":
    """Return the patterns in a file; None when there is no such file."""
    from pathspec import GitIgnoreSpec

    try:
        if not path.is_file():
            return None
        return GitIgnoreSpec.from_lines(path.read_text(encoding="utf-8-sig", errors="surrogateescape").splitlines())
    except (OSError, ValueError) as error:
        raise InvalidSpec([Problem(path="workspace", message=f"{shown} cannot be used: {error}")]) from None
