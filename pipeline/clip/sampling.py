"""Frame sampling: pure functions from the number of frames to the frame indices of a clip, after the papers' published code.

The rules, for n = 13 frames, N = 3 segments, m = 2 adjacent frames (`x` is sampled)::

    centre           ..xx..xx..xx.     the middle of each segment
    two-clip         the above, and  xx..xx..xx...     the start of each segment
    train            one random start in each segment
    ten-draw         ten times that, for testing (STM, section 4.2: "we randomly sample 10 times from the full-length video")
    dense            N stacks spread over 64 consecutive frames, from ten starts (testing) or a random one (training)
    one-dense        the same from one start, in the middle (the code validates on a random one)
    consecutive      ...xxxxxx....     N x m consecutive frames (Dynamic Appearance on Kinetics, section 4), from the middle of the
                     video (testing) or a random start (training)
    ten-consecutive  the same from ten starts, evenly spaced from the first to the last possible

Starts of several dense or consecutive clips are `numpy.linspace`'s, as in the code of TSM and PAN (Dynamic Appearance specifies none and
has published no code that we know of). Ten draws are the same in every run and on every machine: draw d uses
`sample_rng(0, d, "n frames")`, n being the number of frames. A checkpoint's and a bundle's evaluation therefore sample the same frames,
without a data set's ids; two videos of the same length are sampled alike.

Intended differences from the published code: indices are 0-based, and the stacks of a dense clip do not overlap. The code
puts dense stacks 64 // N frames apart; where m is larger (16 x 8) or N is above 64 (0 frames apart in the code), they lie m frames apart
here, over N x m frames.

Short videos: N segments, m frames per stack, n frames in the video; "fails" refers to the published code of TSN, TSM and PAN.

================  ====================  ================================  =======================================================
rule              video                 published code                    here
================  ====================  ================================  =======================================================
centre, two-clip  m <= n < N x m        stacks overlap, and repeat where  the same
                                        n < N + m - 1
centre            n < N + m             validation: all stacks at frame   as in testing
                                        0
centre, two-clip  m - 3 < n < m         all stacks at frame 0, past the   the same
                                        end the last frame
centre, two-clip  n <= m - 3            fails: a frame before the first   all stacks at frame 0, past the end the last frame
train, ten-draw   n > N, m <= n < N +   sorted random starts, which may   the same
                  m - 1                 repeat (TSN's own fails)
train, ten-draw   N < n < m             fails: a draw from no frames      all stacks at frame 0, past the end the last frame
train, ten-draw   n <= N, n < N + m -   all stacks at frame 0             the same
                  1
dense             n < 64                from frame 0; a stack past the    the same; all clips are one
                                        end begins n frames earlier, one
                                        that reaches the end repeats the
                                        last frame
dense             n < N x m, 64 < N x   stacks overlap                    as above, the stacks m frames apart
                  m
consecutive       n < N x m             none published                    as dense
all, in training  n < 3                 left out of the list              taken, as above
================  ====================  ================================  =======================================================
"""

from __future__ import annotations

import hashlib
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from flowless.errors import FlowlessError
from flowless.pipeline.clip.spec import CLIPS, Rule

#: Consecutive frames over which dense sampling spreads a clip, where its stacks fit.
DENSE_SPAN = 64
#: Clips of a video in dense testing.
DENSE_VIEWS = CLIPS["dense"]
_DENSE, _CONSECUTIVE = ("dense", "one-dense"), ("consecutive", "ten-consecutive")
#: Seed of the random draws of an evaluation.
_DRAW_SEED = 0


