"""The DALI graph: evaluation matches the runtime, training crops match the published code, rotation, and zero-copy output."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from video_files import all_frames, frames_of

from flowless.errors import FlowlessError
from flowless.pipeline.clip.preprocess import resize_and_crop, resize_region
from flowless.pipeline.clip.sampling import sample_rng
from flowless.pipeline.clip.spec import ClipSpec
from flowless.pipeline.loading.augment import Augmentation, LoaderOptions, View, training_view
from flowless.pipeline.video.encode import write_video

torch = pytest.importorskip("torch")
pytest.importorskip("nvidia.dali")

from nvidia.dali import fn, types  # noqa: E402
from nvidia.dali.pipeline import pipeline_def  # noqa: E402

from flowless.pipeline.loading.dali_graph import (  # noqa: E402
    TOLERANCE_EDGE,
    TOLERANCE_MAX,
    TOLERANCE_MEAN,
    TOLERANCE_MEAN_NOISE,
    ClipGraph,
    Frames,
    GraphInput,
    _graph,
    region_inputs,
    resize_regions,
)
from flowless.pipeline.loading.frame_source import evaluation_views  # noqa: E402

_types: Any = types
PLAIN = (1, 1, 1, 0)
SPEC = ClipSpec()
FULL = ClipSpec(height=256, width=256)
THREE = ClipSpec(crop="three")
FULL_THREE = ClipSpec(height=256, width=256, crop="three")
#: STM's test protocol: crops of 256 x 256, resized again.
SHRUNK = ClipSpec(crop="three", crop_side=256)


def graph(
    frames: Frames = "pyav", *, colour: bool = False, crops: int = 1, side: int | None = None, device_id: int | None = None
) -> ClipGraph:
    return ClipGraph(batch_size=4, threads=2, frames=frames, colour=colour, crops=crops, side=side, device_id=device_id)


def pictures(*inputs: GraphInput, frames: Frames = "pyav", colour: bool = False, crops: int = 1, side: int | None = None) -> np.ndarray:
    made = graph(frames, colour=colour, crops=crops, side=side)
    return torch.from_dlpack(made.run(inputs)).numpy().astype(int)


def repeated_colour(colour: Any, count: int) -> np.ndarray:
    return np.array([colour] * count, np.float32)


def graph_input(
    frames: np.ndarray, views: View | tuple[View, ...], spec: ClipSpec, *, colour: Any = PLAIN, order: Any = None
) -> GraphInput:
    """Return the graph input that the loader makes from frames decoded by PyAV, for one training view or evaluation views."""
    if isinstance(views, View):
        made = np.stack([resize_region(frame, spec, region=(views.left, views.top, views.right, views.bottom)) for frame in frames])
    else:
        made = resize_and_crop(frames, spec)
    return GraphInput(
        order=np.arange(len(made), dtype=np.int32) if order is None else order, colour=repeated_colour(colour, len(made)), pictures=made
    )


def resized_by_dali(frames: np.ndarray, spec: ClipSpec) -> np.ndarray:
    """Resize frames with the graph's operators for DALI's decoder, without decoding."""
    height, width = frames.shape[1:3]
    views = evaluation_views(width=width, height=height, spec=spec)
    numbers = region_inputs(views, spec, width=width, height=height)

    @pipeline_def(batch_size=1, num_threads=1, device_id=None, enable_conditionals=True, prefetch_queue_depth=1)  # pyright: ignore
    def resizing() -> Any:
        source = fn.external_source(name="frames", ndim=4, dtype=_types.UINT8, layout="FHWC")
        return resize_regions(source, len(views), side_of(spec))

    feeds = {"frames": frames, **{name: np.array(value) for name, value in numbers.items()}}
    return torch.from_dlpack(resizing().run(**{name: [value] for name, value in feeds.items()})[0].as_tensor()).numpy().astype(int)[0]


def side_of(spec: ClipSpec) -> int | None:
    return None if spec.crop_side is None else spec.height


def resizes(spec: ClipSpec) -> int:
    return 1 if spec.crop_side is None else 2


def touches_the_edge(spec: ClipSpec) -> bool:
    return spec.crop == "three" or spec.short_side in spec.crop_size


def noise(height: int, width: int, count: int = 2) -> np.ndarray:
    return np.random.default_rng(height * width).integers(0, 256, (count, height, width, 3)).astype(np.uint8)


def smooth(height: int, width: int, count: int = 2) -> np.ndarray:
    """Asymmetric pictures with edges and gradients, different in every frame."""
    y, x = np.mgrid[0:height, 0:width]
    planes = [
        (np.sin(x / (9 + 2 * k)) + np.cos(y / (7 + k)) + (x > width / (2.5 + k))) * 50 + x * 40 / width + 60 for k in range(count * 3)
    ]
    stacked = np.stack(planes, -1).reshape(height, width, count, 3).transpose(2, 0, 1, 3)
    return np.ascontiguousarray(np.clip(stacked, 0, 255).astype(np.uint8))


@pytest.mark.parametrize(
    ("height", "width"),
    [(480, 640), (640, 480), (1080, 1921), (257, 999), (300, 256), (333, 257), (720, 406), (90, 161), (200, 120), (1, 1), (40, 31)],
)
@pytest.mark.parametrize(
    "spec",
    [SPEC, ClipSpec(height=112, width=96, short_side=128), FULL, THREE, FULL_THREE, SHRUNK, ClipSpec(crop_side=240)],
    ids=["224", "112x96", "full-resolution", "three-crop", "three-crop-full-resolution", "three-crop-shrunk", "shrunk"],
)
def test_evaluation_matches_pillow(height: int, width: int, spec: ClipSpec) -> None:
    frames = noise(height, width)
    expected = resize_and_crop(frames, spec)
    difference = np.abs(resized_by_dali(frames, spec) - expected)
    assert difference.shape == expected.shape
    # With a second resize, its filter spreads the difference at the edge to the next rows.
    assert difference[:, 1:-1, 1:-1].max() <= resizes(spec) * TOLERANCE_MAX
    assert difference.max() <= (TOLERANCE_EDGE if touches_the_edge(spec) or spec.crop_side else TOLERANCE_MAX)
    assert difference.mean() <= resizes(spec) * TOLERANCE_MEAN_NOISE


@pytest.mark.parametrize(("height", "width"), [(256, 341), (341, 256), (256, 256), (256, 343)])
def test_a_frame_of_the_right_size_is_not_resized(height: int, width: int) -> None:
    """341 and 343 wide: (341 - 224) / 2 = 58.5 rounds to 58, (343 - 224) / 2 = 59.5 to 60."""
    frames = noise(height, width)
    result = resized_by_dali(frames, SPEC)
    top, left = {256: 16, 341: 58, 343: 60}[height], {256: 16, 341: 58, 343: 60}[width]
    assert (result == frames[:, top : top + 224, left : left + 224]).all()


def test_evaluation_matches_pillow_on_real_clips(clips: Path) -> None:
    for name, last in (("gestures/book.mkv", 76), ("rotated_90.mov", 2), ("bt709_full_range.mp4", 2), ("nasa_13013.mp4", 20)):
        frames = frames_of(clips / name, [0, last])
        for spec in (SPEC, ClipSpec(height=112, width=112, short_side=128), FULL_THREE, SHRUNK):
            difference = np.abs(resized_by_dali(frames, spec) - resize_and_crop(frames, spec))
            assert difference[:, 1:-1, 1:-1].max() <= resizes(spec) * TOLERANCE_MAX, name
            assert difference.max() <= (TOLERANCE_EDGE if touches_the_edge(spec) else TOLERANCE_MAX), name
            assert difference.mean() <= resizes(spec) * TOLERANCE_MEAN, name


def drawn_views(width: int, height: int, *, spec: ClipSpec = SPEC, count: int = 4000, **options: Any) -> list[View]:
    rng, augmentation = np.random.default_rng(0), Augmentation(**options)
    return [training_view(rng, width=width, height=height, spec=spec, augmentation=augmentation) for _ in range(count)]


def test_multi_scale_crops_as_published() -> None:
    """340 x 256: sides int(256 * (1, .875, .75, .66)); at most one scale apart; (340 - 256) // 4 = 21 and so on."""
    seen = {(int(v.right - v.left), int(v.bottom - v.top)) for v in drawn_views(340, 256)}
    sides = [256, 224, 192, 168]
    assert seen == {(sides[i], sides[j]) for i in range(4) for j in range(4) if abs(i - j) <= 1}
    places = {(int(v.left), int(v.top)) for v in drawn_views(343, 259) if (v.right - v.left, v.bottom - v.top) == (224, 194)}
    # Steps of whole pixels: (343 - 224) / 4 is 29.75, (259 - 194) / 4 is 16.25; the last position is 4 steps, not at the edge.
    x, y = 29, 16
    assert places == {
        *((0, 0), (4 * x, 0), (0, 4 * y), (4 * x, 4 * y), (2 * x, 2 * y)),
        *((0, 2 * y), (4 * x, 2 * y), (2 * x, 4 * y), (2 * x, 0)),
        *((x, y), (3 * x, y), (x, 3 * y), (3 * x, 3 * y)),
    }


