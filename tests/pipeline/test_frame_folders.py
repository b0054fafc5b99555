"""Folders of numbered pictures as videos: scan, reader, clips and loader."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import barcode
import numpy as np
import pytest
from PIL import Image

from flowless.errors import FlowlessError
from flowless.pipeline.clip.preprocess import load_clip, resize_and_crop
from flowless.pipeline.clip.spec import ClipSpec
from flowless.pipeline.commands import scan as scan_command
from flowless.pipeline.dataset.index import DatasetIndex, stamp_of
from flowless.pipeline.dataset.scan import scan
from flowless.pipeline.video.encode import write_video
from flowless.pipeline.video.frame_folder import FrameFolder

SPEC = ClipSpec(segments=4, frames_per_segment=2, height=40, width=40, short_side=48)


def pictures(folder: Path, numbers, *, name: str = "{:05d}.png") -> Path:
    folder.mkdir(parents=True)
    for number in numbers:
        Image.fromarray(barcode.draw(number)).save(folder / name.format(number))
    return folder


def test_scan_read_and_load(tmp_path):
    for label, begin in (("wave", 1), ("run", 100)):
        for video in range(2):
            pictures(tmp_path / "set" / label / str(video), range(begin, begin + 12))
    (tmp_path / "set" / "wave" / "0" / "thumbs.db").write_bytes(b"x")
    scan(tmp_path / "set", out=tmp_path / "index.jsonl", workers=1)
    index = DatasetIndex.load(tmp_path / "index.jsonl")
    assert [(video.id, video.frames) for video in index.videos] == [("run/0", 12), ("run/1", 12), ("wave/0", 12), ("wave/1", 12)]
    assert {(video.info.width, video.info.height, video.info.codec) for video in index.videos} == {(160, 96, "png")}
    with index.open(index.videos[2]) as video:
        assert [barcode.read(frame) for frame in video] == list(range(1, 13))
        assert [(ordinal, barcode.read(frame)) for ordinal, frame in video.frames([11, 3, 3])] == [(3, 4), (11, 12)]
        assert [barcode.read(frame) for frame in video.stack([5, 2, 5])] == [6, 3, 6]
        assert video.stack([]).shape == (0, 96, 160, 3)
        with pytest.raises(FlowlessError, match=r"frames 3 to 12 were requested, but the folder has 12 pictures"):
            list(video.frames([3, 12]))
    path = index.path_of(index.videos[2])
    clip = load_clip(path, SPEC)
    assert np.array_equal(clip[0, 0], resize_and_crop(np.stack([barcode.draw(number) for number in (2, 3)]), SPEC))
    loader = pytest.importorskip("flowless.pipeline.loading.loader")
    loaded = loader.ClipLoader(index, SPEC, batch_size=2)
    batches = list(loaded)
    assert loaded.decoded_by == {"pyav": 4}, "evaluation clips must equal the runtime's"
    assert [name for batch in batches for name in batch.ids] == [video.id for video in index.videos]
    assert np.array_equal(batches[1].clips[0].numpy(), clip)


def test_parts_in_seconds_need_a_rate(tmp_path):
    pictures(tmp_path / "film", range(24))
    table = tmp_path / "parts.csv"
    table.write_text("path,label,start,end\nfilm,a,0,1\nfilm,b,1,2\n")
    videos = scan(table, format="csv", out=tmp_path / "index.jsonl", workers=1, rate=12).videos
    assert [(video.first_frame, video.frames) for video in videos] == [(0, 12), (12, 12)]
    refused = scan(table, format="csv", out=tmp_path / "none.jsonl", workers=1).refused
    assert [item.reason for item in refused] == [
        f"line {line}: the frame at 1 s cannot be found, since its pictures have no frame rate: pass --rate" for line in (2, 3)
    ]
    with pytest.raises(FlowlessError, match="rate is 0"):
        scan(table, format="csv", out=tmp_path / "none.jsonl", rate=0)


@pytest.mark.parametrize(
    ("name", "numbers"), [("{}.jpg", (1, 2, 9, 10, 11)), ("img_{:05d}.JPG", range(7)), ("v2 frame{:d} .jpeg", range(3, 9))], ids=str
)
def test_frames_are_ordered_by_number(tmp_path, name, numbers):
    with FrameFolder(pictures(tmp_path / "film", numbers, name=name)) as video:
        assert [barcode.read(frame) for frame in video] == list(numbers)
        assert video.info.missing == ((2,) if name == "{}.jpg" else ())


def test_gaps_duplicates_and_mixed_folders(tmp_path, capsys):
    root = tmp_path / "set"
    pictures(root / "a" / "gap", (1, 2, 5))
    twice = pictures(root / "a" / "twice", (1, 2))
    Image.fromarray(barcode.draw(3)).save(twice / "2.png")
    mixed = pictures(root / "a" / "mixed", (1, 2))
    Image.fromarray(barcode.draw(3)).save(mixed / "3.jpg")
    named = pictures(root / "a" / "named", (1, 2))
    Image.fromarray(barcode.draw(3)).save(named / "cover.png")
    (pictures(root / "a" / "broken", (1, 2)) / "00002.png").write_bytes(b"x")
    other = pictures(root / "a" / "sizes", (1, 2))
    Image.fromarray(barcode.draw(3)[::2, ::2]).save(other / "00003.png")
    assert scan_command([str(root), "--out", str(tmp_path / "index.jsonl"), "--workers", "1"]) == 0
    index = DatasetIndex.load(tmp_path / "index.jsonl")
    assert {video.id: video.info.missing for video in index.videos} == {"a/gap": (2,), "a/sizes": ()}
    reasons = {item.path: item.reason for item in index.refused}
    assert reasons.keys() == {"a/twice", "a/mixed", "a/named", "a/broken"}
    assert "two pictures have the number 2 (00002.png and 2.png)" in reasons["a/twice"]
    assert "several kinds (.jpg, .png)" in reasons["a/mixed"]
    assert "cover.png has no number" in reasons["a/named"]
    assert "its picture 00002.png: it cannot be read" in reasons["a/broken"]
    assert "a/gap" in "".join(capsys.readouterr().out.split())
    with index.open(index.videos[1]) as video:
        assert [barcode.read(frame) for frame in video] == [1, 2, 3], "the third is resized to the first"


def test_pictures_beside_videos_are_ignored(tmp_path, barcodes):
    (tmp_path / "a").mkdir()
    film = barcodes(barcode.KINDS[0])
    (tmp_path / "a" / film.name).symlink_to(film)
    Image.fromarray(barcode.draw(1)).save(tmp_path / "a" / "preview1.png")
    assert [video.path for video in scan(tmp_path, out=tmp_path / "i.jsonl", workers=1).videos] == [f"a/{film.name}"]


def test_exif_orientation(tmp_path):
    (tmp_path / "film").mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6  # to be rotated clockwise by 90 degrees for display
    Image.fromarray(np.rot90(barcode.draw(5))).save(tmp_path / "film" / "1.png", exif=exif)
    with FrameFolder(tmp_path / "film") as video:
        assert [barcode.read(frame) for frame in video] == [5]


def test_16_bit_pictures_and_damaged_exif(tmp_path):
    folder = tmp_path / "film"
    folder.mkdir()
    Image.fromarray(np.full((8, 8), 30000, np.uint16)).save(folder / "1.png")
    with FrameFolder(folder) as video:
        (frame,) = list(video)
    assert (frame == 30000 >> 8).all()
    for data in (b"Exif\x00\x00II*\x00\x08\x00\x00\x00\xff\xff", b"Exif\x00\x00nothing"):
        Image.fromarray(barcode.draw(5)).save(folder / "1.png", exif=data)
        with FrameFolder(folder) as video:
            assert [barcode.read(frame) for frame in video] == [5]


def index_of_folders(tmp_path: Path) -> DatasetIndex:
    """Index three folders of JPEGs, one of PNGs, one with pictures of different sizes, and a video that DALI can decode."""
    for number in range(3):
        pictures(tmp_path / "set" / "run" / f"jpeg{number}", range(10 * number, 10 * number + 12 + number), name="{:05d}.jpg")
    pictures(tmp_path / "set" / "wave" / "png", range(20))
    sizes = pictures(tmp_path / "set" / "wave" / "sizes", range(12))
    Image.fromarray(barcode.draw(12)[::2, ::2]).save(sizes / "00012.png")
    write_video(tmp_path / "set" / "wave" / "film.mov", map(barcode.draw, range(20)), codec="mjpeg", pixel_format="yuvj420p")
    return scan(tmp_path / "set", out=tmp_path / "index.jsonl", workers=1)


@pytest.mark.parametrize(("crop", "side"), [("centre", None), ("three", None), ("three", 48)])
@pytest.mark.parametrize("rule", ["centre", "train"])
def test_dalis_image_decoder_matches_pillow(tmp_path, rule, crop, side):
    loading = pytest.importorskip("flowless.pipeline.loading.loader")
    graph = pytest.importorskip("flowless.pipeline.loading.dali_graph")
    index = index_of_folders(tmp_path)
    spec = replace(SPEC, crop=crop, crop_side=side)
    found = {}
    for decoder, counts in (("pyav", {"pyav": 6}), ("dali", {"dali": 5, "pyav": 1}), ("auto", None)):
        loaded = loading.ClipLoader(index, spec, rule=rule, batch_size=6, options=loading.LoaderOptions(decoder=decoder))
        found[decoder] = {
            name: (clip.numpy().astype(int), label.tolist())
            for batch in loaded
            for name, clip, label in zip(batch.ids, batch.clips, batch.labels, strict=True)
        }
        assert loaded.decoded_by == (counts or ({"dali": 4, "pyav": 2} if rule == "train" else {"pyav": 6}))
    for decoder in ("dali", "auto"):
        for name, (clip, label) in found[decoder].items():
            wanted, right = found["pyav"][name]
            assert label == right
            assert clip.shape == wanted.shape
            far = np.abs(clip - wanted)
            if "film" in name:
                continue
            assert far.max() <= (graph.TOLERANCE_EDGE if crop == "three" or rule == "train" else graph.TOLERANCE_MAX), name
            assert far.mean() < graph.TOLERANCE_MEAN_NOISE * (2 if side and rule != "train" else 1), name
            assert far.any() or "sizes" in name or decoder == "auto"


@pytest.mark.parametrize(("crops", "side"), [(1, None), (3, None), (3, 224)])
def test_the_gpu_graph_is_valid(crops, side):
    graph = pytest.importorskip("flowless.pipeline.loading.dali_image_graph")
    written = graph._graph(crops, side, gpu=True, batch_size=2, num_threads=1, device_id=None, prefetch_queue_depth=1).serialize()
    assert b"mixed" in written


@pytest.mark.gpu
def test_the_gpu_gives_the_same_pixels(tmp_path):
    loading = pytest.importorskip("flowless.pipeline.loading.loader")
    index = index_of_folders(tmp_path)
    index = replace(index, videos=tuple(video for video in index.videos if video.info.folder))
    found = {}
    for device in ("cpu", "gpu"):
        loaded = loading.ClipLoader(index, SPEC, batch_size=5, options=loading.LoaderOptions(device=device))
        (batch,) = list(loaded)
        found[device] = batch.clips.cpu().numpy().astype(int)
    assert loaded.decoded_by == {"dali": 4, "pyav": 1}
    assert np.abs(found["gpu"] - found["cpu"]).mean() < 2


def test_a_picture_that_dali_cannot_decode(tmp_path, capsys):
    loading = pytest.importorskip("flowless.pipeline.loading.loader")
    index = index_of_folders(tmp_path)
    broken = tmp_path / "set" / "run" / "jpeg1" / "00014.jpg"
    broken.write_bytes(broken.read_bytes()[:300])
    # Update the stamps, so that the damage is found only by decoding.
    index = replace(index, videos=tuple(replace(video, stamp=stamp_of(index.path_of(video))) for video in index.videos))
    spec = replace(SPEC, segments=12, frames_per_segment=1)
    options = loading.LoaderOptions(decoder="dali", max_bad_share=0.5)
    loaded = loading.ClipLoader(index, spec, batch_size=6, options=options)
    for _ in range(2):
        assert sum(len(batch.ids) for batch in loaded) == 5
        assert [item.path for item in loaded.bad_videos] == ["run/jpeg1"]
    assert "its picture 00014.jpg" in loaded.bad_videos[0].reason
    assert capsys.readouterr().err.count("DALI cannot decode a video of a batch; PyAV decodes the batch.") == 1


def test_a_changed_folder_is_read_by_pillow(tmp_path):
    loading = pytest.importorskip("flowless.pipeline.loading.loader")
    pictures(tmp_path / "set" / "run" / "film", range(12))
    index = scan(tmp_path / "set", out=tmp_path / "index.jsonl", workers=1)
    for picture in (tmp_path / "set" / "run" / "film").iterdir():
        picture.unlink()
        Image.fromarray(barcode.draw(1)[::3, ::3]).save(picture)
    loaded = loading.ClipLoader(index, SPEC, batch_size=1, options=loading.LoaderOptions(decoder="dali"))
    (batch,) = loaded
    assert np.array_equal(batch.clips[0].numpy(), load_clip(index.path_of(index.videos[0]), SPEC))
    assert loaded.decoded_by == {"pyav": 1}


def test_dali_needs_a_scan_of_all_pictures(tmp_path):
    loading = pytest.importorskip("flowless.pipeline.loading.loader")
    pictures(tmp_path / "set" / "run" / "film", range(12))
    index = scan(tmp_path / "set", out=tmp_path / "index.jsonl", workers=1, decode=False)
    with pytest.raises(FlowlessError, match="not all of its pictures were read by the scan"):
        loading.ClipLoader(index, SPEC, batch_size=1, options=loading.LoaderOptions(decoder="dali"))
