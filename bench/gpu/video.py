"""The parts `videos`, `decode` and `files`: DALI's decoder frame for frame against PyAV, and the speed from file to scores."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from flowless.bench.gpu.device import need_device
from flowless.bench.gpu.engines import clip_spec
from flowless.bench.gpu.networks import forward, untrained_model
from flowless.bench.gpu.results import NotHere, Results, Settings
from flowless.errors import FlowlessError
from flowless.files import whole_folder
from flowless.pipeline.clip.spec import ClipSpec

#: Codec -> FFmpeg's encoder, its options and a container. With B-frames the order of decoding is not that of presentation.
_ENCODERS: dict[str, tuple[str, dict[str, str], str]] = {
    "h264": ("libx264", {"bf": "3", "g": "48"}, ".mp4"),
    "hevc": ("libx265", {"preset": "fast", "x265-params": "log-level=error:keyint=48:bframes=3"}, ".mp4"),
    "av1": ("libsvtav1", {"preset": "10", "g": "48"}, ".mp4"),
    "vp9": ("libvpx-vp9", {"deadline": "realtime", "cpu-used": "8", "g": "48"}, ".webm"),
    "mpeg4": ("mpeg4", {"g": "24", "bf": "2"}, ".mp4"),
}


def videos(results: Results) -> None:
    """Write videos of each codec; for a rehearsal one of the codec that DALI decodes on a CPU."""
    from flowless.bench.lib.sample_videos import SIZES, sample_frames
    from flowless.pipeline.video.encode import write_video

    codecs, count = _films(results.settings)

    def write(codec: str) -> None:
        encoder, options, suffix = _ENCODERS[codec]
        with whole_folder(results.settings.folder / "videos" / codec) as draft:
            for number, (width, height) in enumerate(SIZES):
                scene = sample_frames(np.random.default_rng(number), width=width, height=height, frames=count)
                write_video(draft / "all" / f"{number}{suffix}", scene, codec=encoder, options=options)

    for codec in codecs:
        results.attempt(codec, partial(write, codec), may_refuse=True)


def decode(results: Results) -> None:
    """Compare frames of the loader, by either decoder, with those that PyAV decodes on the CPU."""
    need_device(results.settings)
    codecs, frames = _films(results.settings)
    for codec in codecs:
        for decoder in ("pyav", "dali"):
            for count in (frames, 9):
                what = f"{codec}: {count} frames by {decoder}"
                results.attempt(what, partial(_compare, results, what, codec, decoder, count))


def _compare(results: Results, what: str, codec: str, decoder: str, count: int) -> None:
    """Check that each of `count` frames of each video is close to its own true frame, and to no other one closer."""
    from flowless.pipeline.clip.sampling import clip_indices

    index = video_index(results.settings, codec)
    every = ClipSpec(segments=_films(results.settings)[1], frames_per_segment=1, height=128, width=128, short_side=128)
    truth = _clips(_loader(index, every, device="cpu", decoder="pyav"))
    found = _clips(_loader(index, replace(every, segments=count), device=results.settings.device, decoder=decoder))
    places = np.ravel(clip_indices(every.segments, segments=count, frames_per_segment=1, rule="centre")).tolist()
    wrong, worst = [], 0.0
    for name, frames in found.items():
        for place, frame in zip(places, frames, strict=True):
            distances = np.abs(truth[name].astype(np.int16) - frame).mean(axis=(1, 2, 3))
            worst = max(worst, float(distances[place]))
            if distances[place] > distances.min() + 0.25:
                wrong.append(f"{name} {place}")
    # Two decoders' conversions from YUV differ by a grey level or so.
    passed = bool(truth) and set(found) == set(truth) and not wrong and worst <= 4
    results.check(what, passed=passed, videos=len(found), wrong=wrong[:8], worst_mean_difference=worst)


def files(results: Results) -> None:
    """Count clips a second that are read, decoded, resized and scored in bf16."""
    settings = results.settings
    device, spec = need_device(settings), clip_spec(settings)
    model = untrained_model(settings).eval().to(device)
    index = video_index(settings, first_codec(settings))
    many = replace(index, videos=tuple(replace(video, id=f"{video.id}#{copy}") for copy in range(500) for video in index.videos))

    def measure(decoder: str) -> None:
        clips, start = 0, 0.0
        for number, batch in enumerate(_loader(many, spec, device=settings.device, decoder=decoder)):
            forward(model, batch.clips.squeeze(1).to(device)).cpu()
            if number == 2:  # the loader's graph is built, and its queue in its steady state
                start = time.monotonic()
            elif number > 2:
                clips += len(batch.ids)
                if time.monotonic() > start + 15 * settings.most_seconds:
                    break
        results.row(decoder=decoder, clips=clips, clips_per_s=round(clips / (time.monotonic() - start), 1))

    for decoder in ("pyav", "dali"):
        results.attempt(decoder, partial(measure, decoder))


def _films(settings: Settings) -> tuple[list[str], int]:  # codecs, frames of a video
    return (["vp9"], 40) if settings.rehearsal else (list(_ENCODERS), 100)


def first_codec(settings: Settings) -> str:
    """Return the codec whose decoding is timed."""
    return _films(settings)[0][0]


def video_index(settings: Settings, codec: str) -> Any:
    """Return the index of the videos of a codec; raise NotHere where the part `videos` wrote none."""
    from flowless.pipeline.dataset.scan import scan

    if not (settings.folder / "videos" / codec).is_dir():
        raise NotHere(f"the part videos wrote no {codec}; see there")
    return scan(settings.folder / "videos" / codec, out=settings.folder / f"{codec}.index.jsonl")


def _loader(index: Any, spec: ClipSpec, *, device: Any, decoder: Any) -> Any:
    """Return a loader; raise NotHere, with the driver's reason, where DALI does not decode the videos here."""
    from flowless.pipeline.loading.augment import LoaderOptions
    from flowless.pipeline.loading.loader import ClipLoader

    options = LoaderOptions(device=device.replace("cuda", "gpu"), decoder=decoder, max_bad_share=1.0)
    try:
        return ClipLoader(index, spec, rule="centre", batch_size=8, options=options)
    except FlowlessError as error:
        raise NotHere(str(error)) from error


def _clips(loader: Any) -> dict[str, np.ndarray]:
    """Return each video's clip as frames uint8 `[K, H, W, 3]`."""
    found = {name: clip.cpu().numpy() for batch in loader for name, clip in zip(batch.ids, batch.clips, strict=True)}
    return {name: clip.reshape(-1, *clip.shape[-3:]) for name, clip in found.items()}
