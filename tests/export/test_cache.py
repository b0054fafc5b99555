"""The cache of builds: bounded, the least recently used removed first, shown and emptied by `flowless cache`."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from flowless.cli import main
from flowless.engines.bundle.manifest import read_manifest
from flowless.errors import FlowlessError
from flowless.export.cache import cache_folder, cache_limit, entries, mark_used, shrink
from flowless.export.precision import graph_cache
from flowless.export.precision.graph_cache import graph_key, precise_graph


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FLOWLESS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def fill(cache: Path, *names: str) -> None:
    """Write graphs of 1000 bytes with records of 10, each used a second after the one before."""
    (cache / "graphs").mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        for suffix, size in ((".onnx", 1000), (".json", 10)):
            path = cache / "graphs" / f"{name}{suffix}"
            path.write_bytes(bytes(size))
            os.utime(path, (1000 + number, 1000 + number))


def stems() -> list[str]:
    return [entry.files[0].stem for entry in entries()]


def test_the_least_recently_used_goes_first_and_whole(cache: Path) -> None:
    fill(cache, "a", "b", "c")
    mark_used(cache / "graphs" / "a.onnx")
    assert stems() == ["b", "c", "a"]
    assert shrink(3030) == 0
    assert shrink(2019) == 1010 + 1010
    assert sorted(path.name for path in (cache / "graphs").iterdir()) == ["a.json", "a.onnx"]
    assert shrink(0) == 1010
    assert not entries()


def test_a_cache_that_is_not_there_is_empty(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert shrink(0) == 0
    assert main(["cache", "--clear", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["entries"] == 0
    assert not cache.exists()


def test_the_command_shows_and_empties_it_and_nothing_else(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill(cache, "a", "b")
    (cache / "tensorrt").mkdir()
    (cache / "tensorrt" / "timing.cache").write_bytes(bytes(500))
    (cache / "mine.txt").write_text("not the cache's")
    assert main(["cache"]) == 0
    assert "4000" in capsys.readouterr().out
    assert main(["cache", "--json", "--clear"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document == {"folder": str(cache), "entries": 0, "bytes": 0, "limit_bytes": 4_000_000_000, "removed_bytes": 2520}
    assert (cache / "mine.txt").exists()
    assert cache_folder() == cache


def test_what_cannot_be_removed_stays_and_is_named(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill(cache, "b")
    (cache / "graphs" / "a.onnx").mkdir()
    os.utime(cache / "graphs" / "a.onnx", (1, 1))
    assert shrink(10_000) == 0
    assert shrink(0) == 1010
    assert main(["cache", "--clear"]) == 1
    assert "1 of its entries cannot be removed" in "".join(capsys.readouterr().err.split("\n"))


@pytest.mark.parametrize("text", ["much", "-1", "nan", "inf"])
def test_an_invalid_limit_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWLESS_CACHE_GB", text)
    with pytest.raises(FlowlessError, match=f"FLOWLESS_CACHE_GB is '{text}'"):
        cache_limit()


def test_a_build_keeps_its_graph_and_removes_older_ones(cache: Path, exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = read_manifest(exported)
    fill(cache, "old", "older")
    monkeypatch.setenv("FLOWLESS_CACHE_GB", "0.02")
    big = cache / "graphs" / "old.onnx"
    big.write_bytes(bytes(20_000_000))
    os.utime(big, (1, 1))
    made = precise_graph(manifest, "bf16")
    key = graph_key(manifest, "bf16", None)
    assert (cache / "graphs" / f"{key}.onnx").is_file()
    assert not big.exists()
    # Used again, it is taken from the cache and becomes the most recently used.
    fill(cache, "between")
    for path in (cache / "graphs").glob(f"{key}.*"):
        os.utime(path, (1, 1))
    monkeypatch.setattr(graph_cache, "with_precision", lambda *_, **__: pytest.fail("made again"))
    assert precise_graph(manifest, "bf16").key == made.key
    assert stems()[-1] == key
