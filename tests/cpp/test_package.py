"""The installed library: what it exports and needs, its size, and programs outside the repository that link it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from cpp_build import ROOT, SOURCE
from documented import blocks_of
from programs import run

import flowless

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
LINKING = Path(__file__).with_name("linking")


@pytest.fixture(scope="module")
def functions() -> set[str]:
    """The functions that the header declares."""
    header = (SOURCE / "include/flowless/flowless.h").read_text(encoding="utf-8")
    return set(re.findall(r"^FLOWLESS_API [\w *]*?\b(flowless_\w+)\(", header, flags=re.MULTILINE))


def test_only_the_functions_of_the_header_are_exported(library: Path, functions: set[str]) -> None:
    lines = run("nm", "-D", "--defined-only", library / "lib/libflowless.so").stdout.splitlines()
    assert {line.split()[-1] for line in lines} == functions


def test_it_needs_neither_python_nor_torch_and_is_below_a_megabyte(library: Path) -> None:
    needed = run("ldd", library / "lib/libflowless.so").stdout
    assert "libstdc++" in needed
    assert "libopenvino" in needed
    assert not re.findall(r"libpython|torch|not found", needed)
    assert (library / "lib/libflowless.so").stat().st_size < 1e6


def test_the_library_has_a_version_in_its_name(library: Path) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    assert "SONAME" in (entries := run("readelf", "-d", library / "lib/libflowless.so").stdout)
    assert f"[libflowless.so.{project.split('.')[0]}]" in entries
    assert (library / f"lib/libflowless.so.{project}").is_file()
    assert f'"version": "{project}"' in (SOURCE / "vcpkg/ports/flowless/vcpkg.json").read_text(encoding="utf-8")


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_a_c_program_calls_every_function(library: Path, functions: set[str], compiler: str, tmp_path: Path) -> None:
    source = SOURCE / "tests/include_header.c"
    assert functions <= set(re.findall(r"flowless_\w+", source.read_text(encoding="utf-8")))
    flags = [
        "-std=c11",
        "-pedantic",
        "-Wall",
        "-Wextra",
        "-Werror",
        f"-I{library}/include",
        f"-L{library}/lib",
        f"-Wl,-rpath,{library}/lib",
    ]
    run(compiler, *flags, source, "-lflowless", "-o", tmp_path / "program")
    assert "0 failures" in run(tmp_path / "program").stdout


@pytest.fixture(scope="module")
def clip_and_scores(built: Path) -> tuple[bytes, list[float]]:
    """A clip's bytes, and Python's scores of it, by the engine that both take where none is named."""
    engine = flowless.load(built)
    clip = np.random.default_rng(5).integers(0, 256, (1, *engine.spec.shape), dtype=np.uint8)
    return clip.tobytes(), engine(clip)[0].tolist()


def check_program(program: Path, bundle: Path, clip_and_scores: tuple[bytes, list[float]]) -> None:
    """A program prints the version and exactly Python's scores."""
    clip, scores = clip_and_scores
    done = subprocess.run([program, bundle], input=clip, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    version, *printed = done.stdout.decode().split()
    assert version == flowless.__version__
    assert [np.float32(score) for score in printed] == [np.float32(score) for score in scores]


def test_programs_outside_the_repository_find_the_package(library: Path, built: Path, clip_and_scores, tmp_path: Path) -> None:
    source = shutil.copytree(LINKING, tmp_path / "outside")
    run("cmake", "-S", source, "-B", tmp_path / "build", f"-DCMAKE_PREFIX_PATH={library}")
    run("cmake", "--build", tmp_path / "build")
    for name in ("score_clip_c", "score_clip_cpp"):
        check_program(tmp_path / "build" / name, built, clip_and_scores)


def test_programs_outside_the_repository_use_pkg_config(library: Path, built: Path, clip_and_scores, tmp_path: Path) -> None:
    prefix = shutil.copytree(library, tmp_path / "moved", symlinks=True)  # an installed folder may be moved
    environment = {**os.environ, "PKG_CONFIG_PATH": str(prefix / "lib/pkgconfig")}
    flags = run("pkg-config", "--cflags", "--libs", "flowless", env=environment).stdout.split()
    assert str(library) not in " ".join(flags)
    for compiler, suffix in (("gcc", ".c"), ("g++", ".cpp")):
        source = shutil.copy2((LINKING / "score_clip").with_suffix(suffix), tmp_path)
        program = tmp_path / f"program{suffix}.out"
        run(compiler, source, *flags, f"-Wl,-rpath,{prefix}/lib", "-o", program)
        check_program(program, built, clip_and_scores)


@pytest.mark.parametrize(("language", "compiler"), [("c", ("gcc", "-std=c11")), ("cpp", ("g++", "-std=c++17"))])
def test_the_program_of_the_documentation_compiles(library: Path, language: str, compiler: tuple[str, ...], tmp_path: Path) -> None:
    (block,) = (block for block in blocks_of(ROOT / "docs/cpp.md") if block.language == language)
    source = tmp_path / f"documented.{language}"
    source.write_text(block.text, encoding="utf-8")
    run(*compiler, "-Wall", "-Wextra", "-Werror", "-fsyntax-only", f"-I{library}/include", source)


def test_every_status_is_documented() -> None:
    header = (SOURCE / "include/flowless/flowless.h").read_text(encoding="utf-8")
    statuses = re.findall(r"^  (FLOWLESS_\w+) = \d", header[: header.index("} flowless_status;")], flags=re.MULTILINE)
    documented = (ROOT / "docs/cpp.md").read_text(encoding="utf-8")
    assert statuses == re.findall(r"^\| `(FLOWLESS_[A-Z]+)` \|", documented, flags=re.MULTILINE)


def test_a_required_engine_library_that_is_missing_is_an_error(cpp_tools, tmp_path: Path) -> None:
    for option, text in (("FLOWLESS_ONNXRUNTIME=ON", "Set ONNXRUNTIME_ROOT to"), ("FLOWLESS_TENSORRT=YES", "must be AUTO, ON or OFF")):
        command = ["cmake", "-S", SOURCE, "-B", tmp_path / "build", f"-D{option}", "-DFLOWLESS_OPENVINO=OFF", "-DONNXRUNTIME_ROOT=/nowhere"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode != 0
        assert text in " ".join(done.stderr.split())


def test_what_is_missing_is_named_with_the_line_that_installs_it(tmp_path: Path) -> None:
    command = [sys.executable, ROOT / "scripts/cpp_build.py", "release"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={"PATH": str(tmp_path)})
    assert done.returncode == 1
    (line,) = (line for line in done.stderr.splitlines() if "apt-get install" in line)
    assert {"cmake", "ninja-build", "g++", "nlohmann-json3-dev", "libssl-dev", "doctest-dev", "pkg-config", "libavformat-dev"} <= set(
        line.split()
    )