def clip_indices(
    num_frames: int,
    *,
    segments: int,
    frames_per_segment: int,
    rule: Rule,
    rng: np.random.Generator | None = None,
) -> NDArray[np.int64]:
    """Return the frame indices of a clip.

    Args:
        num_frames: Frames n in the video, at least 1.
        segments: Segments N, at least 1.
        frames_per_segment: Adjacent frames m taken from each segment, at least 1; past the end the last frame repeats.
        rule: `train` needs `rng`. The other rules are for testing and give `spec.CLIPS[rule]` clips; with `rng`, the dense, consecutive
            and drawn rules give one random clip, for training.
        rng: Random generator, from `sample_rng`; `centre` and `two-clip` ignore it.

    Returns:
        int64 `[views, N, m]`, each from 0 to `num_frames` - 1.

    Raises:
        FlowlessError: A count is below 1, the rule is unknown, or `train` is used without `rng`.
    """
    counts = {"num_frames": num_frames, "segments": segments, "frames_per_segment": frames_per_segment}
    wrong = [f"{name} is {value!r}; it must be an integer of at least 1" for name, value in counts.items() if not _is_count(value)]
    if rule not in get_args(Rule):
        wrong.append(f"rule is {rule!r}; it must be one of {', '.join(get_args(Rule))}")
    if rule == "train" and rng is None:
        wrong.append("rule 'train' samples at random; pass rng=sample_rng(seed, epoch, video_id)")
    if wrong:
        raise FlowlessError("clip_indices: " + "; ".join(wrong) + ".")
    n, m = int(num_frames), int(frames_per_segment)
    if rule in {"train", "ten-draw"}:
        draws = [rng] if rng is not None else [sample_rng(_DRAW_SEED, draw, f"{n} frames") for draw in range(CLIPS["ten-draw"])]
        starts = np.concatenate([_train(n, segments, m, draw) for draw in draws])
    elif rule in {"centre", "two-clip"}:
        starts = _evaluation(n, segments, m, views=2 if rule == "two-clip" else 1)
    else:
        starts = _spread(n, segments, m, rule=rule, rng=rng)
    # A stack is the start and the frames after it; past the end of the video the last frame repeats.
    return np.minimum(starts[:, :, None] + np.arange(m, dtype=np.int64), n - 1)


def sample_rng(seed: int, epoch: int, video_id: str) -> np.random.Generator:
    """Return the random generator for one video in one epoch.

    It depends only on the three arguments, so a sample is independent of worker, rank and batch.
    """
    digest = hashlib.blake2b(video_id.encode("utf-8", "surrogateescape"), digest_size=16).digest()
    entropy = np.frombuffer(digest, dtype="<u4").tolist()
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed % 2**64, epoch % 2**64, *entropy])))


def _is_count(value: object) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool) and int(value) >= 1


def _evaluation(n: int, segments: int, m: int, *, views: int) -> NDArray[np.int64]:
    # Doubles in this order of operations, truncated towards zero: another order changes some indices by one.
    tick = (n - m + 1) / float(segments)
    offsets = (tick / 2.0, 0.0)[:views]
    starts = np.array([[int(offset + tick * k) for k in range(segments)] for offset in offsets], dtype=np.int64)
    # A video shorter than a stack has a negative tick; the nearest frame is its first.
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


def frames_spanned(rule: Rule, *, segments: int, frames_per_segment: int) -> int:
    """Return the least number of frames of a video in which a clip's stacks are in temporal order; in shorter ones, dense clips wrap.

    It is 1 for all rules but dense and consecutive.
    """
    if rule not in {*_DENSE, *_CONSECUTIVE}:
        return 1
    return max(DENSE_SPAN if rule in _DENSE else 1, segments * _stride(segments, frames_per_segment, rule=rule))


def _stride(segments: int, m: int, *, rule: Rule) -> int:
    # At the published distance of 64 // N, stacks longer than that would overlap, and for N > 64 the distance would be 0.
    return max(DENSE_SPAN // segments, m) if rule in _DENSE else m


def _spread(n: int, segments: int, m: int, *, rule: Rule, rng: np.random.Generator | None) -> NDArray[np.int64]:
    """Return the starts of equally spaced stacks, for one or more clips within the video."""
    dense = rule in _DENSE
    stride = _stride(segments, m, rule=rule)
    num_starts = max(1, 1 + n - frames_spanned(rule, segments=segments, frames_per_segment=m))
    if rng is not None:
        # The published dense code never draws the last start.
        first = rng.integers(max(1, num_starts - 1) if dense else num_starts, size=1)
    elif rule in {"one-dense", "consecutive"}:
        first = np.array([(num_starts - 1) // 2])
    else:
        first = np.linspace(0, num_starts - 1, num=DENSE_VIEWS, dtype=np.int64)
    return (first[:, None] + np.arange(segments, dtype=np.int64) * stride) % n
