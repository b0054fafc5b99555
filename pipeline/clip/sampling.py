"""Which frames make a clip: pure functions of the number of frames, after PAN's published code (0-based here).

Drawn for n = 13 frames, N = 3 segments, m = 2 adjacent frames (`x` is taken)::

    centre    ..xx..xx..xx.      the middle of each segment
    two-clip  the above, and  xx..xx..xx...      the start of each segment
    train     one random place in each segment
    dense     N frames spread over 64 consecutive ones, from ten starts (testing) or a random one (training)

Where the product differs from the published code on purpose: indices are 0-based; a video of one frame, on which the
published code fails, and short videos in validation, for which it repeats the first frame, both follow the test rule.
"""

from __future__ import annotations

import hashlib
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from flowless.errors import FlowlessError
from flowless.pipeline.clip.spec import CLIPS, Rule

#: Consecutive frames that dense sampling spreads a clip over.
DENSE_SPAN = 64
#: Clips that dense sampling takes of a video when testing.
DENSE_VIEWS = CLIPS["dense"]


def clip_indices(
    num_frames: int,
    *,
    segments: int,
    frames_per_segment: int,
    rule: Rule,
    rng: np.random.Generator | None = None,
) -> NDArray[np.int64]:
    """Choose the frames of a clip.

    Args:
        num_frames: Frames n in the video, at least 1.
        segments: Segments N, at least 1.
        frames_per_segment: Adjacent frames m taken from each segment, at least 1; past the end the last frame repeats.
        rule: `train` (one random place a segment; needs `rng`), `centre` (one view), `two-clip` (two views), or `dense`
            (without `rng` ten views for testing, with it one view from a random start for training).
        rng: Source of chance, from `sample_rng`. `centre` and `two-clip` leave nothing to chance and do not look at it.

    Returns:
        int64 `[views, N, m]`, each from 0 to `num_frames` - 1.

    Raises:
        FlowlessError: A count is below 1, the rule is unknown, or `train` was asked for without `rng`.
    """
    counts = {"num_frames": num_frames, "segments": segments, "frames_per_segment": frames_per_segment}
    wrong = [f"{name} is {value!r}; it must be an integer of at least 1" for name, value in counts.items() if not _is_count(value)]
    if rule not in get_args(Rule):
        wrong.append(f"rule is {rule!r}; it must be one of {', '.join(get_args(Rule))}")
    if rule == "train" and rng is None:
        wrong.append("rule 'train' places frames by chance; pass rng=sample_rng(seed, epoch, video_id)")
    if wrong:
        raise FlowlessError("clip_indices: " + "; ".join(wrong) + ".")
    n, m = int(num_frames), int(frames_per_segment)
    if rule == "train" and rng is not None:
        starts = _train(n, segments, m, rng)
    elif rule == "dense":
        starts = _dense(n, segments, rng)
    else:
        starts = _evaluation(n, segments, m, views=2 if rule == "two-clip" else 1)
    # A group is the start and the frames after it; past the end of the video the last frame stands in.
    return np.minimum(starts[:, :, None] + np.arange(m, dtype=np.int64), n - 1)


def sample_rng(seed: int, epoch: int, video_id: str) -> np.random.Generator:
    """Return the source of chance for one video in one epoch.

    It depends on the three arguments alone, so a sample stays the same whatever worker, rank or batch makes it.
    """
    digest = hashlib.blake2b(video_id.encode("utf-8", "surrogateescape"), digest_size=16).digest()
    words = np.frombuffer(digest, dtype="<u4").tolist()
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed % 2**64, epoch % 2**64, *words])))


def _is_count(value: object) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool) and int(value) >= 1


def _evaluation(n: int, segments: int, m: int, *, views: int) -> NDArray[np.int64]:
    # Doubles in this order of operations, truncated towards zero: another order moves some index by one.
    tick = (n - m + 1) / float(segments)
    offsets = (tick / 2.0, 0.0)[:views]
    starts = np.array([[int(offset + tick * k) for k in range(segments)] for offset in offsets], dtype=np.int64)
    # A video shorter than a group has a negative tick; its first frame is the nearest there is.
    return np.maximum(starts, 0)


def _train(n: int, segments: int, m: int, rng: np.random.Generator) -> NDArray[np.int64]:
    average = (n - m + 1) // segments
    if average > 0:
        starts = np.arange(segments, dtype=np.int64) * average + rng.integers(average, size=segments)
    elif n > segments:
        starts = np.sort(rng.integers(max(n - m + 1, 1), size=segments))
    else:
        starts = np.zeros(segments, dtype=np.int64)
    return starts[None].astype(np.int64)


def _dense(n: int, segments: int, rng: np.random.Generator | None) -> NDArray[np.int64]:
    places = max(1, 1 + n - DENSE_SPAN)
    # More segments than the span has frames would stand still at stride 0.
    stride = max(DENSE_SPAN // segments, 1)
    if rng is None:
        first = np.linspace(0, places - 1, num=DENSE_VIEWS, dtype=np.int64)
    elif places == 1:
        first = np.zeros(1, dtype=np.int64)
    else:
        first = rng.integers(places - 1, size=1)
    return (first[:, None] + np.arange(segments, dtype=np.int64) * stride) % n
