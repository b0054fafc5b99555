"""The part `decode` of the GPU suite: DALI's decoder frame for frame against PyAV, and clips a second of the loader on both.

Which frame a decoder gave is read off the frame: films made here carry their frames' numbers as ten black or white cells.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowless.bench.gpu.clock import need_device
from flowless.bench.gpu.ledger import Ledger, NotHere, Settings
from flowless.bench.gpu.videos import clip_loader, index_of, made_videos

#: Mean difference, in grey levels, of two decoders' pictures: their conversions from YUV differ by a level or so (PyAV's rounds
#: down), and a wrong frame or a picture turned wrongly by tens.
_COLOUR = 4.0
_BITS, _CELL = 10, 32
#: NVDEC wants 144 x 144 at least of HEVC, 128 x 128 of VP9 and AV1.
_WIDTH, _HEIGHT = _BITS * _CELL, 5 * _CELL
#: FFmpeg's encoders of what DALI decodes on a GPU: with frames that refer to later ones, so that the order of decoding is not
#: that of showing.
_ENCODERS: dict[str, tuple[str, dict[str, str]]] = {
    "h264": ("libx264", {"bf": "3", "g": "48", "preset": "fast"}),
    "hevc": ("libx265", {"preset": "fast", "x265-params": "log-level=error:keyint=48:bframes=3"}),
    "av1": ("libsvtav1", {"preset": "10", "g": "48"}),
    "vp9": ("libvpx-vp9", {"deadline": "realtime", "cpu-used": "8", "g": "48"}),
    "mpeg4": ("mpeg4", {"g": "24", "bf": "2"}),
}
_SUFFIX = {"vp9": ".webm"}


def decode(ledger: Ledger) -> None:
    """Check indices and colours of every codec, then time the loader."""
    device = need_device(ledger.settings)
    import flowless.pipeline.loading.loader  # noqa: F401  says at once which library is missing

    where = "gpu" if device.type == "cuda" else "cpu"
    folder = ledger.settings.folder / "films"
    for codec in _codecs(ledger, where):
        with ledger.trial(f"{codec} indices"):
            _check_indices(ledger, codec, folder, device_id=0 if where == "gpu" else None)
    with ledger.trial("loader"):
        _loader(ledger, made_videos(ledger.settings), where)
    if ledger.settings.videos:
        with ledger.trial("real videos"):
            _colours(ledger, index_of(Path(ledger.settings.videos), ledger.settings, "real"), where, name="real videos")


def _codecs(ledger: Ledger, where: str) -> list[str]:
    """Return which films can be tried; what the driver says of each goes into the facts, and a refused one is left out with it."""
    from flowless.pipeline.loading import nvdec
    from flowless.pipeline.loading.dali_graph import DALI_CPU_CODECS

    if where == "cpu":
        return sorted(DALI_CPU_CODECS & set(_ENCODERS))
    with ledger.trial("NVDEC"):
        if reason := nvdec.why_no_nvdec():
            raise NotHere(reason)
        tried = {codec: nvdec.caps(codec, "4:2:0", 8) for codec in sorted(_ENCODERS)}
        ledger.fact(nvdec={codec: asdict(caps) for codec, caps in tried.items()})
        refused = {codec: caps.refuses(_WIDTH, _HEIGHT) for codec, caps in tried.items()}
        for codec, why in refused.items():
            if why:
                ledger.leave_out(f"{codec} indices", f"not here: the GPU's driver says: {codec} 4:2:0 8 bits: {why}")
        return [codec for codec, why in refused.items() if not why]
    return []


def numbered_frames(count: int) -> Iterator[NDArray[np.uint8]]:
    """Yield frames that carry their number: cell k is white where bit k is set; below it, drifting noise for the encoder."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (_HEIGHT // 8, _WIDTH // 8 + count, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    for number in range(count):
        frame = noise[:, number : number + _WIDTH].copy()
        for bit in range(_BITS):
            frame[: 2 * _CELL, bit * _CELL : (bit + 1) * _CELL] = 235 if number >> bit & 1 else 16
        yield frame


def numbers_of(frames: NDArray[Any]) -> list[int]:
    """Read the numbers off frames uint8 `[K, H, W, 3]`; -1 where a cell is neither black nor white."""
    found = []
    for frame in frames:
        inner = [frame[8 : 2 * _CELL - 8, bit * _CELL + 8 : (bit + 1) * _CELL - 8].mean() for bit in range(_BITS)]
        clear = all(value < 70 or value > 180 for value in inner)
        found.append(sum(1 << bit for bit, value in enumerate(inner) if value > 180) if clear else -1)
    return found


def film(folder: Path, codec: str, *, count: int) -> Path:
    """Write a numbered film; raise NotHere where PyAV has no such encoder."""
    from av.codec import Codec
    from av.codec.codec import UnknownCodecError

    from flowless.pipeline.video.encode import write_video

    encoder, options = _ENCODERS[codec]
    try:
        Codec(encoder, "w")
    except UnknownCodecError as error:
        raise NotHere(f"PyAV here has no encoder {encoder}") from error
    path = folder / f"{codec}{_SUFFIX.get(codec, '.mp4')}"
    write_video(path, numbered_frames(count), codec=encoder, options=options)
    return path


