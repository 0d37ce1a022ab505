"""Writes docs/security.md from the tests that carry `security_case`: `python -m services.security_table`."""

import ast
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
TARGET = ROOT / "docs" / "security.md"
_MARK = "security_case"
_PARTS = ("Refused", "Evidence", "Red before")
# In the order of the page: each names cases by what they begin with or contain, and has one at least.
WANTED = (
    "unsigned", "wrong key", "right key, wrong queue", "header changed", "ciphertext changed",
    "header of one on body of another", "replayed after success", "replayed after expiry", "clock skewed sender",
    "oversize", "garbage messages", "unknown suite", "suite below the floor", "revoked key", "rotated key",
    "key file world-readable", "pickled body", "json body to the task", "protobuf with 10,000 nested fields",
    "spec asking privileged", "host network", "docker socket", "other's gpu", "negative limits", "command injection",
    "image name tricks", "label injection", "env override", "tar traversal", "zstd bomb", "symlink outputs",
    "output named like a device", "ssrf to metadata", "ssrf by redirect", "dns rebinding",
    "presigned url of another experiment", "attempt writing outside its prefix", "stale attempt committing",
    "fork bomb", "memory hog", "disk filler", "inode filler", "log flood", "fd hog", "clock burner",
    "container escap", "reading another experiment's workspace", "forged report", "report flood", "terminal escape",
    "html in names", "flower and api without token", "huge body", "slow client", "path traversal in ids",
    "stolen node", "stolen broker password", "stolen password of the registry", "tls", "secrets", "fuzzing",
    "supply chain",
)  # fmt: skip
_INTRODUCTION = """\
# Cases of security

What is tried against jobqueue, how it is refused, and which test sees it. [SECURITY.md](../SECURITY.md) tells what is
protected from whom. `make test` runs every row but those marked *full*, which take long; `make security` runs them all.
The table is written from the tests: `make security-table`.

"""


class ShapelessCase(Exception):
    """A test is marked, and its docstring does not tell what a row needs."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One row.

    Attributes:
        name: What is tried, in two or three words; several rows may share it.
        attack, refused, evidence: What the test's docstring says.
        red_before: What the code did before it was mended; empty: the case was never open.
        path: The test's file, from the root of the repository.
        test: The test's name.
        is_full: Only `make security` runs it.
    """

    name: str
    attack: str
    refused: str
    evidence: str
    red_before: str
    path: str
    test: str
    is_full: bool


def read_cases(root: Path) -> list[Case]:
    """Return the cases of all tests below `root`, by name and place, without importing any of them.

    Raises:
        ShapelessCase: a marked test says not what a row needs.
    """
    found: list[Case] = []
    for path in sorted((root / "tests").rglob("test_*.py")):
        text = path.read_text(encoding="utf-8")
        if _MARK in text:
            found += _read_module(ast.parse(text), str(path.relative_to(root)))
    return sorted(found, key=lambda case: (_rank(case.name), case.name.lower(), case.path))


def missing(cases: Sequence[Case]) -> list[str]:
    """Return what is wanted and no case is of."""
    names = [case.name.lower() for case in cases]
    return [wanted for wanted in WANTED if not any(wanted in name for name in names)]


def write_page(cases: Sequence[Case]) -> str:
    """Return the page: one table, with a line for each case."""
    lines = ["| Case | Attack | Refused | Evidence | Test |", "| --- | --- | --- | --- | --- |"]
    for case in cases:
        evidence = case.evidence + (f" Red before: {case.red_before}" if case.red_before else "")
        where = f"[`{case.test}`](../{case.path})" + (" *full*" if case.is_full else "")
        cells = (case.name[:1].upper() + case.name[1:], case.attack, case.refused, evidence, where)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    names = len({case.name for case in cases})
    count = f"{len(cases)} tests of {names} cases; `Red before` tells what the code did until it was mended.\n\n"
    return _INTRODUCTION + count + "\n".join(lines) + "\n"


def _rank(name: str) -> int:
    return next((rank for rank, wanted in enumerate(WANTED) if wanted in name.lower()), len(WANTED))


def _read_module(module: ast.Module, path: str) -> Iterator[Case]:
    all_full = any(_is_mark(node, "full") for node in _module_marks(module))
    for node in ast.walk(module):
        if isinstance(node, ast.FunctionDef):
            names = [_name_of(mark) for mark in node.decorator_list if _is_mark(mark, _MARK)]
            if names:
                yield _read_case(
                    node,
                    name=names[0],
                    path=path,
                    is_full=all_full or any(_is_mark(m, "full") for m in node.decorator_list),
                )


def _module_marks(module: ast.Module) -> list[ast.expr]:
    assigned = [
        node.value
        for node in module.body
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "pytestmark" for t in node.targets)
    ]
    return [mark for value in assigned for mark in (value.elts if isinstance(value, ast.List | ast.Tuple) else [value])]


def _is_mark(node: ast.expr, name: str) -> bool:
    return ast.unparse(node.func if isinstance(node, ast.Call) else node) == f"pytest.mark.{name}"


def _name_of(mark: ast.expr) -> str:
    match mark:
        case ast.Call(args=[ast.Constant(value=str(name))]):
            return name
    raise ShapelessCase(f"{ast.unparse(mark)}: it takes the name of a case, as a text")


def _read_case(node: ast.FunctionDef, *, name: str, path: str, is_full: bool) -> Case:
    parts = _split(ast.get_docstring(node) or "")
    missing = [part for part in ("Attack", "Refused", "Evidence") if not parts.get(part)]
    if missing or not parts["Attack"].endswith("."):
        raise ShapelessCase(
            f"{path}::{node.name}: its docstring is to be a phrase for the attack with a full stop, "
            f"then `Refused:` and `Evidence:`; missing: {', '.join(missing) or 'the full stop'}"
        )
    return Case(
        name=name,
        attack=parts["Attack"],
        refused=parts["Refused"],
        evidence=parts["Evidence"],
        red_before=parts.get("Red before", ""),
        path=path,
        test=node.name,
        is_full=is_full,
    )


def _split(docstring: str) -> dict[str, str]:
    parts: dict[str, str] = {}
    part = "Attack"
    for line in docstring.splitlines():
        for label in _PARTS:
            if line.startswith(f"{label}:"):
                part, line = label, line.removeprefix(f"{label}:")  # noqa: PLW2901
        parts[part] = f"{parts.get(part, '')} {line.strip()}".strip()
    return parts


def main(arguments: Sequence[str]) -> int:
    """Write the page; with `--check`, say whether it is what the tests say."""
    page = write_page(read_cases(ROOT))
    if "--check" in arguments:
        return int(not TARGET.exists() or TARGET.read_text(encoding="utf-8") != page)
    TARGET.write_text(page, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
