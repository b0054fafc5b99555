"""Builds, tests and installs the C++ library: `make cpp`, `make cpp-sanitizers` and `make cpp-fuzz`; the tests and CI use the same lists.

It needs Python 3.9 and no package: `python3 scripts/cpp_build.py release` works before `make` has set up anything.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "engines" / "cpp"
EXAMPLES = ROOT / "examples" / "cpp"
#: Where `make` builds.
BUILD = ROOT / "build" / "cpp"
FUZZ_INPUTS = 1_000_000
#: libav's libraries that the examples use, as pkg-config names them.
LIBAV = ("libavformat", "libavcodec", "libavfilter", "libavutil")


@dataclass(frozen=True)
class Kind:
    """A way to build the library and its tests."""

    compiler: str
    """C++ compiler; the C compiler is its counterpart."""
    options: Mapping[str, str] = field(default_factory=dict)
    """CMake's."""
    targets: tuple[str, ...] = ("all",)
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables for the tests' run."""


#: TBB, in OpenVINO, is not built for ThreadSanitizer, which would report the synchronisation that it does not see: no OpenVINO there.
_NO_ENGINES = {"FLOWLESS_OPENVINO": "OFF", "FLOWLESS_ONNXRUNTIME": "OFF", "FLOWLESS_TENSORRT": "OFF"}
KINDS: dict[str, Kind] = {
    "release": Kind("g++", {"CMAKE_BUILD_TYPE": "Release"}),
    "address": Kind(
        "clang++",
        {"CMAKE_BUILD_TYPE": "Debug", "FLOWLESS_SANITIZE": "address,undefined,fuzzer-no-link"},
        targets=("flowless_unit_tests", "fuzz_manifest"),
        environment={"UBSAN_OPTIONS": "print_stacktrace=1", "ASAN_OPTIONS": "detect_stack_use_after_return=1"},
    ),
    "thread": Kind(
        "g++",
        {"CMAKE_BUILD_TYPE": "Debug", "FLOWLESS_SANITIZE": "thread", **_NO_ENGINES},
        targets=("flowless_unit_tests",),
        environment={"TSAN_OPTIONS": "halt_on_error=1"},
    ),
}


def _compiles(compiler: str, code: str, *flags: str) -> bool:
    """Return whether a compiler compiles and links a short program."""
    if shutil.which(compiler) is None:
        return False
    command = [compiler, "-x", "c++", "-std=c++17", *flags, "-", "-o", os.devnull]
    return subprocess.run(command, input=code, text=True, capture_output=True, check=False).returncode == 0


def _has_program(*names: str) -> Callable[[], bool]:
    return lambda: any(shutil.which(name) for name in names)


def _has_header(header: str) -> Callable[[], bool]:
    compiler = "g++" if shutil.which("g++") else "c++"
    return lambda: _compiles(compiler, f"#include <{header}>\n", "-fsyntax-only")


def _has_libav() -> bool:
    return bool(shutil.which("pkg-config")) and subprocess.run(["pkg-config", "--exists", *LIBAV], check=False).returncode == 0


def _has_fuzzer() -> bool:
    code = '#include <cstddef>\n#include <cstdint>\nextern "C" int LLVMFuzzerTestOneInput(uint8_t const*, size_t) { return 0; }\n'
    return _compiles("clang++", code, "-fsanitize=fuzzer,address,undefined")


#: What building needs: apt's packages, and whether they are here. The first group is for the library and its tests, then what the
#: examples need, then the sanitizers.
_LIBRARY: dict[str, Callable[[], bool]] = {
    "cmake": _has_program("cmake"),
    "ninja-build": _has_program("ninja", "make"),
    "g++": _has_program("g++"),
    "nlohmann-json3-dev": _has_header("nlohmann/json.hpp"),
    "libssl-dev": _has_header("openssl/evp.h"),
    "doctest-dev": _has_header("doctest/doctest.h"),
}
_EXAMPLES: dict[str, Callable[[], bool]] = {
    "pkg-config": _has_program("pkg-config"),
    "libavformat-dev libavcodec-dev libavfilter-dev libavutil-dev": _has_libav,
}
_SANITIZERS: dict[str, Callable[[], bool]] = {"clang": _has_program("clang++"), "libclang-rt-dev": _has_fuzzer}
NEEDS = {"library": _LIBRARY, "examples": {**_LIBRARY, **_EXAMPLES}, "all": {**_LIBRARY, **_EXAMPLES, **_SANITIZERS}}


def missing_packages(purpose: str = "all") -> list[str]:
    """Return the names of apt's packages that a purpose (see `NEEDS`) needs and this machine lacks."""
    return " ".join(packages for packages, here in NEEDS[purpose].items() if not here()).split()


def openvino_folder() -> Path | None:
    """Return the folder of OpenVINO's CMake files in this Python's packages or in `.venv`; None where neither has them."""
    for python in (sys.executable, str(ROOT / ".venv" / "bin" / "python")):
        code = "import importlib.util as u; print(u.find_spec('openvino').submodule_search_locations[0])"
        if shutil.which(python):
            done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
            if done.returncode == 0:
                return Path(done.stdout.strip()) / "cmake"
    return None


def fetch_openvino() -> Path:
    """Install the pinned OpenVINO, without its dependencies, into the build folder; return the folder of its CMake files."""
    (pinned,) = re.findall(r"^openvino==[0-9.]+", (ROOT / "requirements" / "base.txt").read_text(encoding="utf-8"), flags=re.MULTILINE)
    target = BUILD / "python"
    if not (target / "openvino" / "cmake").is_dir():
        print(f"flowless: installing {pinned} into {target} (once; about 190 MB)", flush=True)
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([*command, "--target", str(target), pinned], check=True)
    return target / "openvino" / "cmake"