def _check_indices(ledger: Ledger, codec: str, folder: Path, *, device_id: int | None) -> None:
    from flowless.pipeline.video.reader import VideoReader

    count = 60 if ledger.settings.rehearsal else 120 if ledger.settings.quick else 300
    path = film(folder, codec, count=count)
    sparse = np.unique(np.random.default_rng(1).integers(0, count, 9))
    for what, ordinals in (("every frame", np.arange(count)), ("nine frames", sparse), ("the last", np.array([count - 1]))):
        pictures = by_dali(path, ordinals, device_id=device_id)
        wrong = [int(asked) for asked, got in zip(ordinals, numbers_of(pictures), strict=True) if asked != got]
        with VideoReader(path) as video:
            off = np.abs(pictures.astype(np.int16) - video.stack(ordinals)).mean()
        # Edges of full contrast: colour is halved in size there, and each decoder has its way of doubling it again.
        ledger.check(f"{codec}: {what}", passed=not wrong and len(pictures) == len(ordinals), wrong=wrong[:8], mean_colour_difference=off)


def by_dali(path: Path, ordinals: NDArray[Any], *, device_id: int | None) -> NDArray[np.uint8]:
    """Return a film's frames `[K, H, W, 3]` by presentation ordinal, decoded by DALI, not resized."""
    import torch

    from flowless.pipeline.clip.spec import ClipSpec
    from flowless.pipeline.loading.augment import View
    from flowless.pipeline.loading.dali_graph import ClipGraph, GraphInput, region_inputs

    spec = ClipSpec(height=_HEIGHT, width=_WIDTH, short_side=_WIDTH)
    whole = View(top=0, left=0, bottom=_HEIGHT, right=_WIDTH)
    item = GraphInput(
        **region_inputs([whole], spec, width=_WIDTH, height=_HEIGHT),
        order=np.arange(len(ordinals), dtype=np.int32),
        colour=np.tile(np.array([1, 1, 1, 0], np.float32), (len(ordinals), 1)),
        encoded=np.fromfile(path, np.uint8),
        ordinals=ordinals.astype(np.int32),
    )
    graph = ClipGraph(batch_size=1, threads=2, frames="dali", colour=False, device_id=device_id)
    return torch.from_dlpack(graph.run([item]))[0].cpu().numpy()


def _loader(ledger: Ledger, index: Any, where: str) -> None:
    """Check the loader's pictures against PyAV's on the CPU, and time all its ways over the same clips."""
    _colours(ledger, index, where, name="made videos")
    copies = 2 if ledger.settings.rehearsal else 8 if ledger.settings.quick else 32
    many = replace(index, videos=tuple(replace(video, id=f"{video.id}#{copy}") for copy in range(copies) for video in index.videos))
    ways = [("cpu", "pyav"), (where, "pyav"), (where, "dali")]
    for device, decoder in dict.fromkeys(ways):
        name = f"loader on the {device}, {decoder}"
        if not ledger.in_time(name):
            continue
        with ledger.trial(name):
            loader = clip_loader(many, ledger.settings, device=device, decoder=decoder)
            sum(len(batch.ids) for batch in loader)  # the graph is built, files are in the cache
            started = time.perf_counter()
            clips = sum(len(batch.ids) for batch in loader)
            seconds = time.perf_counter() - started
            ledger.row(
                loader=device,
                decoder=decoder,
                clips=clips,
                decoded_by=dict(loader.decoded_by),
                seconds=round(seconds, 3),
                clips_per_s=round(clips / seconds, 2),
            )


def _colours(ledger: Ledger, index: Any, where: str, *, name: str) -> None:
    """Compare clips of the loader's ways with those of PyAV and the CPU."""
    from flowless.pipeline.loading.dali_graph import TOLERANCE_MAX, TOLERANCE_MEAN

    settings = ledger.settings
    truth = _clips(index, settings, device="cpu", decoder="pyav")
    for decoder in ("pyav", "dali"):
        what = f"{name}: {decoder} on the {where}"
        # DALI on a CPU has few codecs, and says so.
        with ledger.trial(what, may_refuse=where == "cpu"):
            found = _clips(index, settings, device=where, decoder=decoder)
            offs = {key: np.abs(found[key].astype(np.int16) - truth[key]) for key in sorted(truth) if key in found}
            mean = max((float(off.mean()) for off in offs.values()), default=float("nan"))
            largest = max((int(off.max()) for off in offs.values()), default=0)
            passed = set(found) == set(truth) and bool(truth)
            passed = passed and (mean <= _COLOUR if decoder == "dali" else mean <= TOLERANCE_MEAN and largest <= TOLERANCE_MAX)
            ledger.check(what, passed=passed, videos=len(found), worst_mean=mean, largest=largest)


def _clips(index: Any, settings: Settings, *, device: str, decoder: str) -> dict[str, NDArray[np.uint8]]:
    return {
        name: clip.cpu().numpy()
        for batch in clip_loader(index, settings, device=device, decoder=decoder)
        for name, clip in zip(batch.ids, batch.clips, strict=True)
    }
