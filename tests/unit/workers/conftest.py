"""A node whose servers are all in this process, for every test that runs attempts."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from services.node import FakeNode, open_fake_node


@pytest.fixture
def node(tmp_path: Path) -> Iterator[FakeNode]:
    """A node that a test leads by hand."""
    with open_fake_node(tmp_path) as opened:
        yield opened
