"""The engine's output stream, cut wherever the network cuts it."""

from hypothesis import given
from hypothesis import strategies as st

from workers.attempt.runtimes.frames import LARGEST_PIECE_BYTES, split_frames

FRAMES = st.lists(st.tuples(st.sampled_from([1, 2]), st.binary(max_size=300)), max_size=30)


def join(frames: list[tuple[int, bytes]]) -> bytes:
    return b"".join(bytes([stream, 0, 0, 0]) + len(content).to_bytes(4) + content for stream, content in frames)


def cut(content: bytes, size: int) -> list[bytes]:
    return [content[start : start + size] for start in range(0, len(content), size)]


def merge(pieces: list[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
    """Return neighbours of one stream as one."""
    merged: list[tuple[str, bytes]] = []
    for stream, piece in pieces:
        if merged and merged[-1][0] == stream:
            merged[-1] = (stream, merged[-1][1] + piece)
        else:
            merged.append((stream, piece))
    return merged


@given(frames=FRAMES, size=st.integers(1, 2000))
def test_every_byte_comes_once_in_order_from_its_stream(frames: list[tuple[int, bytes]], size: int) -> None:
    expected = merge([("stdout" if stream == 1 else "stderr", content) for stream, content in frames if content])
    assert merge(list(split_frames(cut(join(frames), size)))) == expected


def test_a_huge_frame_comes_in_bounded_pieces() -> None:
    content = bytes(range(256)) * 4000
    pieces = list(split_frames([join([(1, content)])]))
    assert b"".join(piece for _, piece in pieces) == content
    assert max(len(piece) for _, piece in pieces) == LARGEST_PIECE_BYTES


def test_many_short_frames_of_one_block_are_one_piece() -> None:
    block = join([(1, b"line\n")] * 1000)
    assert list(split_frames([block])) == [("stdout", b"line\n" * 1000)]


def test_a_frame_that_breaks_off_gives_what_there_was_of_it() -> None:
    assert list(split_frames([join([(2, b"whole")])[:-2]])) == [("stderr", b"who")]
    assert list(split_frames([join([(2, b"whole")])[:5]])) == []
