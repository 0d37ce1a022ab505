"""The engine's output stream taken apart: frames of two streams in, bounded pieces out.

A frame is a byte for the stream, three zero bytes, the length (4 bytes, big endian) and the content. The client library
reads each header and each content by itself; here a block of many frames is cut at once and neighbours of one stream
are joined, so that a program that prints short lines costs one call per block and not one per line.
"""

from collections.abc import Iterable, Iterator

STREAMS = {1: "stdout", 2: "stderr"}
LARGEST_PIECE_BYTES = 64 * 1024

_HEADER_BYTES = 8


def split_frames(blocks: Iterable[bytes]) -> Iterator[tuple[str, bytes]]:
    """Yield `(stream, piece)` from blocks of any size; a frame that ends in the middle gives what there was of it."""
    header, stream, left = b"", 0, 0
    for block in blocks:
        position, joined, joined_stream = 0, bytearray(), 0
        while position < len(block):
            if left == 0:
                taken = block[position : position + _HEADER_BYTES - len(header)]
                header, position = header + taken, position + len(taken)
                if len(header) == _HEADER_BYTES:
                    stream, left, header = header[0], int.from_bytes(header[4:]), b""
                continue
            size = min(left, len(block) - position, LARGEST_PIECE_BYTES - len(joined) % LARGEST_PIECE_BYTES)
            if joined and (stream != joined_stream or len(joined) >= LARGEST_PIECE_BYTES):
                yield _name(joined_stream), bytes(joined)
                joined.clear()
                continue
            joined += memoryview(block)[position : position + size]
            joined_stream, position, left = stream, position + size, left - size
        if joined:
            yield _name(joined_stream), bytes(joined)


def _name(stream: int) -> str:
    return STREAMS.get(stream, STREAMS[1])
