"""Makes videos with unusual structure, which readers often get wrong, from bar codes with PyAV."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import barcode
import numpy as np
from av.filter import Graph

from flowless.pipeline.video.encode import write_video

#: Display matrix (a, b, c, d), which maps stored columns to (a, b) and rows to (c, d) -> filters of FFmpeg's autorotation.
ORIENTATIONS = {
    (1, 0, 0, 1): [],
    (0, 1, -1, 0): [("transpose", "clock")],
    (-1, 0, 0, -1): [("hflip", ""), ("vflip", "")],
    (0, -1, 1, 0): [("transpose", "cclock")],
    (-1, 0, 0, 1): [("hflip", "")],
    (1, 0, 0, -1): [("vflip", "")],
    (0, 1, 1, 0): [("transpose", "cclock_flip")],
    (0, -1, -1, 0): [("transpose", "clock_flip")],
}

TICKS = 3600  # per frame, at 25 frames and 90 000 ticks per second


def oriented(path: Path, matrix: tuple[int, int, int, int], *, frames: int = 6, pixel_format: str = "yuv420p") -> Path:
    """Write a video with a display matrix; its stored frames are upright."""
    a, b, c, d = (65536 * value for value in matrix)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, width=barcode.WIDTH, height=barcode.HEIGHT, pix_fmt=pixel_format)
        stream.set_display_matrix([a, b, 0, c, d, 0, 0, 0, 1 << 30])
        for number in range(frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(barcode.draw(number), format="rgb24")))
        container.mux(stream.encode(None))
    return path


def autorotated(path: Path, filters: list[tuple[str, str]]) -> list[np.ndarray]:
    """Decode a file with PyAV, applying FFmpeg's filters to each frame."""
    shown = []
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            graph = Graph()
            last = graph.add_buffer(template=container.streams.video[0])
            for name, options in filters:
                step = graph.add(name, options) if options else graph.add(name)
                last.link_to(step)
                last = step
            graph.link_nodes(last, graph.add("format", "rgb24"), graph.add("buffersink")).configure()
            graph.push(frame)
            turned = graph.pull()
            assert isinstance(turned, av.VideoFrame)
            shown.append(turned.to_ndarray(format="rgb24"))
    return shown


def transport(path: Path, numbers: Iterable[int], *, draw: Callable[[int], np.ndarray] = barcode.draw, **more: object) -> Path:
    """Write frames as H.264 with B-frames and a key frame every 25 frames, usually into a transport stream."""
    options = {"g": "25", "bf": "2", "b-pyramid": "none", "sc_threshold": "0"}
    write_video(path, (draw(number) for number in numbers), options=options, **more)  # pyright: ignore[reportArgumentType]
    return path


def shifted(source: Path, target: Path, *, by: int) -> Path:
    """Copy a transport stream with all time stamps increased by `by` ticks of 1/90 000 s."""
    with av.open(str(source)) as before, av.open(str(target), "w") as after:
        stream = after.add_stream_from_template(before.streams.video[0])
        for packet in before.demux(video=0):
            if packet.size:
                packet.stream = stream
                assert packet.pts is not None
                assert packet.dts is not None
                packet.pts, packet.dts = packet.pts + by, packet.dts + by
                after.mux(packet)
    return target


def joined(path: Path, *parts: Path) -> Path:
    """Concatenate files, as `cat` does."""
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    return path


def joined_with_continuous_counters(*parts: Path) -> bytes:
    """Return concatenated transport streams with continuous packet counters, as if no packet were missing between them."""
    data, last = bytearray(b"".join(part.read_bytes() for part in parts)), {}
    for place in range(0, len(data), 188):
        program = int.from_bytes(data[place + 1 : place + 3], "big") & 0x1FFF
        if data[place + 3] & 0x10:  # it has a payload, so it counts
            last[program] = (last.get(program, -1) + 1) % 16
            data[place + 3] = data[place + 3] & 0xF0 | last[program]
    return bytes(data)


