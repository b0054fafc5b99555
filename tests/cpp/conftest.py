"""The C++ library and its unit tests, built once for all test processes, and the bundles of the export tests.

Without the tools to build it the tests skip; with FLOWLESS_REQUIRE_CPP=1, which CI sets, they fail.
"""

import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

# Helpers lie beside the tests, which are no package.
sys.path.insert(0, str(Path(__file__).parent))

from c_interface import Library
from cpp_build import EXAMPLES, configure_and_build, missing_packages
from export_fixtures import (
    built,
    bundle,
    calibration,
    checkpoint,
    exported,
    film_bundles,
    film_model,
    learnt,
    streaming_bundles,
    streaming_models,
    videos,
)
from manifest_reader import Reader
from programs import run

__all__ = [
    "built",
    "bundle",
    "calibration",
    "checkpoint",
    "exported",
    "film_bundles",
    "film_model",
    "learnt",
    "streaming_bundles",
    "streaming_models",
    "videos",
]


@pytest.fixture(scope="session")
def cpp_tools() -> None:
    """Skip, or fail, where the C++ library and its tests cannot be built."""
    if missing := missing_packages():
        reason = f"the C++ library cannot be built: apt-get install {' '.join(missing)}"
        pytest.fail(reason) if os.environ.get("FLOWLESS_REQUIRE_CPP") == "1" else pytest.skip(reason)


@pytest.fixture(scope="session")
def cpp_build(cpp_tools, once) -> Callable[[str], Path]:
    """Return a function that builds a kind of `cpp_build.KINDS` once and returns the build folder; it has its own prefix in `install`."""

    def make(kind: str, folder: Path) -> None:
        configure_and_build(kind, folder, prefix=folder / "install")

    return lambda kind: once(f"cpp-{kind}", partial(make, kind))


@pytest.fixture(scope="session")
def library(cpp_build, once) -> Path:
    """The folder that the library is installed in, by g++ and optimised: `lib/libflowless.so` and `include/flowless/`."""
    folder = cpp_build("release")
    once("cpp-installed", lambda done: (run("cmake", "--install", folder), done.touch()))
    return folder / "install"


@pytest.fixture(scope="session")
def c_library(library) -> Library:
    """The installed library, for calls of its C interface from Python."""
    return Library(library / "lib" / "libflowless.so")


@pytest.fixture(scope="session")
def examples(library, once) -> Path:
    """The folder of the examples' programs."""

    def make(folder: Path) -> None:
        defines = [f"-Dflowless_DIR={library}/lib/cmake/flowless", "-DCMAKE_CXX_FLAGS=-Werror", "-DCMAKE_BUILD_TYPE=Release"]
        run("cmake", "-S", EXAMPLES, "-B", folder, *defines)
        run("cmake", "--build", folder, "--parallel", "2")

    return once("cpp-examples", make)


@pytest.fixture(scope="session")
def reader(cpp_build) -> Iterator[Reader]:
    """The program that reads bundles and chooses engines."""
    program = Reader(cpp_build("release") / "tests" / "read_manifest")
    yield program
    program.close()
