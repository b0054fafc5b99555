"""NVDEC's capabilities, queried from a fake driver; PyAV decodes what NVDEC does not support, and everything without NVDEC."""

from __future__ import annotations

import contextlib
import ctypes
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flowless import cuda_driver
from flowless.errors import FlowlessError
from flowless.pipeline.dataset.index import DatasetIndex, VideoRecord
from flowless.pipeline.loading import nvdec
from flowless.pipeline.loading.nvdec import Caps, Stream, layout_of
from flowless.pipeline.video.info import CompactInts, VideoInfo

#: The capabilities of an NVIDIA GeForce RTX 3050, as `nvdecinfo` prints it (github.com/philipl/nv-video-info, pull request 7).
H264 = Caps(supported=True, min_width=48, min_height=16, max_width=4096, max_height=4096, max_macroblocks=65536)
MPEG4 = Caps(supported=True, min_width=48, min_height=16, max_width=2032, max_height=2032, max_macroblocks=8192)
#: HEVC has a minimum size, above that of some videos of the GPU suite.
HEVC = Caps(supported=True, min_width=144, min_height=144, max_width=8192, max_height=8192, max_macroblocks=262144)


@pytest.mark.parametrize(
    ("caps", "width", "height", "reason"),
    [
        (H264, 320, 240, None),
        (H264, 48, 16, None),
        (H264, 4096, 4096, None),
        (H264, 47, 16, "47x16 is smaller than 48x16"),
        (H264, 4112, 16, "4112x16 is larger than 4096x4096"),
        (HEVC, 320, 128, "320x128 is smaller than 144x144"),
        (HEVC, 320, 160, None),
        (HEVC, 143, 320, "143x320 is smaller than 144x144"),
        # 127 x 127 blocks are more than 8192, though each side is allowed
        (MPEG4, 2032, 2032, "2032x2032 has 16129 macroblocks, more than 8192"),
        (MPEG4, 1920, 1080, None),
        (MPEG4, 1920, 1089, "1920x1089 has 8280 macroblocks, more than 8192"),
        (Caps(supported=False), 320, 240, "not decoded"),
    ],
)
def test_supported_frame_sizes(caps: Caps, width: int, height: int, reason: str | None) -> None:
    assert caps.refuses(width, height) == reason


@pytest.mark.parametrize(
    ("pixel_format", "layout"),
    [
        ("", ("4:2:0", 8)),
        ("yuv420p", ("4:2:0", 8)),
        ("yuvj420p", ("4:2:0", 8)),
        ("yuv420p10le", ("4:2:0", 10)),
        ("yuv422p", ("4:2:2", 8)),
        ("yuv444p12le", ("4:4:4", 12)),
        ("gray", ("4:0:0", 8)),
        ("gray10le", ("4:0:0", 10)),
        ("gbrp", None),  # H.264 and HEVC can hold RGB; decoded as 4:4:4 its colours would be wrong
        ("yuva420p", None),
        ("yuv440p", None),
        ("yuv411p", None),
        ("none such", None),
    ],
)
def test_layout_of_pixel_formats(pixel_format: str, layout: tuple[str, int] | None) -> None:
    assert layout_of(pixel_format) == layout


