"""What is installed is used: a library that no module imports costs every user its download and its weaknesses."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# Promised by name before what needs them is there.
AHEAD = {"api", "gpu"}
IMPORTED_AS = {"protobuf": "google.protobuf", "pydantic-settings": "pydantic_settings"}
EXTRAS = {name: needs for name, needs in PROJECT["optional-dependencies"].items() if name not in AHEAD}
NEEDS = {need for needs in (PROJECT["dependencies"], *EXTRAS.values()) for need in needs}
SOURCES = "\n".join(
    path.read_text() for package in ("jobqueue", "workers", "producers") for path in (ROOT / package).rglob("*.py")
)


@pytest.mark.parametrize("name", sorted({re.split(r"[\[<>=; ]", need)[0] for need in NEEDS} - {"jobqueue"}))
def test_a_dependency_is_imported_or_started_by_its_name(name: str) -> None:
    module = re.escape(IMPORTED_AS.get(name, name))

    assert re.search(rf'^\s*(import|from) {module}\b|"{module}"', SOURCES, re.MULTILINE)
