"""Videos with unusual structure: all ways of reading agree on the frames, and match FFmpeg."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import av
import barcode
import numpy as np
import pytest
import unusual_videos as unusual
from reading_checks import SPEC, check_all_readers
from video_files import all_frames, frames_of, info_of

from flowless.errors import FlowlessError
from flowless.pipeline.clip.preprocess import load_clip, load_record, load_views
from flowless.pipeline.dataset.index import DatasetIndex
from flowless.pipeline.dataset.scan import scan
from flowless.pipeline.video.container import Unreadable
from flowless.pipeline.video.encode import write_video
from flowless.pipeline.video.h264_header import max_reorder_frames
from flowless.pipeline.video.reader import VideoReader


@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuv420p10le", "yuv422p"])
@pytest.mark.parametrize("matrix", unusual.ORIENTATIONS, ids=str)
def test_orientations_match_ffmpeg(tmp_path, matrix, pixel_format):
    path = unusual.oriented(tmp_path / "film.mp4", matrix, pixel_format=pixel_format)
    wanted = unusual.autorotated(path, unusual.ORIENTATIONS[matrix])
    info = check_all_readers(path, wanted).videos[0].info
    assert (info.height, info.width) == wanted[0].shape[:2]
    assert info.mirrored == (matrix[0] * matrix[3] - matrix[1] * matrix[2] < 0)


@pytest.mark.skipif(not shutil.which("ffmpeg"), reason="FFmpeg's command is not installed")
@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuv420p10le", "yuv422p", "yuv444p", "yuvj420p"])
def test_pixels_match_the_ffmpeg_command(tmp_path, pixel_format):
    paths = [
        unusual.oriented(tmp_path / f"{number}.mp4", matrix, pixel_format=pixel_format)
        for number, matrix in enumerate(unusual.ORIENTATIONS)
    ]
    for size in ((96, 160), (95, 159)):
        paths.append(tmp_path / f"{size[0]}.mkv")
        images = (barcode.draw(number)[: size[0], : size[1]] for number in range(5))
        write_video(paths[-1], images, codec="ffv1", pixel_format=pixel_format.replace("j", ""))
    for path in paths:
        command = ["ffmpeg", "-v", "error", "-i", path, "-fps_mode", "passthrough", "-pix_fmt", "rgb24", "-f", "rawvideo", "-"]
        done = subprocess.run(command, capture_output=True, check=True)
        assert done.stdout == b"".join(frame.tobytes() for frame in all_frames(path)), path.name


@pytest.mark.parametrize("first_frame_at", [30, 48, -50], ids=["inside", "a frame before the end", "far back"])
def test_joined_recordings_with_overlapping_clocks(tmp_path, first_frame_at):
    one = unusual.transport(tmp_path / "one.ts", range(50))
    two = unusual.transport(tmp_path / "two.ts", range(50, 100))
    later = unusual.shifted(two, tmp_path / "later.ts", by=first_frame_at * unusual.TICKS)
    info = check_all_readers(unusual.joined(tmp_path / "both.ts", one, later), list(range(100))).videos[0].info
    assert not info.seekable
    assert [info.frame_at(seconds) for seconds in (0.0, 1.0, 2.0, 3.0)] == [0, 25, 50, 75], "as with a continuous clock"


@pytest.mark.parametrize("first_frame_at", [30, 47], ids=["far inside", "three frames inside"])
def test_overlapping_clocks_without_missing_packets(tmp_path, first_frame_at):
    one = unusual.transport(tmp_path / "one.ts", range(50))
    later = unusual.shifted(
        unusual.transport(tmp_path / "two.ts", range(50, 100)), tmp_path / "later.ts", by=first_frame_at * unusual.TICKS + 7
    )
    path = tmp_path / "both.ts"
    path.write_bytes(unusual.joined_with_continuous_counters(one, later))
    info = check_all_readers(path, list(range(100))).videos[0].info
    assert not info.missing
    assert not info.seekable


def test_a_recording_joined_to_itself(tmp_path):
    one = unusual.transport(tmp_path / "one.ts", range(50))
    index = check_all_readers(unusual.joined(tmp_path / "both.ts", one, one), [*range(50), *range(50)])
    assert not index.refused


def test_joined_recordings_with_continuous_clock(tmp_path):
    one = unusual.transport(tmp_path / "one.ts", range(50))
    later = unusual.shifted(unusual.transport(tmp_path / "two.ts", range(50, 100)), tmp_path / "later.ts", by=50 * unusual.TICKS)
    both = unusual.joined(tmp_path / "both.ts", one, later)
    check_all_readers(both, list(range(100)))


@pytest.mark.parametrize("suffix", [".ts", ".mts", ".mpg"])
def test_seeking_in_a_program_stream_reads_one_group_of_pictures(tmp_path, monkeypatch, suffix):
    path = tmp_path / f"film{suffix}"
    codec = "mpeg2video" if suffix == ".mpg" else "libx264"
    # Large frames, so that each fills a container packet: where several share one, only the first has a time stamp.
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
            assert video.info.seekable, "seeking was not disabled"
            fed.clear()
    full = all_frames(path)
    for known in (None, info):
        for ordinal, frame in zip(range(100), frames_of(path, range(100), known=known), strict=True):
            assert np.array_equal(frame, full[ordinal])


def condition_of(path: Path) -> str:
    """Read a file in three ways, which must agree: "damaged", "missing" (packets) or "whole"."""
    try:
        frames = all_frames(path)
    except Unreadable:
        with pytest.raises(Unreadable, match="damaged near frame"):
            info_of(path, decode=True)
        return "damaged"
    info = info_of(path)
    assert info.frames == len(frames) == info_of(path, decode=True).frames
    return "missing" if info.missing else "whole"


def test_missing_packets_are_reported(tmp_path):
    whole = unusual.transport(tmp_path / "whole.ts", range(75))
    data = whole.read_bytes()
    programs = [int.from_bytes(data[place + 1 : place + 3], "big") & 0x1FFF for place in range(0, len(data), 188)]
    video_packets = [place for place, program in enumerate(programs) if program == 0x100]
    frame_starts = [place for place in video_packets if data[188 * place + 1] & 0x40]
    found = 0
    for place in video_packets[len(video_packets) // 3 :][:12]:
        path = unusual.without_transport_packet(whole, tmp_path / f"lacking-{place}.ts", place)
        if condition_of(path) == "missing":
            (after,) = info_of(path).missing
            assert after == sum(other < place for other in frame_starts), "frames that begin before the missing packet"
            found += 1
        else:
            assert condition_of(path) == "damaged"
    assert found


def test_a_stream_that_begins_between_key_frames(tmp_path):
    whole = unusual.transport(tmp_path / "whole.ts", range(75))
    path = unusual.without(whole, tmp_path / "begun.ts", range(11))
    wanted = [barcode.read(frame.to_ndarray(format="rgb24")) for frame in unusual.decoded(path) if not frame.is_corrupt]
    assert wanted[-50:] == list(range(25, 75))
    check_all_readers(path, wanted)


@pytest.mark.parametrize("codec", ["libvpx", "libvpx-vp9"])
def test_frames_of_changing_size_get_the_size_of_the_first(tmp_path, codec):
    path = unusual.with_changing_size(tmp_path / "film.webm", codec=codec)
    sizes = {(frame.height, frame.width) for frame in unusual.decoded(path)}
    assert sizes == {(96, 160), (48, 80)}
    check_all_readers(path, list(range(40)))


def test_changing_pixel_format(tmp_path):
    one = unusual.transport(tmp_path / "one.ts", range(25))
    two = unusual.transport(tmp_path / "two.ts", range(25, 50), pixel_format="yuv444p")
    path = unusual.joined(tmp_path / "both.ts", one, unusual.shifted(two, tmp_path / "later.ts", by=25 * unusual.TICKS))
    assert {frame.format.name for frame in unusual.decoded(path)} == {"yuv420p", "yuv444p"}
    check_all_readers(path, list(range(50)))


def test_frame_at_in_an_avi_with_null_frames(tmp_path):
    path = unusual.with_gaps(tmp_path / "film.avi")
    info = check_all_readers(path, [number for number in range(60) if number % 3 < 2]).videos[0].info
    assert [info.frame_at(seconds) for seconds in (0.0, 0.5, 1.0, 1.5, 2.0)] == [0, 10, 20, 30, 40]
    table = tmp_path / "parts.csv"
    table.write_text("path,label,start,end\nfilm.avi,a,0,1\nfilm.avi,b,1,2\n")
    videos = scan(table, format="csv", out=tmp_path / "parts.jsonl", workers=1).videos
    assert [(video.first_frame, video.frames) for video in videos] == [(0, 20), (20, 20)]
    assert DatasetIndex.load(tmp_path / "parts.jsonl").videos == videos


@pytest.mark.parametrize("kind", [kind for kind in barcode.KINDS if kind.suffix in {".avi", ".ts", ".mkv", ".mpg"}], ids=str)
def test_frame_at_matches_time_stamps(barcodes, kind):
    info = info_of(barcodes(kind), decode=True)
    times = kind.more.get("timestamps", range(0, 40 * kind.frames, 40))
    for number in (0, 1, kind.frames // 2, kind.frames - 1):
        assert info.frame_at(times[number] / 1000) == number


def test_frame_at_needs_time_stamps(tmp_path, barcodes):
    path = barcodes(next(kind for kind in barcode.KINDS if kind.suffix == ".h264"))
    with pytest.raises(FlowlessError, match="no time stamps"):
        info_of(path).frame_at(1.0)


def test_a_changed_file_is_inspected_again(tmp_path, barcodes):
    (tmp_path / "a").mkdir()
    film = tmp_path / "a" / "film.ts"
    unusual.transport(film, range(50))
    index = scan(tmp_path, out=tmp_path / "index.jsonl", workers=1)
    (record,) = index.videos
    unusual.transport(film, range(100, 150), pixel_format="yuv444p")
    with index.open(record) as video:
        assert [barcode.read(frame) for _, frame in video.frames([0, 49])] == [100, 149]
    unusual.transport(film, range(10))
    with pytest.raises(FlowlessError, match="it has 10 frames, fewer than when it was indexed"):
        index.open(record)


def test_a_mirrored_video_is_not_decoded_by_dali(tmp_path):
    (tmp_path / "a").mkdir()
    path = tmp_path / "a" / "film.mp4"
    unusual.oriented(path, (-1, 0, 0, 1))
    index = scan(tmp_path, out=tmp_path / "index.jsonl", workers=1)
    frame_source = pytest.importorskip("flowless.pipeline.loading.frame_source")
    vp9 = replace(index, videos=tuple(replace(video, info=replace(video.info, codec="vp9")) for video in index.videos))
    with pytest.raises(FlowlessError, match="it is displayed mirrored"):
        frame_source.decoders_for(vp9, device="cpu", decoder="dali")


def test_packed_b_frames(tmp_path):
    path = unusual.with_packed_b_frames(tmp_path / "film.avi")
    wanted = [barcode.read(frame.to_ndarray(format="rgb24")) for frame in unusual.decoded(path)]
    assert len(wanted) >= 40
    check_all_readers(path, wanted)


def test_pts_equal_to_dts(tmp_path):
    path = unusual.with_pts_equal_to_dts(tmp_path / "film.mp4")
    wanted = [barcode.read(frame.to_ndarray(format="rgb24")) for frame in unusual.decoded(path)]
    assert len(wanted) >= 49
    check_all_readers(path, wanted)
    write_video(tmp_path / "film.asf", (barcode.draw(number) for number in range(50)), options={"g": "10", "bf": "2"})
    info = check_all_readers(tmp_path / "film.asf", list(range(50))).videos[0].info
    assert [info.frame_at(seconds) for seconds in (0.0, 0.04, 1.0, 1.96)] == [0, 1, 25, 49]


@pytest.mark.parametrize("padding", [b"", b"\x7f" * 40], ids=["short", "padded"])
def test_uncoded_picture(tmp_path, padding):
    path = unusual.with_uncoded_picture(tmp_path / "film.mp4", padding=padding)
    wanted = [barcode.read(frame.to_ndarray(format="rgb24")) for frame in unusual.decoded(path)]
    assert len(wanted) == 39
    check_all_readers(path, wanted)


@pytest.mark.parametrize("number", [5, 11], ids=["in the middle", "the last"])
def test_an_empty_sample_is_not_truncation(tmp_path, number):
    path = unusual.with_empty_sample(tmp_path / "film.mp4", number)
    check_all_readers(path, [other for other in range(12) if other != number])


def test_a_second_iterator_invalidates_the_first(tmp_path, barcodes):
    for kind in (barcode.KINDS[0], next(kind for kind in barcode.KINDS if kind.suffix == ".avi")):
        with VideoReader(barcodes(kind)) as video:
            first = iter(video)
            assert [barcode.read(next(first)) for _ in range(3)] == [0, 1, 2]
            assert barcode.read(video.stack([50])[0]) == 50
            with pytest.raises(FlowlessError, match="another iterator was started"):
                list(first)
            kept = video.frames([70, 80])
            assert next(kept)[0] == 70
        with pytest.raises(FlowlessError, match="it is closed"):
            video.stack([3])


def test_packets_without_frames_are_not_counted(tmp_path):
    path = unusual.with_packet_without_frame(tmp_path / "film.mkv")
    assert info_of(path).frames == 20, "counted in the packets"
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
def test_reordering_that_ffmpeg_underestimates(tmp_path, before, after, lost):
    path = unusual.with_increasing_reordering(tmp_path / "film.ts", before=before, after=after)
    wanted = [barcode.read(frame.to_ndarray(format="rgb24")) for frame in unusual.decoded(path)]
    assert len(wanted) == 100 - lost, "the decoder drops a frame when it raises its estimate"
    assert info_of(path).proved == bool(lost), "all frames are decoded for counting only then"
    assert check_all_readers(path, wanted).videos[0].info.seekable == (not lost)


def test_reordering_limit_in_the_header(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (25, 96, 160, 3), np.uint8)
    path = tmp_path / "film.ts"
    write_video(path, [*noise, *map(barcode.draw, range(75))], options={"bf": "3", "b-pyramid": "normal", "g": "50"})
    stamps = [packet.pts or 0 for packet in unusual.packets(path)]
    assert stamps[:20] == sorted(stamps[:20]), "no B-frames at first"
    assert stamps != sorted(stamps)
    assert not info_of(path).proved
    assert check_all_readers(path, [frame.to_ndarray(format="rgb24") for frame in unusual.decoded(path)]).videos[0].info.seekable


@pytest.mark.parametrize("options", [{}, {"profile": "baseline"}, {"x264-params": "nal-hrd=vbr:vbv-maxrate=500:vbv-bufsize=500:cqm=jvt"}])
@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuv444p"])
def test_max_reorder_frames(tmp_path, options, pixel_format):
    if pixel_format == "yuv444p" and "profile" in options:
        pytest.skip("baseline has 4:2:0 alone")
    for name in ("film.mp4", "film.ts"):
        write_video(
            tmp_path / name, map(barcode.draw, range(5)), pixel_format=pixel_format, options={**options, "color_primaries": "bt709"}
        )
        with av.open(str(tmp_path / name)) as container:
            header = container.streams.video[0].codec_context.extradata or b""
        assert max_reorder_frames(header) is not None
        assert max_reorder_frames(header[:20]) is None
    assert max_reorder_frames(None) is None


@pytest.mark.parametrize("codec", ["libx264", "libx265", "mpeg4", "mpeg2video", "libvpx-vp9"])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_false_key_frames(tmp_path, codec, suffix):
    check_all_readers(unusual.with_false_key_frames(tmp_path / f"film{suffix}", codec), list(range(60)))


def test_wrong_pts_order(tmp_path):
    path = unusual.with_wrong_pts_order(tmp_path / "film.flv")
    assert not check_all_readers(path, list(range(100))).videos[0].info.seekable
