"""The part `end-to-end`: `predict_many(decode="gpu")` beside the decoder alone and the engine alone, the slower of which bounds it."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Generator
from contextlib import closing
from typing import Any

import numpy as np

from flowless.bench.gpu.engines import load_bundle
from flowless.bench.gpu.results import NotHere, Results
from flowless.bench.gpu.video import first_codec, video_index
from flowless.bench.lib.goals import goal
from flowless.pipeline.clip.sampling import clip_indices

#: Clips in one call, as `predict_many` has them.
_BATCH = 8
#: The least share of the slower one's rate.
_WANTED = 0.9


def end_to_end(results: Results) -> None:
    """Count videos a second by the decoder alone, by the engine alone, and by both as `predict_many` runs them, alternately."""
    import flowless
    from flowless.engines.decoded_scores import why_no_dali, why_not_gpu

    settings = results.settings
    if reason := why_no_dali() if settings.rehearsal else why_not_gpu():
        raise NotHere(reason)
    device_id = None if settings.rehearsal else 0
    engine = flowless.load(load_bundle(settings).folder, "onnxruntime" if settings.rehearsal else None)
    if not settings.rehearsal and engine.device != "GPU":
        raise NotHere(f"no engine that runs on the GPU: {engine.why}")
    index = video_index(settings, first_codec(settings))
    paths = [str(index.path_of(video)) for video in index.videos]

    def predicted() -> Generator[int, None, None]:
        with closing(engine._predict_decoded(itertools.cycle(paths), 1, threads=None, device_id=device_id)) as predictions:
            for prediction in predictions:
                if prediction.decoder != "dali":
                    raise NotHere(f"DALI does not decode {prediction.video}: {prediction.fallback or prediction.error}")
                yield 1

    ways: dict[str, Callable[[], Generator[int, None, None]]] = {
        "decoder": lambda: _decoded(index, engine.spec, device_id),
        "engine": lambda: _scored(engine),
        "predict_many": predicted,
    }
    rates: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(1 if settings.rehearsal else 3):
        for way, run in ways.items():
            rates[way].append(_rate(run(), seconds=5 * settings.most_seconds))
    medians = {way: float(np.median(found)) for way, found in rates.items()}
    share = medians["predict_many"] / min(medians["decoder"], medians["engine"])
    results.row(engine=f"{engine.target} {engine.precision}", **{f"{way}_videos_per_s": round(rate, 2) for way, rate in medians.items()})
    results.row(**goal("predict_many(decode='gpu') to the slower of decoder and engine", _WANTED, None if settings.rehearsal else share))


def _rate(done: Generator[int, None, None], *, seconds: float) -> float:
    """Return the videos a second of an iterator that yields after so many of them; the first three batches are not counted."""
    count = 0
    while count < 3 * _BATCH:
        count += next(done)
    counted, started = 0, time.perf_counter()
    while (spent := time.perf_counter() - started) < seconds or counted < _BATCH:
        counted += next(done)
    done.close()
    return counted / spent


def _scored(engine: Any) -> Generator[int, None, None]:
    """Score clips that lie on the engine's device already."""
    from flowless.engines.device.device_array import place

    clips = place(np.random.default_rng(0).integers(0, 256, (_BATCH, *engine.spec.shape), dtype=np.uint8), engine.gpu)
    while True:
        engine(clips)
        yield _BATCH


def _decoded(index: Any, spec: Any, device_id: Any) -> Generator[int, None, None]:
    """Decode the frames of the videos' clips, and do nothing with them."""
    from nvidia.dali import fn, types
    from nvidia.dali.pipeline import pipeline_def

    from flowless.machine import usable_cores

    loose: Any = fn
    kinds: Any = types

    @pipeline_def(batch_size=_BATCH, num_threads=usable_cores(), device_id=device_id, prefetch_queue_depth=1)
    def decoding() -> Any:
        encoded = loose.external_source(name="encoded", ndim=1, dtype=kinds.UINT8, no_copy=True)
        wanted = loose.external_source(name="wanted", ndim=1, dtype=kinds.INT32, no_copy=True)
        return loose.decoders.video(encoded, frames=wanted, device="cpu" if device_id is None else "mixed")

    feeds = []
    for video in index.videos:
        frames = clip_indices(video.frames, segments=spec.segments, frames_per_segment=spec.frames_per_segment, rule=spec.sampling)
        feeds.append((np.fromfile(index.path_of(video), np.uint8), np.unique(frames).astype(np.int32)))
    videos, pipeline = itertools.cycle(feeds), decoding()
    while True:
        some = list(itertools.islice(videos, _BATCH))
        pipeline.run(encoded=[item[0] for item in some], wanted=[item[1] for item in some])
        yield _BATCH
