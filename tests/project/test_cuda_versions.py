"""All pinned libraries use one major version of CUDA: a process loads the libraries of PyTorch's, and others fail to load."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from importlib.metadata import distributions
from pathlib import Path

import pytest

PINNED = Path(__file__).parents[2] / "requirements" / "all.txt"
#: `nvidia-cudnn-cu13`, `tensorrt-rtx-cu13-libs`, `nvidia-dali-cuda130`: the name has the CUDA version.
NAMED = re.compile(r"^(?P<name>[a-z0-9-]+-cu(?:da)?(?P<major>1\d)\d?(?:-[a-z]+)?)==", re.MULTILINE)
#: Distributions of CUDA itself, whose version is CUDA's.
TOOLKIT = re.compile(r"^(?P<name>cuda-toolkit|nvidia-cuda-[a-z]+)==(?P<major>\d+)\.", re.MULTILINE)
VERSIONED = re.compile(r"(?P<stem>.+\.so)\.(?P<version>\d+)")


def needed_libraries(path: Path) -> list[str]:
    """Return the DT_NEEDED entries (required shared libraries) of a 64-bit little-endian ELF file."""
    with path.open("rb") as file:
        if file.read(6) != b"\x7fELF\x02\x01":
            return []
        file.seek(32)
        (table,) = struct.unpack("<Q", file.read(8))
        file.seek(54)
        size, count = struct.unpack("<HH", file.read(4))
        segments = []
        for number in range(count):
            file.seek(table + number * size)
            kind, _, offset, address, _, length, _, _ = struct.unpack("<IIQQQQQQ", file.read(56))
            segments.append((kind, offset, address, length))
        dynamic = next(((offset, length) for kind, offset, _, length in segments if kind == 2), None)
        if dynamic is None:
            return []
        file.seek(dynamic[0])
        entries = list(struct.iter_unpack("<QQ", file.read(dynamic[1] // 16 * 16)))
        strings = next(value for tag, value in entries if tag == 5)
        loaded = [segment[1:] for segment in segments if segment[0] == 1]
        start = next(strings - address + offset for offset, address, length in loaded if 0 <= strings - address < length)
        names = []
        for value in (value for tag, value in entries if tag == 1):
            file.seek(start + value)
            names.append(file.read(256).split(b"\0")[0].decode())
        return names


def shared_objects() -> Iterator[tuple[str, Path]]:
    """Yield every shared library of the environment, with its distribution."""
    for distribution in distributions():
        for file in distribution.files or ():
            if re.search(r"\.so(\.\d+)*$", file.name):
                yield distribution.name, Path(str(file.locate()))


def pinned_majors() -> dict[str, int]:
    text = PINNED.read_text(encoding="utf-8")
    return {found["name"]: int(found["major"]) for pattern in (NAMED, TOOLKIT) for found in pattern.finditer(text)}


def test_pins_have_one_cuda_version() -> None:
    majors = pinned_majors()
    assert {"cuda-toolkit", "nvidia-cuda-runtime", "nvidia-cudnn-cu13", "nvidia-dali-cuda130", "tensorrt-rtx-cu13-libs"} <= set(majors)
    assert len(set(majors.values())) == 1, majors


def test_installed_libraries_match_the_pinned_cuda() -> None:
    import torch

    majors = {"torch": int(str(torch.version.cuda).partition(".")[0])}
    onnxruntime = pytest.importorskip("onnxruntime")
    majors["onnxruntime"] = int(onnxruntime.cuda_version.partition(".")[0])
    backend = pytest.importorskip("nvidia.dali.backend")
    majors["nvidia.dali"] = backend.__cuda_version__ // 1000
    majors |= pinned_majors()
    assert len(set(majors.values())) == 1, majors


def test_linked_cuda_libraries_are_installed() -> None:
    """A library that needs `libcublas.so.12` does not load where the environment has `libcublas.so.13`."""
    found = list(shared_objects())
    installed: dict[str, set[str]] = {}
    for name, path in found:
        if name.startswith("nvidia-") and (match := VERSIONED.match(path.name)):
            installed.setdefault(match["stem"], set()).add(match["version"])
    assert {"libcudart.so", "libcublas.so", "libcudnn.so"} <= set(installed)
    wanted = [(name, path, match) for name, path in found for item in needed_libraries(path) if (match := VERSIONED.fullmatch(item))]
    of_cuda = [(name, path, match) for name, path, match in wanted if match["stem"] in installed]
    assert {"torch", "onnxruntime-gpu"} <= {name for name, _, _ in of_cuda}
    wrong = [f"{name}: {path.name} wants {match[0]}" for name, path, match in of_cuda if match["version"] not in installed[match["stem"]]]
    assert not wrong, f"{wrong}; the environment has {installed}"
