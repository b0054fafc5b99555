"""What a GPU's video decoder (NVDEC) decodes, asked of its driver: which codec, chroma format and bit depth, in which sizes.

`libnvcuvid` comes with the NVIDIA driver, where a container or a virtual machine was given it. It decodes nothing by itself: DALI's
wheel, built for a CUDA that the driver runs, opens it, asks it the same before each decoder that it makes, and refuses the batch.
Struct and numbers: `cuviddec.h` of NVIDIA's Video Codec SDK 13.0 (`CUVIDDECODECAPS`, `cudaVideoCodec`, `cudaVideoChromaFormat`).
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

#: FFmpeg's names of the codecs that DALI hands to NVDEC (DALI 2.4), and their number in `cudaVideoCodec`.
CODECS = {"mpeg4": 2, "h264": 4, "mjpeg": 5, "hevc": 8, "vp8": 9, "vp9": 10, "av1": 11}
Chroma = Literal["4:0:0", "4:2:0", "4:2:2", "4:4:4"]
#: `cudaVideoChromaFormat`.
_CHROMA: dict[Chroma, int] = {"4:0:0": 0, "4:2:0": 1, "4:2:2": 2, "4:4:4": 3}
#: Columns and rows of colour of 16 x 16 pixels.
_CHROMA_OF: dict[tuple[int, int], Chroma] = {(8, 8): "4:2:0", (8, 16): "4:2:2", (16, 16): "4:4:4"}
#: `cudaVideoSurfaceFormat_NV12`, which is what DALI has frames written as.
_NV12 = 1 << 0
_LIBRARY = "nvcuvid.dll" if sys.platform == "win32" else "libnvcuvid.so.1"


@dataclass(frozen=True, kw_only=True)
class Stream:
    """What decides whether NVDEC decodes a video."""

    codec: str
    """FFmpeg's name of the codec."""
    pixel_format: str = ""
    """FFmpeg's name of the stored pixels' format; where it is not known, 8 bits of 4:2:0 are supposed."""
    width: int
    """Columns as stored, before rotation, in pixels."""
    height: int
    """Rows as stored, before rotation, in pixels."""


@dataclass(frozen=True, kw_only=True)
class Caps:
    """What the driver says about a codec in one chroma format and bit depth."""

    supported: bool
    min_width: int = 0
    min_height: int = 0
    max_width: int = 0
    max_height: int = 0
    max_macroblocks: int = 0
    """Of 16 x 16 pixels in a frame."""

    def refuses(self, width: int, height: int) -> str | None:
        """Say in a few words why a frame is not decoded; None where it is."""
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
    """Say in one line why nothing can be decoded on a GPU here; None where its decoder can be asked."""
    try:
        caps("h264", "4:2:0", 8, device_id)
    except FlowlessError as error:
        return str(error)
    return None


def why_not(stream: Stream, device_id: int = 0) -> str | None:
    """Say in one line why NVDEC does not decode a video: `av1 4:2:0 8 bits: not decoded`; None where it does.

    Raises:
        FlowlessError: There is no NVDEC here to ask.
    """
    if stream.codec not in CODECS:
        return f"{stream.codec or 'no codec that can be trusted'}: DALI does not hand it to NVDEC"
    layout = layout_of(stream.pixel_format)
    if layout is None:
        return f"{stream.codec} {stream.pixel_format}: no chroma format that NVDEC knows"
    chroma, bits = layout
    refused = caps(stream.codec, chroma, bits, device_id).refuses(stream.width, stream.height)
    return f"{stream.codec} {chroma} {bits} bits: {refused}" if refused else None


@functools.cache
def layout_of(pixel_format: str) -> tuple[Chroma, int] | None:
    """Return chroma format and bits of FFmpeg's pixel format; None where video decoders have no such, as with RGB or transparency."""
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
    """Ask the driver about a codec of `CODECS`.

    Raises:
        FlowlessError: There is no GPU of that number, or the driver's library of decoders is not there.
    """
    asked = DecodeCaps(eCodecType=CODECS[codec], eChromaFormat=_CHROMA[chroma], nBitDepthMinus8=bits - 8)
    with cuda_driver.primary_context(device_id):
        status = _library().cuvidGetDecoderCaps(ctypes.byref(asked))
    if status != 0:
        raise FlowlessError(f"The GPU's driver does not say what it decodes (cuvidGetDecoderCaps: CUDA error {status}).")
    return Caps(
        supported=bool(asked.bIsSupported) and bool(asked.nOutputFormatMask & _NV12),
        min_width=asked.nMinWidth,
        min_height=asked.nMinHeight,
        max_width=asked.nMaxWidth,
        max_height=asked.nMaxHeight,
        max_macroblocks=asked.nMaxMBCount,
    )


def _library() -> Any:
    try:
        return ctypes.CDLL(_LIBRARY)
    except OSError as error:
        raise FlowlessError(f"The GPU's video decoder cannot be used: the driver's {_LIBRARY} does not load ({error}).") from error