def test_crop_sides_snap_to_the_input_size() -> None:
    """.875 * 258 = 225.75 -> 225 snaps to 224; .875 * 260 = 227.5 -> 227 is three away and does not."""
    assert {int(v.right - v.left) for v in drawn_views(400, 258)} == {258, 224, 193, 170}
    assert {int(v.right - v.left) for v in drawn_views(400, 260)} == {260, 227, 195, 171}
    wide = ClipSpec(height=112, width=200, short_side=200)
    assert {int(v.right - v.left) for v in drawn_views(400, 201, spec=wide)} == {200, 175, 150, 132}
    assert {int(v.bottom - v.top) for v in drawn_views(400, 201, spec=wide)} == {201, 175, 150, 132}


def test_crops_stay_in_the_frame_whatever_its_size() -> None:
    for width, height in ((1, 1), (3, 200), (223, 223), (222, 500), (7, 5)):
        for view in drawn_views(width, height, count=200, flip=True):
            low, high = sorted((view.left, view.right))
            assert 0 <= low < high <= width
            assert 0 <= view.top < view.bottom <= height


def test_flip_probability() -> None:
    assert not any(view.mirrored for view in drawn_views(340, 256))
    share = np.mean([view.mirrored for view in drawn_views(340, 256, flip=True)])
    assert 0.46 < share < 0.54