#: A fake driver with the capabilities of Turing, GA100 and Hopper (NVDEC Application Note 13.0, table 1): no AV1, H.264 in 8-bit 4:2:0
#: only, HEVC in 4:4:4 too. It uses the SDK's struct where the header is installed.
DRIVER = """
#if defined(__has_include)
#if __has_include(<ffnvcodec/dynlink_cuviddec.h>)
#include <ffnvcodec/dynlink_cuda.h>
#include <ffnvcodec/dynlink_cuviddec.h>
#define HAVE_HEADER
#endif
#endif
#ifndef HAVE_HEADER
typedef struct {
  int eCodecType, eChromaFormat; unsigned nBitDepthMinus8, reserved1[3];
  unsigned char bIsSupported, nNumNVDECs; unsigned short nOutputFormatMask;
  unsigned nMaxWidth, nMaxHeight, nMaxMBCount; unsigned short nMinWidth, nMinHeight;
  unsigned char bIsHistogramSupported, nCounterBitDepth; unsigned short nMaxHistogramBins; unsigned reserved3[10];
} CUVIDDECODECAPS;
#endif
unsigned size(void) { return sizeof(CUVIDDECODECAPS); }
int cuvidGetDecoderCaps(CUVIDDECODECAPS *caps) {
  int codec = caps->eCodecType, chroma = caps->eChromaFormat, more = caps->nBitDepthMinus8;
  if (codec > 11 || more > 8) return 1;
  int plain = chroma == 1 && more == 0;
  caps->bIsSupported = codec == 4 ? plain : codec == 8 ? chroma == 1 || chroma == 3 : codec == 9 ? chroma == 1 : 0;
  if (!caps->bIsSupported) return 0;
  caps->nNumNVDECs = 7;
  caps->nOutputFormatMask = chroma == 3 && more ? 8 : more ? 3 : 1;
  caps->nMaxWidth = codec == 8 ? 8192 : 4096;
  caps->nMaxHeight = codec == 8 ? 8176 : 4080;
  caps->nMaxMBCount = 65536;
  caps->nMinWidth = codec == 8 ? 144 : 48;
  caps->nMinHeight = codec == 8 ? 142 : 16;
  caps->reserved3[9] = 1;
  return 0;
}
"""


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ctypes.CDLL]:
    """Compile the fake driver and use it instead of NVIDIA's, without a GPU context."""
    if shutil.which("gcc") is None or sys.platform != "linux":
        pytest.skip("needs gcc on Linux")
    (tmp_path / "driver.c").write_text(DRIVER)
    library = tmp_path / "libnvcuvid.so.1"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, tmp_path / "driver.c"], check=True)
    monkeypatch.setattr(nvdec, "_LIBRARY", str(library))
    monkeypatch.setattr(cuda_driver, "primary_context", lambda number: contextlib.nullcontext())
    nvdec.caps.cache_clear()
    yield ctypes.CDLL(str(library))
    nvdec.caps.cache_clear()


def test_caps_of_a_fake_driver(driver: ctypes.CDLL) -> None:
    assert driver.size() == ctypes.sizeof(nvdec.DecodeCaps)
    assert nvdec.why_no_nvdec() is None
    found = nvdec.caps("hevc", "4:2:0", 8)
    assert found == Caps(supported=True, min_width=144, min_height=142, max_width=8192, max_height=8176, max_macroblocks=65536)
    assert nvdec.caps("av1", "4:2:0", 8) == Caps(supported=False)
    assert nvdec.caps("hevc", "4:2:0", 10).supported, "DALI requests NV12 for ten bits too"
    assert not nvdec.caps("hevc", "4:4:4", 10).supported, "it has no NV12 output, the only format that DALI requests"
    with pytest.raises(FlowlessError, match=r"does not report what it decodes \(cuvidGetDecoderCaps: CUDA error 1\)"):
        nvdec.caps("h264", "4:2:0", 17)


@pytest.mark.parametrize(
    ("stream", "reason"),
    [
        (Stream(codec="h264", pixel_format="yuv420p", width=320, height=240), None),
        (Stream(codec="h264", width=320, height=240), None),
        (Stream(codec="h264", pixel_format="yuv420p10le", width=320, height=240), "h264 4:2:0 10 bits: not decoded"),
        (Stream(codec="h264", pixel_format="yuv422p", width=320, height=240), "h264 4:2:2 8 bits: not decoded"),
        (Stream(codec="h264", pixel_format="gbrp", width=320, height=240), "h264 gbrp: no chroma format that NVDEC supports"),
        (Stream(codec="av1", pixel_format="yuv420p", width=320, height=240), "av1 4:2:0 8 bits: not decoded"),
        (Stream(codec="hevc", pixel_format="yuv444p", width=320, height=240), None),
        (Stream(codec="hevc", width=320, height=128), "hevc 4:2:0 8 bits: 320x128 is smaller than 144x142"),
        (Stream(codec="mpeg2video", width=320, height=240), "mpeg2video: DALI does not decode it with NVDEC"),
    ],
)
def test_why_not(driver: ctypes.CDLL, stream: Stream, reason: str | None) -> None:
    assert nvdec.why_not(stream) == reason


