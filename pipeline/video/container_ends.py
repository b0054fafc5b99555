"""Whether a file ends where its container says that it does, where FFmpeg reads on without a word."""

from __future__ import annotations

import os

from flowless.pipeline.video.container import wrap_io_errors


def matroska_lacks_bytes(path: str | os.PathLike[str]) -> bool:
    """Return whether a Matroska file's one Segment says that it is longer than the file (a live recording does not say)."""
    with wrap_io_errors(path), open(path, "rb") as stream:  # noqa: PTH123  any name, as `open_video` takes it
        head = stream.read(4096)
        total = stream.seek(0, os.SEEK_END)
    place = 0
    while place + 12 <= len(head):
        name_length = 9 - head[place].bit_length()
        name = head[place : place + name_length]
        first = head[place + name_length]
        size_length = 9 - first.bit_length()
        size = int.from_bytes(head[place + name_length : place + name_length + size_length], "big") & ~(1 << 7 * size_length)
        begins = place + name_length + size_length
        if name == b"\x18\x53\x80\x67":  # Segment
            unknown = size == (1 << 7 * size_length) - 1
            return not unknown and begins + size > total
        place = begins + size
    return False


def gif_is_cut(path: str | os.PathLike[str]) -> bool:
    """Return whether a GIF ends within a block (GIF89a specification, section 15 on); one without its trailer is whole."""
    with wrap_io_errors(path), open(path, "rb") as stream:  # noqa: PTH123  any name, as `open_video` takes it
        data = stream.read()
    place = 13 + _colours(data[10:11])
    while place < len(data):
        kind = data[place]
        if kind == 0x2C:  # a picture: place and size, colours, the size of its codes
            place += 10 + _colours(data[place + 9 : place + 10]) + 1
        elif kind == 0x21:  # an extension
            place += 2
        else:
            return False  # the trailer, or what no decoder reads
        while place < len(data) and data[place]:
            place += 1 + data[place]
        place += 1
    return place > len(data)


def _colours(flags: bytes) -> int:
    """Return the bytes of a table of colours, by the flags that announce it."""
    return 3 << (flags[0] & 7) + 1 if flags and flags[0] & 0x80 else 0
