"""Detects encrypted files (DRM), which FFmpeg opens without an error."""

from __future__ import annotations

import os
import uuid

from av.container import InputContainer
from av.video.stream import VideoStream

#: Codec tags of encrypted video in MP4: Common Encryption (CENC) and Apple's FairPlay.
_CODEC_TAGS = frozenset({"encv", "drmi"})
#: GUIDs of the encryption objects in an ASF header (ASF specification, sections 3.14 to 3.16).
_ASF_OBJECTS = tuple(
    uuid.UUID(text).bytes_le
    for text in (
        "2211b3fb-bd23-11d2-b4b7-00a0c955fc6e",
        "298ae614-2622-4c17-b935-dae07ee9289c",
        "43058533-6981-49e6-9b74-ad12cb86d58c",
    )
)
#: Bytes that are read from the beginning of a file.
_HEAD = 2**20
#: Packet sizes of a transport stream: plain, and with a time stamp before each packet (camcorders and discs).
_TRANSPORT_PACKETS = (188, 192)


def says_encrypted(container: InputContainer, stream: VideoStream, path: str | os.PathLike[str]) -> bool:
    """Return whether a container's header marks the video stream as encrypted: MP4, Matroska and WebM, ASF (Windows Media)."""
    if stream.codec_context.codec_tag in _CODEC_TAGS or "enc_key_id" in stream.metadata:
        return True
    if container.format.name != "asf":
        return False
    head = _head_of(path)
    header = head[: int.from_bytes(head[16:24], "little")]
    return any(name in header for name in _ASF_OBJECTS)


def is_scrambled(path: str | os.PathLike[str]) -> bool:
    """Return whether most packets of a transport stream are scrambled, as in pay television."""
    head = _head_of(path)
    for size in _TRANSPORT_PACKETS:
        headers = [head[position : position + 4] for position in range(size - 188, len(head) - 4, size)]
        if headers and all(header[0] == 0x47 for header in headers):
            return sum(header[3] >> 6 > 0 for header in headers) > len(headers) / 2
    return False


def _head_of(path: str | os.PathLike[str]) -> bytes:
    with open(path, "rb") as stream:  # noqa: PTH123  any name, as `open_video` takes it
        return stream.read(_HEAD)
