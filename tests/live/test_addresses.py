"""Addresses: what is accepted, what is shown."""

from __future__ import annotations

import pytest

from flowless.engines.live.addresses import hide_secrets, parse_addresses
from flowless.errors import FlowlessError


@pytest.mark.parametrize(
    ("source", "kind", "url", "name"),
    [
        ("film.mp4", "file", "film.mp4", "film.mp4"),
        ("door=film.mp4", "file", "film.mp4", "door"),
        ("küche= film.mp4", "file", "film.mp4", "küche"),
        ("a/b=c.mp4", "file", "a/b=c.mp4", "a/b=c.mp4"),
        ("rtsp://u:p@host:554/cam?x=1", "rtsp", "rtsp://u:p@host:554/cam?x=1", "rtsp://host:554/cam?x=1"),
        ("front door=RTSPS://host/cam", "rtsp", "RTSPS://host/cam", "front door"),
        ("https://host/live.m3u8?token=abc&n=2", "http", "https://host/live.m3u8?token=abc&n=2", "https://host/live.m3u8?token=***&n=2"),
        ("0", "camera", "/dev/video0", "/dev/video0"),
        ("desk=/dev/video2", "camera", "/dev/video2", "desk"),
        ("C:\\film.mp4", "file", "C:\\film.mp4", "C:\\film.mp4"),
    ],
)
def test_kinds(source, kind, url, name):
    (address,) = parse_addresses([source])
    assert (address.kind, address.url, address.name) == (kind, url, name)
    assert address.live == (kind != "file")


def test_files_win(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("7", "a=b.mp4"):
        (tmp_path / name).touch()
    assert [(item.kind, item.name) for item in parse_addresses(["7", "a=b.mp4"])] == [("file", "7"), ("file", "a=b.mp4")]


def test_names_are_unique():
    names = [item.name for item in parse_addresses(["a.mp4", "a.mp4 (2)=x", "a.mp4", "a.mp4", "b=a.mp4"])]
    assert len(set(names)) == 5
    assert names[0] == "a.mp4"


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("rtsp://user:pass@host/x@1", "rtsp://host/x@1"),
        ("rtsp://user:p@ss@host/x", "rtsp://host/x"),
        ("rtsp://user:pa/ss@host/x", "rtsp://host/x"),
        ("rtsp://host:554/live@1", "rtsp://host:554/live@1"),
        ("rtsp://[::1]:554/live@1", "rtsp://[::1]:554/live@1"),
        ("http://host/x?user=me&pwd=secret&channel=1#t", "http://host/x?user=***&pwd=***&channel=1#t"),
        ("film@home.mp4", "film@home.mp4"),
        (" rtsp://user:secret@host/x", " rtsp://host/x"),
        ("küche=rtsp://user:secret@host/x", "küche=rtsp://host/x"),
        ("hall/1=yard=rtsp://user:secret@host/x?pwd=secret", "hall/1=yard=rtsp://host/x?pwd=***"),
        ("rtsp:/user:secret@host/x", "rtsp:/host/x"),
        ("C:/Users/me@home/film.mp4", "C:/Users/me@home/film.mp4"),
    ],
)
def test_secrets_are_hidden(address, shown):
    assert hide_secrets(address) == shown
    assert "secret" not in repr(parse_addresses([address]))


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ([], "no sources to watch"),
        ("film.mp4", "sources is 'film.mp4'; it must be a list"),
        (["rtmp://u:secret@host/x"], "rtmp://host/x: it cannot be watched"),
        (["lavfi:testsrc"], "lavfi:testsrc: it cannot be watched"),
        ([" "], "a source is ' '"),
    ],
)
def test_mistakes(sources, message):
    with pytest.raises(FlowlessError, match=message.replace("(", "\\(")):
        parse_addresses(sources)
