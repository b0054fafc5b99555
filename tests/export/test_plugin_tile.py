"""The plugin's kernel against the paper's formula in float64: its tiles on this processor, and the kernel itself where there is a GPU."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from flowless.export.plugin.plugin_library import SOURCES, find_library

HARNESS = Path(__file__).with_name("plugin_harness")
SIZES = [(1, 1), (1, 40), (6, 3), (31, 33), (32, 32), (33, 64), (65, 38)]
#: Of float32 sums of 147 products each, and 8 squares, against float64.
RTOL = 3e-6
#: Half a unit of FP16's last place: 11 bits of fraction.
RTOL_HALF = 2.0**-11


@pytest.fixture(scope="session")
def tiles(tmp_path_factory) -> ctypes.CDLL:
    """Build the kernel's tiles for this processor."""
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler here")
    library = tmp_path_factory.mktemp("tiles") / "tiles.so"
    command = [compiler, "-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-shared", "-fPIC", "-I", str(SOURCES)]
    done = subprocess.run([*command, str(HARNESS / "host_tile.cpp"), "-o", str(library)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    loaded = ctypes.CDLL(str(library))
    loaded.flowless_pa_tile_count.restype = ctypes.c_int64
    return loaded


def run(tiles, clip, weight, *, eps=1e-12, eps_inside=False):
    """Make `[..., m-1, H, W]` of `[..., m, 3, H, W]` as the kernel would."""
    assert clip.dtype == weight.dtype
    clip, weight = np.ascontiguousarray(clip), np.ascontiguousarray(weight)
    *lead, frames, _, height, width = clip.shape
    # What is not written stays wrong.
    motion = np.full((*lead, frames - 1, height, width), np.nan, clip.dtype)
    sizes = (ctypes.c_int64(int(np.prod(lead))), ctypes.c_int64(frames), height, width)
    pointers = [ctypes.c_void_p(array.ctypes.data) for array in (clip, weight, motion)]
    tiles.flowless_pa_on_host(int(clip.dtype == np.float16), *pointers, *sizes, ctypes.c_float(eps), int(eps_inside))
    return motion


def clip_of(kind, size, *, lead=(2, 2), frames=3):
    rng = np.random.default_rng(11)
    shape = (*lead, frames, 3, *size)
    if kind == "still":
        return np.broadcast_to(rng.normal(size=(*lead, 1, 3, *size)), shape).astype(np.float32)
    if kind == "one pixel":
        clip = np.zeros(shape, np.float32)
        clip[..., 1, :, size[0] // 2, size[1] // 2] = 255.0
        clip[..., -1, 0, -1, -1] = -255.0
        return clip
    scale = {"noise": 1.0, "pixels": 255.0, "large": 1e15}[kind]
    return (rng.uniform(-1, 1, shape) * scale).astype(np.float32)


def weights(dtype: type[np.floating] = np.float32):
    return np.random.default_rng(5).normal(0, 0.02, (8, 3, 7, 7)).astype(dtype)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("kind", ["noise", "pixels", "still", "one pixel", "large"])
def test_tiles_are_the_papers_formula(tiles, reference, kind, size):
    clip, weight = clip_of(kind, size), weights()
    expected = reference.persistence(clip, weight, None, 1e-6)
    np.testing.assert_allclose(run(tiles, clip, weight, eps=1e-6), expected, rtol=RTOL, atol=1e-9)


@pytest.mark.parametrize("kind", ["noise", "still", "one pixel"])
def test_eps_inside_the_difference(tiles, reference, kind):
    clip, weight = clip_of(kind, (33, 35)), weights()
    found = run(tiles, clip, weight, eps=1e-3, eps_inside=True)
    np.testing.assert_allclose(found, reference.persistence(clip, weight, None, 1e-3, eps_inside=True), rtol=1e-5)
    assert np.abs(found - run(tiles, clip, weight, eps=1e-3)).max() > 1e-4


@pytest.mark.parametrize("frames", [2, 3, 5])
@pytest.mark.parametrize("lead", [(1,), (3, 2)])
def test_every_stack_and_pair(tiles, reference, lead, frames):
    clip, weight = clip_of("noise", (9, 34), lead=lead, frames=frames), weights()
    np.testing.assert_allclose(run(tiles, clip, weight), reference.persistence(clip, weight, None, 1e-12), rtol=RTOL)


def test_half_precision_rounds_at_its_ends_alone(tiles, reference):
    """Sums are float32: the result is that of float32, rounded once."""
    clip, weight = clip_of("pixels", (33, 41)).astype(np.float16), weights(np.float16)
    found = run(tiles, clip, weight)
    wide = run(tiles, clip.astype(np.float32), weight.astype(np.float32))
    np.testing.assert_array_equal(found, wide.astype(np.float16))
    expected = reference.persistence(clip.astype(np.float64), weight.astype(np.float64), None, 1e-12)
    np.testing.assert_allclose(found, expected, rtol=RTOL_HALF + RTOL)


def test_half_precision_at_its_limits(tiles, reference):
    """Differences may be twice what FP16 holds; a length beyond FP16 is infinite, and eps survives."""
    clip, weight = (clip_of("noise", (16, 40)) * 60000).astype(np.float16), 2 * weights(np.float16)
    exact = reference.persistence(clip.astype(np.float64), weight.astype(np.float64), None, 1e-12)
    assert exact.min() < 65000
    assert exact.max() > 66000
    with np.errstate(over="ignore"):
        np.testing.assert_allclose(run(tiles, clip, weight), exact.astype(np.float16), rtol=2 * RTOL_HALF)
    still = run(tiles, np.ones_like(clip), weight)
    np.testing.assert_allclose(still, 1e-6, atol=2.0**-25)  # half of FP16's smallest step


def test_the_reference_sees_a_shifted_filter(tiles, reference):
    clip, weight = clip_of("noise", (20, 20)), weights()
    found = run(tiles, clip, np.roll(weight, 1, axis=-1))
    assert np.abs(found - reference.persistence(clip, weight, None, 1e-12)).max() > 0.05


def test_places_beyond_32_bits(tiles):
    """A batch may hold more values, and more tiles, than 32 bits count."""
    maps, frames, height, width = 3 * 10**8, 4, 224, 225
    assert tiles.flowless_pa_tile_count(ctypes.c_int64(maps), ctypes.c_int64(frames), height, width) == maps * 7 * 8
    found = (ctypes.c_int64 * 4)()
    for index in (0, 7, 8, 55, 56, 3 * 56, 2**31 + 5, maps * 56 - 1):
        tiles.flowless_pa_tile(ctypes.c_int64(maps), ctypes.c_int64(frames), height, width, ctypes.c_int64(index), found)
        number, place = divmod(index, 56)
        stack, pair = divmod(number, frames - 1)
        earlier = (stack * frames + pair) * 3 * height * width
        assert list(found) == [number, earlier, place // 8 * 32, place % 8 * 32]


@pytest.mark.gpu
@pytest.mark.parametrize("half", [False, True], ids=["FP32", "FP16"])
def test_the_kernel_is_its_tiles(tiles, half, tmp_path):
    """The kernel on the GPU, through the C entry that the plugin calls, against the same tiles on the processor."""
    import torch

    launch = ctypes.CDLL(str(kernel_library(tmp_path))).flowless_pa_launch
    kind = np.float16 if half else np.float32
    cases = [(name, size, False) for name in ("noise", "still", "one pixel") for size in SIZES] + [("pixels", (224, 224), True)]
    for name, size, inside in cases:
        clip, weight = clip_of(name, size).astype(kind), weights(kind)
        expected = run(tiles, clip, weight, eps=1e-6, eps_inside=inside)
        there = [torch.from_numpy(array).cuda() for array in (clip, weight, np.full_like(expected, np.nan))]
        pointers = [ctypes.c_void_p(tensor.data_ptr()) for tensor in there]
        sizes = (ctypes.c_int64(4), ctypes.c_int64(clip.shape[2]), *size)
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        assert launch(int(half), *pointers, *sizes, ctypes.c_float(1e-6), int(inside), stream) == 0
        torch.cuda.synchronize()
        # The compiler joins multiplications and additions there; FP16 may then round to the neighbour.
        np.testing.assert_allclose(there[2].cpu().numpy(), expected, rtol=2 * RTOL_HALF if half else RTOL, atol=1e-7 if half else 1e-9)


def kernel_library(folder: Path) -> Path:
    """Return the plugin's library, or the kernel alone, compiled for the GPU here: it needs no TensorRT."""
    found = find_library()
    if found is not None:
        return found
    nvcc = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
    if nvcc is None:
        pytest.skip("no plugin library and no nvcc here")
    library = folder / "kernel.so"
    command = [
        nvcc,
        "-std=c++17",
        "-O3",
        "-arch=native",
        "-shared",
        "-Xcompiler",
        "-fPIC",
        str(SOURCES / "pa_kernel.cu"),
        "-o",
        str(library),
    ]
    subprocess.run(command, check=True)
    return library
