"""No body is unpacked in a worker: a small one could become gigabytes before its size and its sender are checked.

Our producers compress nothing at this level. kombu unpacks whatever a message's header says, at its arrival.
"""

from typing import Any, Final, NoReturn

import kombu.compression

# Its stubs are wrong about what it returns.
_compression: Final[Any] = kombu.compression


class CompressedBody(Exception):
    """A message whose body is compressed; it is set aside as it came."""


def refuse_compressed_bodies() -> None:
    """Let kombu unpack nothing more in this process."""
    for content_type in _compression.encoders():
        encoder, _name = _compression.get_encoder(content_type)
        _compression.register(encoder, _refuse, content_type)


def _refuse(_body: bytes) -> NoReturn:
    raise CompressedBody("a compressed body is not unpacked here")
