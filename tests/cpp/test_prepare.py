"""The C++ runtime's preparation, byte for byte Python's: resized and cropped frames, frame indices, averages over views."""

from __future__ import annotations

import shutil
import subprocess
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from PIL import Image
from video_files import frames_of, info_of

from flowless.pipeline.clip.preprocess import resize_and_crop
from flowless.pipeline.clip.sampling import clip_indices
from flowless.pipeline.clip.spec import CLIPS, CROPS, Average, ClipSpec, EvaluationRule
from flowless.pipeline.clip.view_scores import average_views

ENGINES = Path(__file__).parents[2] / "engines/cpp"
PROGRAM = Path(__file__).with_name("prepare_program.cpp")
SOURCES = [ENGINES / f"src/{name}.cpp" for name in ("status", "resample", "resample_vectors", "resize", "clip_spec", "random_draws")]
BUILDS = {
    "release": ["-O3", "-DNDEBUG"],
    "sanitized": ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
}
#: Short sides of 256: the usual centre crop, three crops, crops that are resized again, a crop that is no square, the whole short side.
SPECS = {
    "centre": ClipSpec(),
    "three": ClipSpec(height=256, width=256, crop="three"),
    "crop side": ClipSpec(crop="three", crop_side=256),
    "odd crop side": ClipSpec(height=64, width=64, crop_side=251),
    "enlarged crop": ClipSpec(height=224, width=224, crop="three", crop_side=100),
    "wide": ClipSpec(height=112, width=192, crop="three"),
    "tall": ClipSpec(height=255, width=1),
}
#: Width and height: down, up, portrait, landscape, square, as they are, 4K, odd, a few pixels, and tall (Pillow resizes down first).
SIZES = [
    *[(640, 480), (480, 640), (1280, 720), (720, 1280), (1920, 1080), (1080, 1920), (854, 480), (426, 240), (320, 240), (240, 320)],
    *[(340, 256), (256, 340), (256, 256), (257, 256), (256, 257), (257, 257), (255, 255), (341, 255), (512, 512), (513, 511)],
    *[(3840, 2160), (7, 5), (5, 7), (1, 1), (2, 1), (1, 3), (16, 16), (100, 99), (1000, 30), (30, 1000), (2047, 300), (1023, 1025)],
    *[(1080, 2400), (1125, 2436), (600, 1400), (512, 1025), (512, 1024), (512, 1023), (300, 2047), (257, 600)],
]
#: Lengths that are extreme beside their width; resized whole by Pillow, so for small networks.
EXTREME = [(1, 500), (500, 1), (3, 4000), (4000, 3), (1, 32768), (32768, 1), (32768, 20), (9, 32768), (20, 32768), (11, 23)]
SMALL = {
    "centre": ClipSpec(height=7, width=9, short_side=10),
    "three": ClipSpec(height=8, width=8, short_side=10, crop="three"),
    "crop side": ClipSpec(height=5, width=5, short_side=10, crop="three", crop_side=9),
    "one pixel": ClipSpec(height=1, width=1, short_side=1),
}


