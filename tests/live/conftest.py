"""Bundles, videos and an RTSP server for the tests of watching."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from export_fixtures import built, bundle, checkpoint, exported, film_bundles, film_model, videos

# Helpers lie beside the tests, which are no package.
sys.path.insert(0, str(Path(__file__).parent))

from live_sources import PYTHON, RtspServer, moving, source_threads

from flowless.engines.engine import Engine
from flowless.engines.loading import load
from flowless.pipeline.video.encode import write_video

__all__ = ["built", "bundle", "checkpoint", "exported", "film_bundles", "film_model", "videos"]

_CHECK = "import gi; gi.require_version('GstRtspServer', '1.0'); from gi.repository import GstRtspServer"


@pytest.fixture(scope="session")
def stream_files(once) -> dict[str, Path]:
    """A minute of video each: `wide` 128 x 96, `small` 96 x 64."""

    def make(path: Path, size: tuple[int, int]) -> None:
        write_video(path, moving(1500, size=size), options={"bf": "0", "g": "12"})

    sizes = {"wide": (96, 128), "small": (64, 96)}
    return {name: once(f"stream-{name}.mp4", lambda path, size=size: make(path, size)) for name, size in sizes.items()}


@pytest.fixture(scope="session")
def online(film_bundles) -> Engine:
    return load(film_bundles["online"], "openvino")


@pytest.fixture(scope="session")
def rolling(built) -> Engine:
    return load(built, "openvino")


@pytest.fixture
def no_thread_left() -> Iterator[None]:
    """Fail where a source's thread goes on after the test; one inside libav has its timeout to end."""
    yield
    until = time.monotonic() + 5
    while (left := source_threads()) and time.monotonic() < until:
        time.sleep(0.05)
    assert not left


@pytest.fixture
def rtsp() -> Iterator[Callable[..., RtspServer]]:
    """Return a function that starts a server of files by name; fails without gst-rtsp-server if FLOWLESS_REQUIRE_RTSP=1, else skips."""
    found = Path(PYTHON).exists() and subprocess.run([PYTHON, "-c", _CHECK], capture_output=True, check=False).returncode == 0
    if not found:
        report = pytest.fail if os.environ.get("FLOWLESS_REQUIRE_RTSP") == "1" else pytest.skip
        report("gst-rtsp-server is not installed: apt-get install gir1.2-gst-rtsp-server-1.0 python3-gi gstreamer1.0-plugins-good")
    servers: list[RtspServer] = []

    def start(*, password: str = "", **files: Path) -> RtspServer:
        servers.append(RtspServer(password=password, **files))
        return servers[-1]

    yield start
    for server in servers:
        server.kill()
