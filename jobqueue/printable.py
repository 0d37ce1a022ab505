"""What others wrote, for a terminal: nothing in it acts there, whoever wrote it and whatever prints it."""

import re
from typing import Final

_COLOUR: Final = re.compile(r"\x1b\[[0-9;:]*m")


def plain(text: str) -> str:
    """Return a text without control characters, so that what others wrote cannot drive this terminal."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def plain_lines(text: str) -> str:
    """Return the lines of a text as `plain` does; colours go."""
    return "\n".join(plain(line.expandtabs()) for line in _COLOUR.sub("", text).split("\n"))


def terminal_lines(line: str) -> list[str]:
    """Return a line of a program's output as what a terminal may get: what would be written over comes by itself."""
    return [plain(part.expandtabs()) for part in _COLOUR.sub("", line).split("\r")]