class Program:
    """A process of prepare_program.cpp, which keeps its preparers from call to call."""

    def __init__(self, path: Path) -> None:
        self._process = subprocess.Popen([path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.kernels = self._call("kernels")[0].decode().split()

    def close(self) -> None:
        _, errors = self._process.communicate(timeout=60)
        assert self._process.returncode == 0, errors.decode()

    def prepare(self, frame: np.ndarray, spec: ClipSpec, kernels: str, *, stride: int = 0) -> tuple[np.ndarray, int]:
        """Return the crops, and the number of allocations that preparing them made."""
        height, width, _ = frame.shape
        rows = np.full((height, max(stride, 3 * width)), 111, np.uint8)
        rows[:, : 3 * width] = frame.reshape(height, -1)
        data = rows.tobytes()[: (height - 1) * rows.shape[1] + 3 * width]
        numbers = (spec.height, spec.width, spec.short_side, CROPS[spec.crop], spec.crop_side or 0, width, height, rows.shape[1])
        found, allocations = self._call(f"prepare {kernels} {' '.join(map(str, numbers))}", data)
        return np.frombuffer(found, np.uint8).reshape(-1, spec.height, spec.width, 3), allocations

    def indices(self, rule: str, segments: int, frames: int, num_frames: int) -> tuple[np.ndarray, int]:
        found, allocations = self._call(f"indices {rule} {segments} {frames} {num_frames}")
        return np.frombuffer(found, np.int64).reshape(-1, segments, frames), allocations

    def average(self, views: np.ndarray, average: str) -> np.ndarray:
        return np.frombuffer(self._call(f"average {average} {' '.join(map(str, views.shape))}", views.tobytes())[0], np.float32)

    def _call(self, line: str, data: bytes = b"") -> tuple[bytes, int]:
        pipes = self._process
        assert pipes.stdin is not None
        assert pipes.stdout is not None
        pipes.stdin.write(line.encode() + b"\n" + data)
        pipes.stdin.flush()
        status, _, rest = pipes.stdout.readline().decode().strip().partition(" ")
        if status != "ok":
            pipes.kill()
            assert pipes.stderr is not None
            pytest.fail(f"{line}: {status} {rest} {pipes.stderr.read().decode()}")
        count, allocations = map(int, rest.split())
        return pipes.stdout.read(count), allocations


@pytest.fixture(scope="module")
def built(once: Callable[[str, Callable[[Path], object]], Path]) -> Callable[[str], Path]:
    """Return a function that builds the program, once."""
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler here")

    def build(name: str) -> Path:
        def compile_to(path: Path) -> None:
            command = [
                compiler,
                "-std=c++17",
                "-Wall",
                "-Wextra",
                "-Werror",
                *BUILDS[name],
                "-I",
                ENGINES / "include",
                "-I",
                ENGINES / "src",
            ]
            done = subprocess.run([*command, PROGRAM, *SOURCES, "-o", path], capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr

        return once(f"prepare-{name}", compile_to)

    return build


@pytest.fixture(scope="module")
def program(built: Callable[[str], Path]) -> Iterator[Program]:
    with closing(Program(built("release"))) as running:
        yield running


def noise(width: int, height: int) -> np.ndarray:
    """Return a frame of random pixels, half of them black or white: sums at both ends of their range."""
    rng = np.random.default_rng(width * 100_003 + height)
    frame = rng.integers(0, 256, (height, width, 3), np.uint8)
    frame[rng.integers(0, 2, (height, width)) > 0] = 255 * (width % 2)
    return frame


def check(program: Program, frame: np.ndarray, spec: ClipSpec, *, stride: int = 0) -> None:
    expected = resize_and_crop(frame[None], spec)
    for kernels in program.kernels:
        found, _ = program.prepare(frame, spec, kernels, stride=stride)
        differing = int((found != expected).sum())
        assert differing == 0, f"{kernels}: {differing} of {expected.size} bytes of a frame of {frame.shape[1]} x {frame.shape[0]}"


@pytest.mark.parametrize("name", SPECS)
def test_random_pixels_of_many_sizes(program, name):
    for size in SIZES:
        check(program, noise(*size), SPECS[name])


@pytest.mark.parametrize("name", SMALL)
def test_extreme_aspect_ratios(program, name):
    for size in EXTREME:
        check(program, noise(*size), SMALL[name])


def test_every_small_size(program):
    spec = SMALL["three"]
    for width in range(1, 28):
        for height in range(1, 28):
            check(program, noise(width, height), spec)


def test_rows_may_be_further_apart_than_they_are_long(program):
    for width, height in ((50, 37), (300, 256), (500, 1200)):  # across first, copied, down first
        for more in (1, 64, 4000):
            check(program, noise(width, height), SPECS["three"], stride=3 * width + more)


def test_real_frames(program, clips):
    videos = sorted(path for path in clips.rglob("*") if path.suffix in {".mp4", ".mkv", ".mov"})
    assert len(videos) > 5
    for path in videos:
        for frame in frames_of(path, sorted({0, min(7, info_of(path).frames - 1)})):
            for spec in SPECS.values():
                check(program, frame, spec)


@pytest.mark.parametrize("name", SPECS)
def test_a_size_seen_before_allocates_nothing(program, name):
    sizes = [(101, 93), (640, 480), (99, 300), (256, 256)]
    for kernels in program.kernels:
        first = [program.prepare(noise(*size), SPECS[name], kernels)[1] for size in sizes]
        assert min(first) > 0, "the first call makes the tables"
        again = [program.prepare(noise(*size), SPECS[name], kernels)[1] for size in sizes * 2]
        assert set(again) == {0}


@pytest.mark.slow
def test_sanitizers_find_nothing(built):
    with closing(Program(built("sanitized"))) as program:
        for name, spec in SPECS.items():
            for size in [(640, 480), (480, 640), (7, 5), (1, 1), (256, 300), (257, 256), (1000, 30)]:
                check(program, noise(*size), spec, stride=0 if name == "three" else 3 * size[0] + 5)
        for spec in SMALL.values():
            for size in [*EXTREME, *((width, 11) for width in range(1, 40)), *((11, height) for height in range(1, 40))]:
                check(program, noise(*size), spec)
        for rule in CLIPS:
            for num_frames in (1, 2, 7, 64, 65, 1000, 2**53):
                program.indices(rule, 8, 4, num_frames)
        for average in get_args(Average):
            program.average(np.zeros((3, 5), np.float32), average)


@pytest.mark.parametrize("rule", get_args(EvaluationRule))
def test_frame_indices(program, rule):
    for segments, frames in ((1, 1), (8, 1), (8, 4), (3, 2), (16, 8), (7, 5), (100, 1), (1, 64)):
        for num_frames in [*range(1, 401), 1799, 107_892, 2**31, 2**33 + 1, 2**36 + 12345]:
            found, allocations = program.indices(rule, segments, frames, num_frames)
            expected = clip_indices(num_frames, segments=segments, frames_per_segment=frames, rule=rule)
            assert np.array_equal(found, expected), f"{num_frames} frames, N = {segments}, m = {frames}"
            assert allocations == 0


def test_random_draws_of_many_videos(program):
    """Bounds beside powers of two, and of more than 32 bits, take other paths through NumPy's generator."""
    for power in range(1, 50):
        for num_frames in (8 * 2**power - 1, 8 * 2**power, 8 * 2**power + 9, 12 * 2**power):
            expected = clip_indices(num_frames, segments=8, frames_per_segment=1, rule="ten-draw")
            assert np.array_equal(program.indices("ten-draw", 8, 1, num_frames)[0], expected), num_frames


@pytest.mark.parametrize("average", get_args(Average))
def test_averages_over_views(program, average):
    rng = np.random.default_rng(0)
    for views, classes in ((1, 5), (2, 1), (3, 7), (30, 400), (10, 174)):
        for scale in (0.1, 1, 20):
            scores = rng.normal(0, scale, (views, classes)).astype(np.float32)
            found, expected = program.average(scores, average), average_views(scores, average)
            if average == "logits" or views == 1:
                assert np.array_equal(found, expected)
            else:
                # NumPy's exponential and the C library's differ in the last bit of a double.
                np.testing.assert_allclose(found, expected, rtol=2**-23, atol=1e-14)
                assert (found == expected).mean() > 0.99
    special = np.array([[np.inf, 0, -np.inf], [1, np.nan, 2], [0, 0, 0]], np.float32)
    np.testing.assert_array_equal(program.average(special, average), average_views(special, average))
    equal = np.array([[-np.inf, 1, 1], [-np.inf, 1, 1]], np.float32)
    np.testing.assert_allclose(program.average(equal, average), average_views(equal, average))


def test_the_reference_is_pillow_with_the_whole_frame_resized():
    """Where `resize_and_crop` changes, this comparison should not follow it unseen."""
    frame, spec = noise(300, 200), replace(SPECS["centre"], crop="centre")
    whole = np.asarray(Image.fromarray(frame).resize((384, 256), Image.Resampling.BILINEAR))
    assert zlib.crc32(resize_and_crop(frame[None], spec).tobytes()) == zlib.crc32(whole[16:240, 80:304].tobytes())