def without(source: Path, target: Path, places: Iterable[int]) -> Path:
    """Copy a file without some of its packets, given by their position in decode order."""
    left_out = set(places)
    with av.open(str(source)) as before, av.open(str(target), "w") as after:
        stream = after.add_stream_from_template(before.streams.video[0])
        for place, packet in enumerate(packet for packet in before.demux(video=0) if packet.size):
            if place not in left_out:
                packet.stream = stream
                after.mux(packet)
    return target


def restamped(source: Path, target: Path, by: Callable[[int], int]) -> Path:
    """Copy a file, adding `by(position in decode order)` milliseconds to each packet's PTS."""
    with av.open(str(source)) as before, av.open(str(target), "w") as after:
        stream = after.add_stream_from_template(before.streams.video[0])
        for place, packet in enumerate(packet for packet in before.demux(video=0) if packet.size):
            packet.stream = stream
            assert packet.pts is not None
            packet.pts += 2000 + by(place)
            packet.dts = place  # ascending, and earlier than any of those
            after.mux(packet)
    return target


def without_transport_packet(source: Path, target: Path, place: int) -> Path:
    """Copy a transport stream without one of its 188-byte packets."""
    data = source.read_bytes()
    target.write_bytes(data[: 188 * place] + data[188 * (place + 1) :])
    return target


def with_changing_size(path: Path, *, codec: str = "libvpx") -> Path:
    """Write 20 frames of 160 x 96 and then 20 of 80 x 48 into one stream whose key frames contain the size."""
    options = {"deadline": "realtime", "cpu-used": "8", "lag-in-frames": "0"}
    halves = [path.with_name(f"{path.stem}-{number}.webm") for number in range(2)]
    write_video(halves[0], (barcode.draw(number) for number in range(20)), codec=codec, options=options)
    write_video(halves[1], (barcode.draw(number)[::2, ::2] for number in range(20, 40)), codec=codec, options=options)
    with av.open(str(path), "w") as after:
        stream = None
        for part, half in enumerate(halves):
            with av.open(str(half)) as before:
                stream = stream or after.add_stream_from_template(before.streams.video[0])
                for packet in before.demux(video=0):
                    if packet.size:
                        packet.stream = stream
                        assert packet.pts is not None
                        packet.pts = packet.dts = packet.pts + part * 20 * 40
                        after.mux(packet)
    return path


def with_gaps(path: Path) -> Path:
    """Write an AVI at 30 frames per second that stores 20 of every 30 frames: the muxer fills the gaps with null frames."""
    kept = [number for number in range(60) if number % 3 < 2]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=30, width=barcode.WIDTH, height=barcode.HEIGHT, pix_fmt="yuvj420p")
        for number in kept:
            frame = av.VideoFrame.from_ndarray(barcode.draw(number), format="rgb24")
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def decoded(path: Path) -> Iterator[av.VideoFrame]:
    """Yield the frames of FFmpeg's decoder, in its order."""
    with av.open(str(path), metadata_errors="replace") as container:
        yield from container.decode(video=0)


def packets(path: Path) -> list[av.Packet]:
    """Return a file's video packets, in decode order."""
    with av.open(str(path)) as container:
        return [packet for packet in container.demux(video=0) if packet.size]


def with_packed_b_frames(path: Path, *, frames: int = 41) -> Path:
    """Write MPEG-4 in AVI as DivX 5 did: each B-frame is in the packet of its reference frame, and its own packet has a placeholder."""
    plain = path.with_name(f"{path.stem}-plain.avi")
    write_video(plain, (barcode.draw(number) for number in range(frames)), codec="mpeg4", options={"bf": "1", "g": "20", "q": "3"})
    with av.open(str(plain)) as before:
        stored = [bytes(packet) for packet in before.demux(video=0) if packet.size]
        kinds = [data[data.index(b"\x00\x00\x01\xb6") + 4] >> 6 for data in stored]
        packed: list[bytes] = []
        place = 0
        while place < len(stored):
            followed = place + 1 < len(stored) and kinds[place + 1] == 2  # a B-frame
            data = stored[place] + (stored[place + 1] if followed else b"")
            if not packed:
                begin = data.index(b"\x00\x00\x01\xb6")
                data = data[:begin] + b"\x00\x00\x01\xb2DivX503b1393p" + data[begin:]
            packed.append(data)
            if followed:
                packed.append(b"\x00\x00\x01\xb6\x5a\x82\x7f")
            place += 2 if followed else 1
        with av.open(str(path), "w") as after:
            stream = after.add_stream_from_template(before.streams.video[0])
            for number, data in enumerate(packed):
                packet = av.Packet(data)
                packet.stream, packet.pts, packet.dts = stream, number, number
                packet.time_base = before.streams.video[0].time_base or Fraction(1, 25)
                packet.is_keyframe = kinds[0] == 0 and number == 0
                after.mux(packet)
    return path