def index_of(*videos: VideoRecord) -> DatasetIndex:
    named = tuple(replace(video, id=str(place), path=f"{place}.mp4") for place, video in enumerate(videos))
    return DatasetIndex(root=Path(), labels=("a",), videos=named)


INFO = VideoInfo(frames=9, fps=25.0, width=320, height=240, codec="h264", pixel_format="yuv420p", key_frames=CompactInts([0]))


def record(**changes: Any) -> VideoRecord:
    return VideoRecord(id="", path="", label=0, frames=9, info=replace(INFO, **changes))


VIDEO = record()


def test_pyav_decodes_what_nvdec_does_not(driver: ctypes.CDLL) -> None:
    pytest.importorskip("nvidia.dali")
    from flowless.pipeline.loading.frame_source import decoders_for

    av1, avi = record(codec="av1"), record(key_frames=CompactInts())
    sizes = {"codec": "hevc", "width": 130, "height": 320}
    index = index_of(VIDEO, av1, VIDEO, avi, av1, record(**sizes, rotation=90), record(**sizes))
    found = decoders_for(index, device="gpu", decoder="auto")
    assert found.by_dali == {0, 2}
    assert found.frames == "both"
    assert found.reasons == {
        "av1 4:2:0 8 bits: not decoded": 2,
        "its time stamps do not identify frames, and only PyAV counts frames": 1,
        "hevc 4:2:0 8 bits: 320x130 is smaller than 144x142": 1,
        "hevc 4:2:0 8 bits: 130x320 is smaller than 144x142": 1,
    }
    assert decoders_for(index_of(VIDEO), device="gpu", decoder="auto").frames == "dali"
    assert decoders_for(index_of(av1), device="gpu", decoder="auto").frames == "pyav"
    assert not decoders_for(index, device="gpu", decoder="pyav").by_dali
    with pytest.raises(
        FlowlessError, match=r"can decode no video of the index: av1 4:2:0 8 bits: not decoded\. Use decoder 'auto' or 'pyav'"
    ):
        decoders_for(index_of(av1), device="gpu", decoder="dali")


def test_pyav_decodes_without_libnvcuvid(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container with the compute but not the video capability of the driver."""
    pytest.importorskip("nvidia.dali")
    from flowless.pipeline.loading.frame_source import decoders_for

    if cuda_driver.compute_capability() is not None:
        pytest.skip("there is a GPU here")
    assert nvdec.why_no_nvdec() == "No NVIDIA GPU can be used here (no driver, or no device)."
    monkeypatch.setattr(cuda_driver, "primary_context", lambda number: contextlib.nullcontext())
    assert "the driver's libnvcuvid.so.1 does not load" in (nvdec.why_no_nvdec() or "")
    found = decoders_for(index_of(VIDEO, VIDEO), device="gpu", decoder="auto")
    assert (found.frames, found.by_dali) == ("pyav", frozenset())
    assert [("libnvcuvid.so.1 does not load" in reason, count) for reason, count in found.reasons.items()] == [(True, 2)]
    with pytest.raises(FlowlessError, match=r"libnvcuvid\.so\.1 does not load.*Use decoder 'auto' or 'pyav'"):
        decoders_for(index_of(VIDEO), device="gpu", decoder="dali")
