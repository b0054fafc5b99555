"""Atomic writing of files and folders, and its errors."""

from __future__ import annotations

import errno
import importlib
from pathlib import Path

import pytest

from flowless import FlowlessError
from flowless.files import refuse_unwritable, sha256_of, whole_file, whole_folder, write_json


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_whole_file_is_atomic(tmp_path: Path) -> None:
    with whole_file(tmp_path / "new" / "a.json") as draft:
        draft.write_text("x")
        assert not (tmp_path / "new" / "a.json").exists()
    assert (tmp_path / "new" / "a.json").read_text() == "x"
    assert leftovers(tmp_path / "new") == ["a.json"]


@pytest.mark.parametrize("error", [ValueError("bug"), KeyboardInterrupt()])
def test_a_failure_keeps_the_existing_file_and_leaves_no_drafts(tmp_path: Path, error: BaseException) -> None:
    target = tmp_path / "a.txt"
    target.write_text("older")
    with pytest.raises(type(error)), whole_file(target) as draft:
        draft.write_text("half")
        raise error
    assert target.read_text() == "older"
    assert leftovers(tmp_path) == ["a.txt"]


def test_a_full_disk_is_reported_with_the_files_name(tmp_path: Path) -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(FlowlessError, match=r"model\.onnx.*disk is full"), whole_file(tmp_path / "model.onnx"):
        raise full
    assert leftovers(tmp_path) == []


def test_a_full_device_is_reported(tmp_path: Path) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("no /dev/full here")
    with pytest.raises(FlowlessError, match="disk is full"), whole_file(tmp_path / "a.bin"), full.open("wb", buffering=0) as stream:
        stream.write(b"x")
    assert leftovers(tmp_path) == []


def test_whole_folder_is_atomic(tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    with whole_folder(bundle) as draft:
        (draft / "a").write_text("1")
    with pytest.raises(ValueError, match="bug"), whole_folder(bundle) as draft:
        (draft / "b").write_text("2")
        raise ValueError("bug")
    assert leftovers(bundle) == ["a"]
    with whole_folder(bundle) as draft:
        (draft / "c").write_text("3")
    assert leftovers(bundle) == ["c"]
    assert leftovers(tmp_path) == ["bundle"]


@pytest.mark.parametrize("whole", [whole_file, whole_folder])
def test_impossible_paths_are_refused(tmp_path: Path, whole) -> None:
    (tmp_path / "file").write_text("kept")
    with pytest.raises(FlowlessError, match=r"file/a\.json: cannot write there"), whole(tmp_path / "file" / "a.json"):
        pass
    with pytest.raises(FlowlessError, match="cannot write there"), whole(tmp_path / ("long" * 100)):
        pass
    assert leftovers(tmp_path) == ["file"]


def test_a_folder_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(FlowlessError, match=r"folder: cannot write there \(Is a directory\)"), whole_file(tmp_path / "folder") as draft:
        draft.write_text("x")
    assert leftovers(tmp_path) == ["folder"]


@pytest.mark.parametrize("whole", [whole_file, whole_folder])
def test_permission_errors_name_the_file_that_caused_them(tmp_path: Path, whole) -> None:
    def forbidden(path: Path | None) -> PermissionError:
        return PermissionError(errno.EACCES, "Permission denied", *([] if path is None else [str(path)]))

    target = tmp_path / "out" / "model.onnx"
    with pytest.raises(FlowlessError, match="/somewhere/else: cannot be used"), whole(target):
        raise PermissionError(errno.EACCES, "Permission denied", b"/somewhere/else")
    for other in (tmp_path / "input.mp4", Path("/somewhere/else"), tmp_path / "out" / "other.txt"):
        with pytest.raises(FlowlessError, match=f"{other}: cannot be used") as caught, whole(target):
            raise forbidden(other)
        assert "model.onnx" not in str(caught.value)
    with pytest.raises(FlowlessError, match=r"model\.onnx: cannot write there"), whole(target) as draft:
        raise forbidden(draft if whole is whole_file else draft / "inside" / "a.bin")
    # An error that names no file.
    with pytest.raises(FlowlessError, match=r"model\.onnx: cannot write there"), whole(target):
        raise forbidden(None)
    assert leftovers(tmp_path / "out") == []


def test_refuse_unwritable(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("kept")
    for path in (tmp_path / "folder", tmp_path / "file" / "a.json", tmp_path / ("long" * 100) / "a.json"):
        with pytest.raises(FlowlessError, match="cannot write there"):
            refuse_unwritable(path)
    refuse_unwritable(tmp_path / "file")
    refuse_unwritable(tmp_path / "new" / "er" / "a.json")
    assert leftovers(tmp_path) == ["file", "folder"]
    assert (tmp_path / "file").read_text() == "kept"


def fail_if_called(*_: object, **__: object) -> None:
    pytest.fail("the work was started")


@pytest.mark.parametrize(
    ("module", "work", "args"),
    [
        ("pipeline.commands:scan", "pipeline.dataset.scan:list_source", ["videos", "--out"]),
        ("export.explain.explain_command:main", "export.explain.introspection:open_model", ["bundle", "a.mp4", "--out"]),
        ("train.commands.evaluate:main", "train.evaluation.evaluate:evaluate", ["bundle", "--data", "a.jsonl", "--plot"]),
        ("bench.speed.shared_cores:main", "bench.speed.shared_cores:measure", ["--out"]),
        ("bench.systems.comparison:systems", "bench.systems.comparison:measure", ["--out"]),
        ("bench.systems.comparison:real", "bench.systems.comparison:measure", ["a.jsonl", "b.jsonl", "--out"]),
        ("bench.speed.throughput:main", "bench.speed.throughput:measure", ["--out"]),
        ("bench.speed.export_time:main", "bench.speed.export_time:measure", ["--out"]),
        ("bench.motion.motion:main", "bench.motion.motion:measure", ["--out"]),
    ],
)
def test_commands_check_the_output_path_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, work: str, args) -> None:
    suffix = {"export.explain.explain_command:main": ".html", "train.commands.evaluate:main": ".png"}.get(module, ".json")
    place = tmp_path / f"folder{suffix}"
    place.mkdir()
    name, _, function = work.partition(":")
    monkeypatch.setattr(importlib.import_module(f"flowless.{name}"), function, fail_if_called)
    name, _, function = module.partition(":")
    with pytest.raises(FlowlessError, match="cannot write there"):
        getattr(importlib.import_module(f"flowless.{name}"), function)([*args, str(place)])
    assert leftovers(tmp_path) == [place.name]


def test_missing_input_files_are_not_wrapped(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), whole_file(tmp_path / "a.json"):
        (tmp_path / "missing").read_text()


def test_write_json_and_sha256(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"label": "é"})
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == '{\n  "label": "é"\n}\n'
    (tmp_path / "empty").touch()
    assert sha256_of(tmp_path / "empty") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
