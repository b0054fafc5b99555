"""What an H.264 stream says in its header (ITU-T H.264, sections 7.3.2.1.1 and annex E) and PyAV does not pass on."""

from __future__ import annotations

#: Profiles whose headers describe the colour format (the condition on `profile_idc` in section 7.3.2.1.1).
_HIGH = frozenset({44, 83, 86, 100, 110, 118, 122, 128, 134, 135, 138, 139, 244})


def most_reordered(header: bytes | None) -> int | None:
    """Return how many frames a frame may be decoded before it is shown, by a stream's header (`max_num_reorder_frames`).

    Where the header does not say, FFmpeg's decoder guesses by what it has seen, and loses a frame where it learns that it guessed too low.

    Args:
        header: The codec's `extradata`, as MP4 (`avcC`) or a bare stream has it.

    Returns:
        The number, 0 to 16; None where there is no header, it does not say, or it cannot be read.
    """
    try:
        return _restriction(_Bits(_sequence(header or b"")))
    except IndexError:  # it ends before
        return None


class _Bits:
    """Reads numbers from bits."""

    def __init__(self, data: bytes) -> None:
        self._bits = "".join(f"{byte:08b}" for byte in data)
        self._at = 0

    def take(self, count: int = 1) -> int:
        self._at += count
        if self._at > len(self._bits):
            raise IndexError
        return int(self._bits[self._at - count : self._at] or "0", 2)

    def skip(self, kinds: str) -> None:
        """Read numbers that say nothing here: `u` a bit, `v` an Exp-Golomb code."""
        for kind in kinds:
            self.number() if kind == "v" else self.take()

    def number(self) -> int:
        """Read an Exp-Golomb code, ue(v); of se(v) only the length counts here."""
        zeros = 0
        while not self.take():
            zeros += 1
        return (1 << zeros) - 1 + self.take(zeros)


def _sequence(header: bytes) -> bytes:
    """Return the first sequence parameter set, from its profile on."""
    if header[0] == 1:
        unit = header[8 : 8 + int.from_bytes(header[6:8], "big")]
    else:
        unit = next((part for part in header.split(b"\0\0\1") if part and part[0] & 31 == 7), b"")
    return unit[1:].replace(b"\0\0\3", b"\0\0")


def _restriction(bits: _Bits) -> int | None:
    profile = bits.take(24) >> 16
    bits.number()
    if profile in _HIGH:
        full_colour = bits.number() == 3
        bits.take(full_colour)
        bits.skip("vvu")
        if bits.take():
            for place in range(12 if full_colour else 8):
                if bits.take():
                    _skip_scaling(bits, 16 if place < 6 else 64)
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
        bits.take()  # of fields
    bits.take()
    if bits.take():
        bits.skip("vvvv")
    return _usability(bits) if bits.take() else None


def _usability(bits: _Bits) -> int | None:
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
    buffers = [_skip_buffers(bits) for _ in range(2) if bits.take()]
    if buffers:
        bits.take()
    bits.take()
    if not bits.take():
        return None
    bits.skip("uvvvv")
    return bits.number()


def _skip_scaling(bits: _Bits, size: int) -> None:
    last = following = 8
    for _ in range(size):
        if following:
            code = bits.number()
            following = (last + ((code + 1) // 2 if code % 2 else -(code // 2))) % 256
        last = following or last


def _skip_buffers(bits: _Bits) -> None:
    count = bits.number() + 1
    bits.take(8)
    for _ in range(count):
        bits.skip("vvu")
    bits.take(20)