def with_pts_equal_to_dts(path: Path) -> Path:
    """Write H.264 with B-frames into MP4, with PTS replaced by DTS."""
    whole = transport(path.with_name(f"{path.stem}-whole.mp4"), range(50))
    with av.open(str(whole)) as before, av.open(str(path), "w") as after:
        stream = after.add_stream_from_template(before.streams.video[0])
        for packet in before.demux(video=0):
            if packet.size:
                packet.stream, packet.pts = stream, packet.dts
                after.mux(packet)
    return path


def with_wrong_pts_order(path: Path) -> Path:
    """Write H.264 into FLV with time stamps that display the second half before most of the first, unlike the stream itself."""
    whole = path.with_name(f"{path.stem}-whole.flv")
    write_video(whole, (barcode.draw(number) for number in range(100)), options={"g": "25", "bf": "0", "sc_threshold": "0"})
    with av.open(str(whole)) as before, av.open(str(path), "w") as after:
        stream = after.add_stream_from_template(before.streams.video[0])
        for number, packet in enumerate(packet for packet in before.demux(video=0) if packet.size):
            packet.stream = stream
            assert packet.pts is not None
            assert packet.dts is not None
            packet.pts += 4000 if 0 < number < 50 else 0  # milliseconds: as long as all frames last
            after.mux(packet)
    return path


def with_uncoded_picture(path: Path, *, padding: bytes = b"") -> Path:
    """Write MPEG-4 in MP4 with a packet whose `vop_coded` bit is 0, which gives no frame."""
    whole = path.with_name(f"{path.stem}-whole.mp4")
    write_video(whole, (barcode.draw(number) for number in range(40)), codec="mpeg4", options={"g": "10", "q": "3"})
    with av.open(str(whole)) as before, av.open(str(path), "w") as after:
        stream = after.add_stream_from_template(before.streams.video[0])
        for number, packet in enumerate(packet for packet in before.demux(video=0) if packet.size):
            # A P-picture at 5/25 s with `vop_coded` = 0, padded to a byte.
            nothing = int("01" + "0" + "1" + "00101" + "1" + "0" + "01111", 2).to_bytes(2, "big")
            copy = av.Packet(b"\x00\x00\x01\xb6" + nothing + padding if number == 5 else bytes(packet))
            copy.stream, copy.pts, copy.dts, copy.time_base = stream, packet.pts, packet.dts, packet.time_base
            copy.is_keyframe = packet.is_keyframe
            after.mux(copy)
    return path


def with_empty_sample(path: Path, number: int) -> Path:
    """Write 12 key frames into MP4 and remove the bytes of one; its entry in the sample table stays."""
    write_video(path, (barcode.draw(frame) for frame in range(12)), options={"g": "1"})
    data = bytearray(path.read_bytes())
    table, mdat = data.index(b"stsz") + 16, data.index(b"mdat") - 4
    sizes = struct.unpack(">12I", data[table : table + 48])
    chunks, begin = struct.unpack(">2I", data[data.index(b"stco") + 8 :][:8])
    assert chunks == 1
    data[table + 4 * number : table + 4 * number + 4] = bytes(4)
    data[mdat : mdat + 4] = struct.pack(">I", struct.unpack(">I", data[mdat : mdat + 4])[0] - sizes[number])
    begin += sum(sizes[:number])
    del data[begin : begin + sizes[number]]
    path.write_bytes(data)
    return path