def test_training_crop() -> None:
    frames = smooth(256, 340)
    view = View(top=32, left=29, bottom=224, right=253)
    result = pictures(graph_input(frames, view, SPEC))[0]
    from PIL import Image

    expected = np.stack(
        [np.asarray(Image.fromarray(f[32:224, 29:253]).resize((224, 224), Image.Resampling.BILINEAR)) for f in frames]
    ).astype(int)
    # At the crop's edge, the graph's filter reads the frame's pixels beyond it.
    assert np.abs(result - expected)[:, 2:-2, 2:-2].max() <= TOLERANCE_MAX
    assert np.abs(result - expected).mean() < TOLERANCE_MEAN_NOISE


def test_a_mirrored_view_is_the_mirror_image() -> None:
    frames = smooth(200, 300)
    plain, mirrored = View(top=10, left=20, bottom=190, right=240), View(top=10, left=240, bottom=190, right=20)
    result = pictures(graph_input(frames, plain, SPEC), graph_input(frames, mirrored, SPEC))
    assert np.abs(result[0][:, :, ::-1] - result[1]).max() <= 1
    assert np.abs(result[0] - result[1]).mean() > 5


def test_all_frames_of_a_clip_get_the_same_augmentation() -> None:
    frames = np.repeat(smooth(128, 160, 1), 3, axis=0)
    view = training_view(sample_rng(0, 0, "a"), width=160, height=128, spec=SPEC, augmentation=Augmentation(brightness=0.5, hue=40))
    result = pictures(graph_input(frames, view, SPEC, colour=view.colour), colour=True)[0]
    assert (result == result[0]).all()


