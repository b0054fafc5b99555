"""Detects truncated Matroska and GIF files, which FFmpeg reads without an error."""

from __future__ import annotations

import os

from flowless.pipeline.video.container import wrap_io_errors


def matroska_is_truncated(path: str | os.PathLike[str]) -> bool:
    """Return whether the Segment of a Matroska file is longer than the file; False for live recordings, whose Segment has no size."""
    with wrap_io_errors(path), open(path, "rb") as stream:  # noqa: PTH123  any name, as `open_video` takes it
        head = stream.read(4096)
        total = stream.seek(0, os.SEEK_END)
    position = 0
    while position + 12 <= len(head):
        name_length = 9 - head[position].bit_length()
        name = head[position : position + name_length]
        first = head[position + name_length]
        size_length = 9 - first.bit_length()
        size = int.from_bytes(head[position + name_length : position + name_length + size_length], "big") & ~(1 << 7 * size_length)
        begins = position + name_length + size_length
        if name == b"\x18\x53\x80\x67":  # Segment
            unknown = size == (1 << 7 * size_length) - 1
            return not unknown and begins + size > total
        position = begins + size
    return False


def gif_is_truncated(path: str | os.PathLike[str]) -> bool:
    """Return whether a GIF ends within a block (GIF89a specification, sections 15 and following); a missing trailer does not count."""
    with wrap_io_errors(path), open(path, "rb") as stream:  # noqa: PTH123  any name, as `open_video` takes it
        data = stream.read()
    position = 13 + _colour_table_size(data[10:11])
    while position < len(data):
        kind = data[position]
        if kind == 0x2C:  # image descriptor, local colour table, LZW minimum code size
            position += 10 + _colour_table_size(data[position + 9 : position + 10]) + 1
        elif kind == 0x21:  # an extension
            position += 2
        else:
            return False  # the trailer, or data that decoders ignore
        while position < len(data) and data[position]:
            position += 1 + data[position]
        position += 1
    return position > len(data)


def _colour_table_size(flags: bytes) -> int:
    """Return the size in bytes of the colour table that a packed field announces."""
    return 3 << (flags[0] & 7) + 1 if flags and flags[0] & 0x80 else 0