def with_packet_without_frame(path: Path, *, frames: int = 20) -> Path:
    """Write AV1 in Matroska whose last packet has a delimiter and padding instead of a picture."""
    options = {"preset": "12", "crf": "40", "svtav1-params": "keyint=10"}
    write_video(path, (barcode.draw(number) for number in range(frames)), codec="libsvtav1", options=options)
    with av.open(str(path)) as container:
        last = [bytes(packet) for packet in container.demux(video=0) if packet.size][-1]
    padding = len(last) - 5
    data = path.read_bytes()
    assert 0 < padding < 2**14
    assert data.count(last) == 1
    nothing = b"\x12\x00" + bytes([0x7A, padding & 0x7F | 0x80, padding >> 7]) + bytes(padding)
    path.write_bytes(data.replace(last, nothing))
    return path


def with_false_key_frames(path: Path, codec: str) -> Path:
    """Write a file that marks predicted frames as key frames."""
    options = {"g": "40", "bf": "0", "sc_threshold": "0", "x265-params": "keyint=40:bframes=0:scenecut=0:log-level=none"}
    options = {key: value for key, value in options.items() if (key == "x265-params") == (codec == "libx265")}
    whole = path.with_name(f"{path.stem}-whole{path.suffix}")
    write_video(whole, (barcode.draw(number) for number in range(60)), codec=codec, options=options)
    with av.open(str(whole)) as before, av.open(str(path), "w") as after:
        stream = after.add_stream_from_template(before.streams.video[0])
        for number, packet in enumerate(packet for packet in before.demux(video=0) if packet.size):
            packet.stream = stream
            packet.is_keyframe = number % 7 == 0
            after.mux(packet)
    return path


def without_vui(sequence: bytes) -> bytes:
    """Return x264's sequence parameter set without the VUI, which limits reordering, padded to the same length."""
    bits = "".join(f"{byte:08b}" for byte in sequence.replace(b"\0\0\3", b"\0\0"))
    at = 32  # NAL unit type, profile, constraints, level

    def number() -> int:
        nonlocal at
        zeros = bits.index("1", at) - at
        at += 2 * zeros + 1
        return int(bits[at - zeros - 1 : at], 2) - 1

    assert [number() for _ in range(4)] == [0, 1, 0, 0], "8-bit 4:2:0"
    at += 2
    number()
    if number() == 0:
        number()
    number()
    at += 1
    for _ in range(2):
        number()
    assert bits[at : at + 2] == "11", "frame_mbs_only_flag, not interlaced"
    assert bits[at + 2 : at + 4] == "01", "no cropping, then the VUI flag"
    kept = bits[: at + 3] + "01"
    kept += "0" * (-len(kept) % 8)
    short = int(kept, 2).to_bytes(len(kept) // 8, "big")
    return short + bytes(len(sequence) - len(short))


def with_increasing_reordering(path: Path, *, before: int, after: int, limited: bool = False) -> Path:
    """Write H.264: 25 frames with `before` consecutive B-frames, then 75 with `after`; the reordering limit is kept if `limited`."""
    parts = []
    for number, (numbers, between) in enumerate(((range(25), before), (range(25, 100), after))):
        part = path.with_name(f"{path.stem}-{number}.ts")
        options = {"g": "25", "bf": str(between), "b-pyramid": "normal", "sc_threshold": "0", "x264-params": "b-adapt=0"}
        write_video(part, (barcode.draw(frame) for frame in numbers), options=options)
        with av.open(str(part)) as container:
            header = container.streams.video[0].codec_context.extradata or b""
        (sequence,) = (unit.rstrip(b"\0") for unit in header.split(b"\0\0\1") if unit and unit[0] & 31 == 7)
        parts.append(part.with_name(f"{part.stem}-plain.ts"))
        data = part.read_bytes()
        assert sequence in data
        parts[-1].write_bytes(data.replace(sequence, sequence if limited else without_vui(sequence)))
    later = shifted(parts[1], path.with_name(f"{path.stem}-later.ts"), by=25 * TICKS)
    path.write_bytes(joined_with_continuous_counters(parts[0], later))
    return path