def test_colour_augmentation() -> None:
    frames = np.full((2, 64, 64, 3), (60, 90, 120), np.uint8)
    view, spec = View(top=0, left=0, bottom=64, right=64), ClipSpec(height=32, width=32, short_side=32)
    changes = [(1, 1, 1, 0), (1.5, 1, 1, 0), (1, 1, 0, 0), (1, 1, 1, 120)]
    result = pictures(*(graph_input(frames, view, spec, colour=change) for change in changes), colour=True)[:, 0, 0, 0]
    assert np.abs(result[0] - (60, 90, 120)).max() <= 1
    assert np.abs(result[1] - (90, 135, 180)).max() <= 1
    assert np.ptp(result[2]) <= 1
    assert result[3].argmax() != 2
    assert not Augmentation().colour
    jittered = drawn_views(64, 64, count=300, brightness=0.2, hue=10)
    assert all(0.8 <= v.colour[0] <= 1.2 and v.colour[1:3] == (1, 1) and -10 <= v.colour[3] <= 10 for v in jittered)
    assert len({v.colour for v in jittered}) == 300


def test_frames_are_repeated_and_ordered() -> None:
    frames = noise(64, 64, 3)
    spec = ClipSpec(height=64, width=64, short_side=64)
    view = evaluation_views(width=64, height=64, spec=spec)
    result = pictures(graph_input(frames, view, spec, order=np.array([2, 0, 0, 1], np.int32)))[0]
    assert (result == frames[[2, 0, 0, 1]]).all()


@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
def test_rotation_is_applied_once_by_either_decoder(rotation: int, tmp_path: Path) -> None:
    """VP9, which DALI decodes on the CPU: both decoders in one batch, with mirrored and unmirrored non-square pictures."""
    path = tmp_path / "turned.mp4"
    options = {"crf": "10", "cpu-used": "8", "deadline": "realtime"}
    write_video(path, smooth(120, 160, 6), codec="libvpx-vp9", options=options, rotation=rotation)
    upright = np.stack(list(all_frames(path)))
    height, width = upright.shape[1:3]
    assert (height, width) == ((160, 120) if rotation in {90, 270} else (120, 160))
    spec, ordinals = ClipSpec(height=80, width=64, short_side=96, crop="three"), np.array([0, 2, 5], np.int32)
    crops, mirrored = evaluation_views(width=width, height=height, spec=spec), View(top=20, left=100, bottom=110, right=30)
    shrunk = ClipSpec(height=64, width=64, short_side=96, crop="three", crop_side=90)
    again = evaluation_views(width=width, height=height, spec=shrunk)
    for views, source, seen in ((crops, crops, spec), ((mirrored,), mirrored, spec), (again, again, shrunk)):
        from_pyav = graph_input(upright[ordinals], source, seen)
        from_dali = GraphInput(
            **region_inputs(views, seen, width=width, height=height, rotation=rotation),
            order=from_pyav.order,
            colour=from_pyav.colour,
            encoded=np.fromfile(path, np.uint8),
            ordinals=ordinals,
        )
        by_pyav, by_dali = pictures(from_pyav, from_dali, frames="both", crops=len(views), side=side_of(seen))
        (alone,) = pictures(from_dali, frames="dali", crops=len(views), side=side_of(seen))
        assert by_pyav.shape == (3 * len(views), seen.height, 64, 3)
        # The colour conversions differ slightly; a wrong rotation differs by tens of levels.
        assert np.abs(by_pyav - by_dali).mean() < 4
        assert np.abs(by_pyav - by_dali[:, ::-1]).mean() > 12
        assert (alone == by_dali).all()


