"""Every kind of file that readers get wrong: one verdict and the same frames in every way of reading."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import av
import barcode
import numpy as np
import odd_videos as odd
import pytest
from one_verdict import SPEC, check
from video_files import all_frames, frames_of, info_of

from flowless.errors import FlowlessError
from flowless.pipeline.clip.preprocess import load_clip, load_record, load_views
from flowless.pipeline.dataset.index import DatasetIndex
from flowless.pipeline.dataset.scan import scan
from flowless.pipeline.video.container import Unreadable
from flowless.pipeline.video.encode import write_video
from flowless.pipeline.video.h264 import most_reordered
from flowless.pipeline.video.reader import VideoReader


@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuv420p10le", "yuv422p"])
@pytest.mark.parametrize("matrix", odd.ORIENTATIONS, ids=str)
def test_orientations_are_ffmpegs(tmp_path, matrix, pixel_format):
    path = odd.oriented(tmp_path / "film.mp4", matrix, pixel_format=pixel_format)
    wanted = odd.autorotated(path, odd.ORIENTATIONS[matrix])
    info = check(path, wanted).videos[0].info
    assert (info.height, info.width) == wanted[0].shape[:2]
    assert info.mirrored == (matrix[0] * matrix[3] - matrix[1] * matrix[2] < 0)


@pytest.mark.skipif(not shutil.which("ffmpeg"), reason="FFmpeg's command is not installed")
@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuv420p10le", "yuv422p", "yuv444p", "yuvj420p"])
def test_pixels_are_those_of_ffmpegs_command(tmp_path, pixel_format):
    paths = [odd.oriented(tmp_path / f"{number}.mp4", matrix, pixel_format=pixel_format) for number, matrix in enumerate(odd.ORIENTATIONS)]
    for size in ((96, 160), (95, 159)):
        paths.append(tmp_path / f"{size[0]}.mkv")
        images = (barcode.draw(number)[: size[0], : size[1]] for number in range(5))
        write_video(paths[-1], images, codec="ffv1", pixel_format=pixel_format.replace("j", ""))
    for path in paths:
        command = ["ffmpeg", "-v", "error", "-i", path, "-fps_mode", "passthrough", "-pix_fmt", "rgb24", "-f", "rawvideo", "-"]
        done = subprocess.run(command, capture_output=True, check=True)
        assert done.stdout == b"".join(frame.tobytes() for frame in all_frames(path)), path.name


@pytest.mark.parametrize("first_frame_at", [30, 48, -50], ids=["inside", "a frame before the end", "far back"])
def test_recordings_joined_whose_clocks_overlap(tmp_path, first_frame_at):
    one = odd.transport(tmp_path / "one.ts", range(50))
    two = odd.transport(tmp_path / "two.ts", range(50, 100))
    later = odd.shifted(two, tmp_path / "later.ts", by=first_frame_at * odd.TICKS)
    info = check(odd.joined(tmp_path / "both.ts", one, later), list(range(100))).videos[0].info
    assert not info.jumps
    assert [info.frame_at(seconds) for seconds in (0.0, 1.0, 2.0, 3.0)] == [0, 25, 50, 75], "as if the clock went on"


@pytest.mark.parametrize("first_frame_at", [30, 47], ids=["far inside", "three frames inside"])
def test_clocks_that_overlap_where_no_packet_is_missing(tmp_path, first_frame_at):
    one = odd.transport(tmp_path / "one.ts", range(50))
    later = odd.shifted(odd.transport(tmp_path / "two.ts", range(50, 100)), tmp_path / "later.ts", by=first_frame_at * odd.TICKS + 7)
    path = tmp_path / "both.ts"
    path.write_bytes(odd.counted_on(one, later))
    info = check(path, list(range(100))).videos[0].info
    assert not info.missing
    assert not info.jumps


def test_the_same_recording_twice(tmp_path):
    one = odd.transport(tmp_path / "one.ts", range(50))
    index = check(odd.joined(tmp_path / "both.ts", one, one), [*range(50), *range(50)])
    assert not index.refused


def test_a_clock_that_goes_on(tmp_path):
    one = odd.transport(tmp_path / "one.ts", range(50))
    later = odd.shifted(odd.transport(tmp_path / "two.ts", range(50, 100)), tmp_path / "later.ts", by=50 * odd.TICKS)
    both = odd.joined(tmp_path / "both.ts", one, later)
    check(both, list(range(100)))


@pytest.mark.parametrize("suffix", [".ts", ".mts", ".mpg"])
def test_a_frame_of_a_stream_costs_one_group_of_pictures(tmp_path, monkeypatch, suffix):
    path = tmp_path / f"film{suffix}"
    codec = "mpeg2video" if suffix == ".mpg" else "libx264"
    # Large enough that a frame fills a packet of the container: where several share one, the later have no time stamp.
    large = (barcode.draw(number).repeat(4, 0).repeat(4, 1) for number in range(100))
    write_video(path, large, codec=codec, options={"g": "20", "bf": "2", "sc_threshold": "0", "q": "2"})
    info = info_of(path)
    assert len(info.key_frames) > 3
    fed, inner = [], VideoReader._packets_from

    def counted(*args):
        for packet in inner(*args):
            fed.append(packet)
            yield packet

    monkeypatch.setattr(VideoReader, "_packets_from", counted)
    with VideoReader(path, known=info) as video:
        for number in (93, 47, *range(81, 88)):
            assert barcode.read(video.stack([number])[0][1::4, 1::4]) == number
            assert len(fed) <= 25
            assert video.info.jumps, "nothing was decoded in order after all"
            fed.clear()
    full = all_frames(path)
    for known in (None, info):
        for ordinal, frame in zip(range(100), frames_of(path, range(100), known=known), strict=True):
            assert np.array_equal(frame, full[ordinal])


def verdict_of(path: Path) -> str:
    """Read a file in three ways, which must agree."""
    try:
        frames = all_frames(path)
    except Unreadable:
        with pytest.raises(Unreadable, match="damaged near frame"):
            info_of(path, decode=True)
        return "damaged"
    info = info_of(path)
    assert info.frames == len(frames) == info_of(path, decode=True).frames
    return "missing" if info.missing else "whole"


def test_packets_that_are_missing_are_said_to_be_missing(tmp_path):
    whole = odd.transport(tmp_path / "whole.ts", range(75))
    data = whole.read_bytes()
    programs = [int.from_bytes(data[place + 1 : place + 3], "big") & 0x1FFF for place in range(0, len(data), 188)]
    pictures = [place for place, program in enumerate(programs) if program == 0x100]
    begun = [place for place in pictures if data[188 * place + 1] & 0x40]
    found = 0
    for place in pictures[len(pictures) // 3 :][:12]:
        path = odd.lacking(whole, tmp_path / f"lacking-{place}.ts", place)
        if verdict_of(path) == "missing":
            (after,) = info_of(path).missing
            assert after == sum(other < place for other in begun), "frames that began before what is missing"
            found += 1
        else:
            assert verdict_of(path) == "damaged"
    assert found


def test_a_stream_that_begins_between_key_frames(tmp_path):
    whole = odd.transport(tmp_path / "whole.ts", range(75))
    path = odd.without(whole, tmp_path / "begun.ts", range(11))
    wanted = [barcode.read(frame.to_ndarray(format="rgb24")) for frame in odd.decoded(path) if not frame.is_corrupt]
    assert wanted[-50:] == list(range(25, 75))
    check(path, wanted)


@pytest.mark.parametrize("codec", ["libvpx", "libvpx-vp9"])
def test_pictures_whose_size_changes_are_shown_at_the_size_of_the_first(tmp_path, codec):
    path = odd.resized_on_the_way(tmp_path / "film.webm", codec=codec)
    sizes = {(frame.height, frame.width) for frame in odd.decoded(path)}
    assert sizes == {(96, 160), (48, 80)}
    check(path, list(range(40)))


def test_pixels_whose_format_changes(tmp_path):
    one = odd.transport(tmp_path / "one.ts", range(25))
    two = odd.transport(tmp_path / "two.ts", range(25, 50), pixel_format="yuv444p")
    path = odd.joined(tmp_path / "both.ts", one, odd.shifted(two, tmp_path / "later.ts", by=25 * odd.TICKS))
    assert {frame.format.name for frame in odd.decoded(path)} == {"yuv420p", "yuv444p"}
    check(path, list(range(50)))


def test_seconds_in_an_avi_with_null_frames(tmp_path):
    path = odd.with_gaps(tmp_path / "film.avi")
    info = check(path, [number for number in range(60) if number % 3 < 2]).videos[0].info
    assert [info.frame_at(seconds) for seconds in (0.0, 0.5, 1.0, 1.5, 2.0)] == [0, 10, 20, 30, 40]
    table = tmp_path / "parts.csv"
    table.write_text("path,label,start,end\nfilm.avi,a,0,1\nfilm.avi,b,1,2\n")
    videos = scan(table, format="csv", out=tmp_path / "parts.jsonl", workers=1).videos
    assert [(video.first_frame, video.frames) for video in videos] == [(0, 20), (20, 20)]
    assert DatasetIndex.load(tmp_path / "parts.jsonl").videos == videos


@pytest.mark.parametrize("kind", [kind for kind in barcode.KINDS if kind.suffix in {".avi", ".ts", ".mkv", ".mpg"}], ids=str)
def test_seconds_by_the_frames_own_time_stamps(barcodes, kind):
    info = info_of(barcodes(kind), decode=True)
    times = kind.more.get("timestamps", range(0, 40 * kind.frames, 40))
    for number in (0, 1, kind.frames // 2, kind.frames - 1):
        assert info.frame_at(times[number] / 1000) == number


def test_a_stream_without_time_stamps_has_no_seconds(tmp_path, barcodes):
    path = barcodes(next(kind for kind in barcode.KINDS if kind.suffix == ".h264"))
    with pytest.raises(FlowlessError, match="no time stamps"):
        info_of(path).frame_at(1.0)


def test_a_file_that_has_changed_is_looked_at_again(tmp_path, barcodes):
    (tmp_path / "a").mkdir()
    film = tmp_path / "a" / "film.ts"
    odd.transport(film, range(50))
    index = scan(tmp_path, out=tmp_path / "index.jsonl", workers=1)
    (record,) = index.videos
    odd.transport(film, range(100, 150), pixel_format="yuv444p")
    with index.open(record) as video:
        assert [barcode.read(frame) for _, frame in video.frames([0, 49])] == [100, 149]
    odd.transport(film, range(10))
    with pytest.raises(FlowlessError, match="it has 10 frames, fewer than when it was indexed"):
        index.open(record)


def test_a_mirrored_video_is_not_left_to_dali(tmp_path):
    (tmp_path / "a").mkdir()
    path = tmp_path / "a" / "film.mp4"
    odd.oriented(path, (-1, 0, 0, 1))
    index = scan(tmp_path, out=tmp_path / "index.jsonl", workers=1)
    frame_source = pytest.importorskip("flowless.pipeline.loading.frame_source")
    vp9 = replace(index, videos=tuple(replace(video, info=replace(video.info, codec="vp9")) for video in index.videos))
    with pytest.raises(FlowlessError, match="it is shown mirrored"):
        frame_source.decoders_for(vp9, device="cpu", decoder="dali")


def test_packed_b_frames(tmp_path):
    path = odd.with_packed_b_frames(tmp_path / "film.avi")
    wanted = [barcode.read(frame.to_ndarray(format="rgb24")) for frame in odd.decoded(path)]
    assert len(wanted) >= 40
    check(path, wanted)


def test_times_of_showing_that_are_those_of_decoding(tmp_path):
    path = odd.without_times_of_showing(tmp_path / "film.mp4")
    wanted = [barcode.read(frame.to_ndarray(format="rgb24")) for frame in odd.decoded(path)]
    assert len(wanted) >= 49
    check(path, wanted)
    write_video(tmp_path / "film.asf", (barcode.draw(number) for number in range(50)), options={"g": "10", "bf": "2"})
    info = check(tmp_path / "film.asf", list(range(50))).videos[0].info
    assert [info.frame_at(seconds) for seconds in (0.0, 0.04, 1.0, 1.96)] == [0, 1, 25, 49]


@pytest.mark.parametrize("padding", [b"", b"\x7f" * 40], ids=["short", "padded"])
def test_a_picture_that_is_not_coded(tmp_path, padding):
    path = odd.with_a_picture_that_is_not_coded(tmp_path / "film.mp4", padding=padding)
    wanted = [barcode.read(frame.to_ndarray(format="rgb24")) for frame in odd.decoded(path)]
    assert len(wanted) == 39
    check(path, wanted)


@pytest.mark.parametrize("number", [5, 11], ids=["in the middle", "the last"])
def test_an_empty_sample_is_no_cut(tmp_path, number):
    path = odd.with_an_empty_sample(tmp_path / "film.mp4", number)
    check(path, [other for other in range(12) if other != number])


def test_another_reading_ends_the_first(tmp_path, barcodes):
    for kind in (barcode.KINDS[0], next(kind for kind in barcode.KINDS if kind.suffix == ".avi")):
        with VideoReader(barcodes(kind)) as video:
            first = iter(video)
            assert [barcode.read(next(first)) for _ in range(3)] == [0, 1, 2]
            assert barcode.read(video.stack([50])[0]) == 50
            with pytest.raises(FlowlessError, match="another reading of it has begun"):
                list(first)
            kept = video.frames([70, 80])
            assert next(kept)[0] == 70
        with pytest.raises(FlowlessError, match="it is closed"):
            video.stack([3])


def test_packets_that_give_no_frame_are_no_frames(tmp_path):
    path = odd.with_a_packet_that_gives_no_frame(tmp_path / "film.mkv")
    assert info_of(path).frames == 20, "by its packets"
    assert len(all_frames(path)) == info_of(path, decode=True).frames == 19
    long = replace(SPEC, segments=20, frames_per_segment=1)
    clip = load_clip(path, long)
    with VideoReader(path) as video:
        video.prove()
        wanted = load_views(video, long).cut()
    assert np.array_equal(clip, wanted)
    folder = tmp_path / "set"
    (folder / "a").mkdir(parents=True)
    (folder / "a" / "film.mkv").symlink_to(path)
    index = scan(folder, out=tmp_path / "index.jsonl", workers=1)
    assert np.array_equal(load_record(index, index.videos[0], long), wanted)


@pytest.mark.parametrize(("before", "after", "lost"), [(0, 3, 1), (1, 4, 1), (3, 3, 0)])
def test_a_decoder_that_has_to_guess_how_far_frames_are_reordered(tmp_path, before, after, lost):
    path = odd.beginning_to_reorder(tmp_path / "film.ts", before=before, after=after)
    wanted = [barcode.read(frame.to_ndarray(format="rgb24")) for frame in odd.decoded(path)]
    assert len(wanted) == 100 - lost, "the decoder loses one where it learns that it guessed too low"
    assert info_of(path).proved == bool(lost), "then alone all are decoded to count them"
    assert check(path, wanted).videos[0].info.jumps == (not lost)


def test_frames_that_are_reordered_as_far_as_the_header_says(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (25, 96, 160, 3), np.uint8)
    path = tmp_path / "film.ts"
    write_video(path, [*noise, *map(barcode.draw, range(75))], options={"bf": "3", "b-pyramid": "normal", "g": "50"})
    stamps = [packet.pts or 0 for packet in odd.packets(path)]
    assert stamps[:20] == sorted(stamps[:20]), "no B-frames at first"
    assert stamps != sorted(stamps)
    assert not info_of(path).proved
    assert check(path, [frame.to_ndarray(format="rgb24") for frame in odd.decoded(path)]).videos[0].info.jumps


@pytest.mark.parametrize("options", [{}, {"profile": "baseline"}, {"x264-params": "nal-hrd=vbr:vbv-maxrate=500:vbv-bufsize=500:cqm=jvt"}])
@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuv444p"])
def test_what_a_header_says_of_reordering(tmp_path, options, pixel_format):
    if pixel_format == "yuv444p" and "profile" in options:
        pytest.skip("baseline has 4:2:0 alone")
    for name in ("film.mp4", "film.ts"):
        write_video(
            tmp_path / name, map(barcode.draw, range(5)), pixel_format=pixel_format, options={**options, "color_primaries": "bt709"}
        )
        with av.open(str(tmp_path / name)) as container:
            header = container.streams.video[0].codec_context.extradata or b""
        assert most_reordered(header) is not None
        assert most_reordered(header[:20]) is None
    assert most_reordered(None) is None


@pytest.mark.parametrize("codec", ["libx264", "libx265", "mpeg4", "mpeg2video", "libvpx-vp9"])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_key_frames_that_are_none(tmp_path, codec, suffix):
    check(odd.with_false_key_frames(tmp_path / f"film{suffix}", codec), list(range(60)))


def test_frames_that_are_to_be_shown_long_before_their_turn(tmp_path):
    path = odd.shown_before_their_turn(tmp_path / "film.flv")
    assert not check(path, list(range(100))).videos[0].info.jumps
