"""Queries the driver for the capabilities of a GPU's video decoder (NVDEC): codecs, chroma formats, bit depths and frame sizes.

`libnvcuvid` is part of the NVIDIA driver, but containers and virtual machines may lack it. DALI makes the same query before it creates a
decoder, and fails for the whole batch where a video is not supported.
Struct and constants: `cuviddec.h` of NVIDIA's Video Codec SDK 13.0 (`CUVIDDECODECAPS`, `cudaVideoCodec`, `cudaVideoChromaFormat`).
"""

from __future__ import annotations

import ctypes
import functools
import sys
from dataclasses import dataclass
from typing import Any, Literal

from av import VideoFormat

from flowless import cuda_driver
from flowless.errors import FlowlessError

#: FFmpeg's names of the codecs that DALI decodes with NVDEC (DALI 2.4), and their numbers in `cudaVideoCodec`.
CODECS = {"mpeg4": 2, "h264": 4, "mjpeg": 5, "hevc": 8, "vp8": 9, "vp9": 10, "av1": 11}
Chroma = Literal["4:0:0", "4:2:0", "4:2:2", "4:4:4"]
#: `cudaVideoChromaFormat`.
_CHROMA: dict[Chroma, int] = {"4:0:0": 0, "4:2:0": 1, "4:2:2": 2, "4:4:4": 3}
#: Width and height of the chroma planes of 16 x 16 pixels -> chroma format.
_CHROMA_OF: dict[tuple[int, int], Chroma] = {(8, 8): "4:2:0", (8, 16): "4:2:2", (16, 16): "4:4:4"}
#: `cudaVideoSurfaceFormat_NV12`, the output format that DALI uses.
_NV12 = 1 << 0
_LIBRARY = "nvcuvid.dll" if sys.platform == "win32" else "libnvcuvid.so.1"


@dataclass(frozen=True, kw_only=True)
class Stream:
    """The properties of a video that decide whether NVDEC supports it."""

    codec: str
    """FFmpeg's name of the codec."""
    pixel_format: str = ""
    """FFmpeg's name of the pixel format; if it is unknown (""), 8-bit 4:2:0 is assumed."""
    width: int
    """Columns as stored, before rotation, in pixels."""
    height: int
    """Rows as stored, before rotation, in pixels."""


@dataclass(frozen=True, kw_only=True)
class Caps:
    """The driver's capabilities for a codec, chroma format and bit depth."""

    supported: bool
    min_width: int = 0
    min_height: int = 0
    max_width: int = 0
    max_height: int = 0
    max_macroblocks: int = 0
    """Macroblocks of 16 x 16 pixels per frame."""

    def refuses(self, width: int, height: int) -> str | None:
        """Return why a frame size is not supported; None where it is."""
        if not self.supported:
            return "not decoded"
        if width < self.min_width or height < self.min_height:
            return f"{width}x{height} is smaller than {self.min_width}x{self.min_height}"
        if width > self.max_width or height > self.max_height:
            return f"{width}x{height} is larger than {self.max_width}x{self.max_height}"
        blocks = -(-width // 16) * -(-height // 16)
        if blocks > self.max_macroblocks:
            return f"{width}x{height} has {blocks} macroblocks, more than {self.max_macroblocks}"
        return None


class DecodeCaps(ctypes.Structure):
    """`CUVIDDECODECAPS`."""

    _fields_ = (
        ("eCodecType", ctypes.c_int),
        ("eChromaFormat", ctypes.c_int),
        ("nBitDepthMinus8", ctypes.c_uint),
        ("reserved1", ctypes.c_uint * 3),
        ("bIsSupported", ctypes.c_ubyte),
        ("nNumNVDECs", ctypes.c_ubyte),
        ("nOutputFormatMask", ctypes.c_ushort),
        ("nMaxWidth", ctypes.c_uint),
        ("nMaxHeight", ctypes.c_uint),
        ("nMaxMBCount", ctypes.c_uint),
        ("nMinWidth", ctypes.c_ushort),
        ("nMinHeight", ctypes.c_ushort),
        ("bIsHistogramSupported", ctypes.c_ubyte),
        ("nCounterBitDepth", ctypes.c_ubyte),
        ("nMaxHistogramBins", ctypes.c_ushort),
        ("reserved3", ctypes.c_uint * 10),
    )


def why_no_nvdec(device_id: int = 0) -> str | None:
    """Return in one line why NVDEC cannot be used here; None where it can."""
    try:
        caps("h264", "4:2:0", 8, device_id)
    except FlowlessError as error:
        return str(error)
    return None


def why_not(stream: Stream, device_id: int = 0) -> str | None:
    """Return in one line why NVDEC does not decode a video, such as `av1 4:2:0 8 bits: not decoded`; None where it does.

    Raises:
        FlowlessError: NVDEC cannot be queried here.
    """
    if stream.codec not in CODECS:
        return f"{stream.codec or 'unknown codec'}: DALI does not decode it with NVDEC"
    layout = layout_of(stream.pixel_format)
    if layout is None:
        return f"{stream.codec} {stream.pixel_format}: no chroma format that NVDEC supports"
    chroma, bits = layout
    refused = caps(stream.codec, chroma, bits, device_id).refuses(stream.width, stream.height)
    return f"{stream.codec} {chroma} {bits} bits: {refused}" if refused else None


@functools.cache
def layout_of(pixel_format: str) -> tuple[Chroma, int] | None:
    """Return chroma format and bit depth of an FFmpeg pixel format; None where NVDEC has no equivalent, as for RGB and alpha channels."""
    if not pixel_format:
        return "4:2:0", 8
    try:
        kind = VideoFormat(pixel_format, 16, 16)
    except ValueError:
        return None
    bits = kind.components[0].bits
    if len(kind.components) == 1:
        return "4:0:0", bits
    chroma = _CHROMA_OF.get((kind.chroma_width(16), kind.chroma_height(16)))
    return (chroma, bits) if chroma and len(kind.components) == 3 and not kind.is_rgb else None


@functools.cache
def caps(codec: str, chroma: Chroma, bits: int, device_id: int = 0) -> Caps:
    """Query the driver's capabilities for a codec of `CODECS`.

    Raises:
        FlowlessError: There is no GPU with that number, or `libnvcuvid` is missing.
    """
    query = DecodeCaps(eCodecType=CODECS[codec], eChromaFormat=_CHROMA[chroma], nBitDepthMinus8=bits - 8)
    with cuda_driver.primary_context(device_id):
        status = _library().cuvidGetDecoderCaps(ctypes.byref(query))
    if status != 0:
        raise FlowlessError(f"The GPU's driver does not report what it decodes (cuvidGetDecoderCaps: CUDA error {status}).")
    return Caps(
        supported=bool(query.bIsSupported) and bool(query.nOutputFormatMask & _NV12),
        min_width=query.nMinWidth,
        min_height=query.nMinHeight,
        max_width=query.nMaxWidth,
        max_height=query.nMaxHeight,
        max_macroblocks=query.nMaxMBCount,
    )


def _library() -> Any:
    try:
        return ctypes.CDLL(_LIBRARY)
    except OSError as error:
        raise FlowlessError(f"The GPU's video decoder cannot be used: the driver's {_LIBRARY} does not load ({error}).") from error