def configure_and_build(kind: str, folder: Path, *, prefix: Path | None = None, options: Mapping[str, str] | None = None) -> None:
    """Configure and build a kind of `KINDS` in a folder, with warnings as errors.

    Args:
        kind: Its name.
        folder: The build folder.
        prefix: Where `cmake --install` will install.
        options: More of CMake's options.

    Raises:
        subprocess.CalledProcessError: It does not build; the output has been printed.
    """
    made = KINDS[kind]
    c_compiler = {"g++": "gcc", "clang++": "clang"}[made.compiler]
    given = {"CMAKE_CXX_COMPILER": made.compiler, "CMAKE_C_COMPILER": c_compiler, "FLOWLESS_TESTS": "ON", "FLOWLESS_WERROR": "ON"}
    given |= {**made.options, **(options or {})}
    if prefix:
        given["CMAKE_INSTALL_PREFIX"] = str(prefix)
    if given.get("FLOWLESS_OPENVINO") != "OFF" and (openvino := openvino_folder()):
        given["OpenVINO_DIR"] = str(openvino)
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    defines = [f"-D{name}={value}" for name, value in given.items()]
    subprocess.run(["cmake", *generator, "-S", str(SOURCE), "-B", str(folder), *defines], check=True)
    jobs = str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    subprocess.run(["cmake", "--build", str(folder), "--parallel", jobs, "--target", *made.targets], check=True)


def run_unit_tests(kind: str, folder: Path) -> None:
    """Run the unit tests of a build; raise CalledProcessError where one fails."""
    subprocess.run([str(folder / "tests" / "flowless_unit_tests")], check=True, env={**os.environ, **KINDS[kind].environment})


def fuzz(folder: Path, inputs: int) -> None:
    """Give the manifest's reader so many inputs, changed from the seeds; raise CalledProcessError at the first finding, which is kept."""
    corpus, tests = folder / "corpus", SOURCE / "tests"
    corpus.mkdir(exist_ok=True)
    limits = [f"-runs={inputs}", "-max_len=16384", "-verbosity=0", "-print_final_stats=1", f"-dict={tests / 'manifest.dict'}"]
    # Not the peak of resident memory, which a process takes over from the one that starts it.
    limits += ["-rss_limit_mb=0", "-malloc_limit_mb=256"]
    command = [folder / "tests" / "fuzz_manifest", *limits, f"-artifact_prefix={folder}/", corpus, tests / "manifest_seeds"]
    subprocess.run([str(item) for item in command], check=True, env={**os.environ, **KINDS["address"].environment})


def _stop_where_missing(purpose: str) -> None:
    if missing := missing_packages(purpose):
        sys.exit(
            f"flowless: not found: {', '.join(missing)}. Install them, then call make again:\n  apt-get install -y {' '.join(missing)}"
        )


def _release() -> None:
    _stop_where_missing("examples")
    folder, prefix = BUILD / "release", BUILD / "install"
    options = {} if openvino_folder() else {"OpenVINO_DIR": str(fetch_openvino())}
    configure_and_build("release", folder, prefix=prefix, options=options)
    subprocess.run(["ctest", "--test-dir", str(folder), "--output-on-failure"], check=True)
    subprocess.run(["cmake", "--install", str(folder)], check=True, stdout=subprocess.DEVNULL)
    defines = [f"-Dflowless_DIR={prefix}/lib/cmake/flowless", "-DCMAKE_BUILD_TYPE=Release"]
    subprocess.run(["cmake", "-S", str(EXAMPLES), "-B", str(BUILD / "examples"), *defines], check=True)
    subprocess.run(["cmake", "--build", str(BUILD / "examples")], check=True)
    print(f"flowless: installed in {prefix}; the examples are in {BUILD / 'examples'}")


def _sanitizers(inputs: int) -> None:
    _stop_where_missing("all")
    for kind in ("address", "thread"):
        configure_and_build(kind, BUILD / kind)
        run_unit_tests(kind, BUILD / kind)
    fuzz(BUILD / "address", inputs)


def _fuzz(inputs: int) -> None:
    _stop_where_missing("all")
    configure_and_build("address", BUILD / "address")
    fuzz(BUILD / "address", inputs)


def main() -> None:
    """Run a part: release, sanitizers, fuzz, or `missing`, which prints the names of apt's packages that are not here."""
    parser = argparse.ArgumentParser(prog="cpp_build.py", description=main.__doc__)
    parser.add_argument("part", choices=["release", "sanitizers", "fuzz", "missing"])
    parser.add_argument("--inputs", type=int, default=FUZZ_INPUTS, help="inputs for the fuzzer")
    args: argparse.Namespace = parser.parse_args()
    parts: dict[str, Callable[[], None]] = {
        "release": _release,
        "sanitizers": lambda: _sanitizers(args.inputs),
        "fuzz": lambda: _fuzz(args.inputs),
        "missing": lambda: print(" ".join(missing_packages())),
    }
    try:
        parts[args.part]()
    except subprocess.CalledProcessError as error:
        command: Sequence[object] = error.cmd
        sys.exit(f"flowless: {' '.join(map(str, command))[:300]} failed with exit code {error.returncode}; its output is above.")


if __name__ == "__main__":
    main()
