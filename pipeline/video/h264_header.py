"""Reads the reordering limit from an H.264 sequence parameter set (ITU-T H.264, section 7.3.2.1.1 and annex E)."""

from __future__ import annotations

#: Profiles whose parameter sets have a chroma format (the condition on `profile_idc` in section 7.3.2.1.1).
_HIGH = frozenset({44, 83, 86, 100, 110, 118, 122, 128, 134, 135, 138, 139, 244})


def max_reorder_frames(header: bytes | None) -> int | None:
    """Return `max_num_reorder_frames` of a stream: how many frames may precede a frame in decode order and follow it in display order.

    Without that value, FFmpeg's decoder estimates the reordering from the first packets, and drops a frame when it raises the estimate.

    Args:
        header: The codec's `extradata`, in MP4 format (`avcC`) or as an Annex B byte stream.

    Returns:
        The number, 0 to 16; None where the header is missing, unreadable, or without the value.
    """
    try:
        return _parse_sps(_Bits(_first_sps(header or b"")))
    except IndexError:  # truncated
        return None


class _Bits:
    """A reader of bit fields and Exp-Golomb codes."""

    def __init__(self, data: bytes) -> None:
        self._bits = "".join(f"{byte:08b}" for byte in data)
        self._at = 0

    def take(self, count: int = 1) -> int:
        self._at += count
        if self._at > len(self._bits):
            raise IndexError
        return int(self._bits[self._at - count : self._at] or "0", 2)

    def skip(self, kinds: str) -> None:
        """Skip fields: `u` is one bit, `v` an Exp-Golomb code."""
        for kind in kinds:
            self.number() if kind == "v" else self.take()

    def number(self) -> int:
        """Read an Exp-Golomb code as ue(v); an se(v) has the same length."""
        zeros = 0
        while not self.take():
            zeros += 1
        return (1 << zeros) - 1 + self.take(zeros)


def _first_sps(header: bytes) -> bytes:
    """Return the first sequence parameter set, without its NAL unit header and emulation prevention bytes."""
    if header[0] == 1:
        unit = header[8 : 8 + int.from_bytes(header[6:8], "big")]
    else:
        unit = next((part for part in header.split(b"\0\0\1") if part and part[0] & 31 == 7), b"")
    return unit[1:].replace(b"\0\0\3", b"\0\0")


def _parse_sps(bits: _Bits) -> int | None:
    profile = bits.take(24) >> 16
    bits.number()
    if profile in _HIGH:
        is_444 = bits.number() == 3
        bits.take(is_444)
        bits.skip("vvu")
        if bits.take():
            for index in range(12 if is_444 else 8):
                if bits.take():
                    _skip_scaling_list(bits, 16 if index < 6 else 64)
    bits.number()
    order = bits.number()
    if order == 0:
        bits.number()
    elif order == 1:
        bits.skip("uvv")
        for _ in range(bits.number()):
            bits.number()
    bits.skip("vuvv")
    if not bits.take():
        bits.take()  # mb_adaptive_frame_field_flag
    bits.take()
    if bits.take():
        bits.skip("vvvv")
    return _parse_vui(bits) if bits.take() else None


def _parse_vui(bits: _Bits) -> int | None:
    if bits.take() and bits.take(8) == 255:
        bits.take(32)
    if bits.take():
        bits.take()
    if bits.take() and bits.take(5) & 1:
        bits.take(24)
    if bits.take():
        bits.skip("vv")
    if bits.take():
        bits.take(65)
    buffers = [_skip_hrd(bits) for _ in range(2) if bits.take()]
    if buffers:
        bits.take()
    bits.take()
    if not bits.take():
        return None
    bits.skip("uvvvv")
    return bits.number()


def _skip_scaling_list(bits: _Bits, size: int) -> None:
    last = following = 8
    for _ in range(size):
        if following:
            code = bits.number()
            following = (last + ((code + 1) // 2 if code % 2 else -(code // 2))) % 256
        last = following or last


def _skip_hrd(bits: _Bits) -> None:
    count = bits.number() + 1
    bits.take(8)
    for _ in range(count):
        bits.skip("vvu")
    bits.take(20)
