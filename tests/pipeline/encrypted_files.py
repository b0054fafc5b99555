"""Makes encrypted files from plain ones: adds the header elements of encryption, or scrambles the packets of transport streams."""

from __future__ import annotations

import struct
import uuid
from collections.abc import Callable, Sequence

import numpy as np


def box(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I4s", len(data) + 8, kind) + data


def common_encryption(data: bytes, path: Sequence[bytes] = (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd", b"avc1")) -> bytes:
    """Return an MP4's boxes with the sample entry at the end of `path` marked as encrypted (Common Encryption)."""
    made, place = b"", 0
    if path[0] == b"avc1":
        made, place = data[:8], 8  # of stsd: version and count
    while place < len(data):
        size, kind = struct.unpack(">I4s", data[place : place + 8])
        inside = data[place + 8 : place + size]
        if kind == path[0] and len(path) > 1:
            inside = common_encryption(inside, path[1:])
        elif kind == path[0]:
            key = box(b"tenc", bytes(6) + b"\x01\x08" + bytes(range(16)))
            scheme = box(b"frma", kind) + box(b"schm", bytes(4) + b"cenc" + b"\x00\x01\x00\x00") + box(b"schi", key)
            kind, inside = b"encv", inside + box(b"sinf", scheme)
        made += box(kind, inside)
        place += size
    return made


def element(name: str, data: bytes) -> bytes:
    """Return a Matroska element with an 8-byte size."""
    return bytes.fromhex(name) + (len(data) | 1 << 56).to_bytes(8, "big") + data


CONTENT_ENCRYPTION = element("5035", element("47E1", b"\5") + element("47E2", bytes(range(16))))
CONTENT_ENCODINGS = element("6D80", element("6240", element("5032", b"\1") + element("5033", b"\1") + CONTENT_ENCRYPTION))


def matroska(data: bytes, path: Sequence[str] = ("18538067", "1654AE6B", "AE")) -> bytes:
    """Return a Matroska file whose first track is marked as encrypted, by an element appended to the one at the end of `path`."""
    place = 0
    while True:
        begin = place + 9 - data[place].bit_length()
        inside = begin + 9 - data[begin].bit_length()
        bits = 7 * (inside - begin)
        size = int.from_bytes(data[begin:inside], "big") & (1 << bits) - 1
        end = len(data) if size == (1 << bits) - 1 else inside + size
        if data[place:begin].hex().upper() == path[0]:
            held = matroska(data[inside:end], path[1:]) if path[1:] else data[inside:end] + CONTENT_ENCODINGS
            return data[:place] + element(path[0], held) + data[end:]
        place = end


def windows_media(data: bytes) -> bytes:
    """Return an ASF file with an encryption object in its header."""
    size, objects = struct.unpack("<QI", data[16:28])
    fields = b"".join(struct.pack("<I", len(part)) + part for part in (bytes(8), b"DRM\0", b"key\0", b"url\0"))
    added = uuid.UUID("2211b3fb-bd23-11d2-b4b7-00a0c955fc6e").bytes_le + struct.pack("<Q", 24 + len(fields)) + fields
    return data[:16] + struct.pack("<QI", size + len(added), objects + 1) + data[28:size] + added + data[size:]


def scrambled(data: bytes) -> bytes:
    """Return a transport stream with scrambled video packets."""
    made, noise = bytearray(data), np.random.default_rng(0)
    for place in range(0, len(made), 188):
        if int.from_bytes(made[place + 1 : place + 3], "big") & 0x1FFF == 0x100:
            made[place + 3] |= 0x80
            begin = place + 4 + (1 + made[place + 4] if made[place + 3] & 0x20 else 0)
            made[begin : place + 188] = noise.bytes(place + 188 - begin)
    return bytes(made)


def scrambled_disc(data: bytes) -> bytes:
    """Return a scrambled transport stream in the format of discs, with four bytes before each packet."""
    plain = scrambled(data)
    return b"".join(bytes(4) + plain[place : place + 188] for place in range(0, len(plain), 188))


ENCRYPTED: dict[str, Callable[[bytes], bytes]] = {
    ".mp4": common_encryption,
    ".mkv": matroska,
    ".webm": matroska,
    ".wmv": windows_media,
    ".ts": scrambled,
    ".m2ts": scrambled_disc,
}