def test_batches_share_memory_with_pytorch_and_stay_valid() -> None:
    frames, spec = noise(64, 64, 4), ClipSpec(height=64, width=64, short_side=64)
    view = evaluation_views(width=64, height=64, spec=spec)
    item, negative = graph_input(frames, view, spec), graph_input(255 - frames, view, spec)
    one = graph()
    tensor = one.run([item] * 3)
    batch = torch.from_dlpack(tensor)
    assert batch.data_ptr() == tensor.data_ptr()
    assert batch.dtype == torch.uint8
    del tensor
    later = [torch.from_dlpack(one.run([negative])) for _ in range(4)]
    assert (batch.numpy() == frames).all()
    assert all((other.numpy() == 255 - frames).all() for other in later)


@pytest.mark.parametrize("frames", ["pyav", "dali", "both"])
@pytest.mark.parametrize("colour", [False, True])
@pytest.mark.parametrize(("crops", "side"), [(1, None), (3, None), (3, 224)])
def test_the_gpu_graph_is_valid(frames: Frames, colour: bool, crops: int, side: int | None) -> None:
    """Without a GPU its graph can be serialised, which checks operators and arguments, but not run."""
    pipeline = _graph(frames, colour, crops, side, gpu=True, batch_size=2, num_threads=1, device_id=None, prefetch_queue_depth=1)
    written = pipeline.serialize()
    assert (b"mixed" in written) == (frames != "pyav")
    assert b"gpu" in written


@pytest.mark.gpu
@pytest.mark.parametrize("spec", [SPEC, FULL_THREE, SHRUNK], ids=["224", "three-crop-full-resolution", "three-crop-shrunk"])
def test_the_gpu_gives_the_same_pixels(spec: ClipSpec, tmp_path: Path) -> None:
    path = tmp_path / "film.mp4"
    write_video(path, smooth(240, 320, 12), options={"crf": "10"})
    upright, ordinals = np.stack(list(all_frames(path))), np.array([1, 4, 11], np.int32)
    views = evaluation_views(width=320, height=240, spec=spec)
    from_pyav = graph_input(upright[ordinals], views, spec)
    from_dali = GraphInput(
        **region_inputs(views, spec, width=320, height=240),
        order=from_pyav.order,
        colour=from_pyav.colour,
        encoded=np.fromfile(path, np.uint8),
        ordinals=ordinals,
    )
    batch = torch.from_dlpack(graph("both", crops=len(views), side=side_of(spec), device_id=0).run([from_pyav, from_dali]))
    assert batch.device.type == "cuda"
    result = batch.cpu().numpy().astype(int)
    reference = resized_by_dali(upright[ordinals], spec)
    assert np.abs(result[0] - reference).max() <= TOLERANCE_MAX
    assert np.abs(result[1] - reference).mean() < 4


def test_invalid_options_are_listed_in_one_error() -> None:
    with pytest.raises(FlowlessError, match=r"scales is \(1\.2,\).*brightness is 2.*flip_labels is given but flip is off"):
        Augmentation(scales=(1.2,), brightness=2, flip_labels={"left": "right"})
    with pytest.raises(FlowlessError, match="must map to itself"):
        Augmentation(flip=True, flip_labels={"left": "right", "right": "up"})
    with pytest.raises(FlowlessError, match="names 'east'; the labels are up, west"):
        Augmentation(flip=True, flip_labels={"west": "east"}).mirrored(("up", "west"))
    assert Augmentation(flip=True, flip_labels={"left": "right"}).mirrored(("left", "still", "right")) == (2, 1, 0)
    with pytest.raises(FlowlessError, match=r"rank is 2 of world 2.*threads is 0.*prefetch is 0.*device is 'tpu'"):
        LoaderOptions(rank=2, world=2, threads=0, prefetch=0, device="tpu")  # type: ignore[arg-type]
