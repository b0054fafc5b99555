"""What all tests share: the real clips, the GPU rule, and quiet libraries."""

from __future__ import annotations

import gc
import importlib.util
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
from filelock import FileLock
from hypothesis import settings

from flowless.machine import usable_cores
from flowless.pipeline.dataset.index import DatasetIndex
from flowless.pipeline.synthetic.moving_shapes import ShapesOptions, generate
from flowless.waiting import let_waiting_threads_sleep

# Helpers lie beside the tests, which are no package.
sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))

# In the background of a script Ctrl-C's signal is ignored, and so it would be by every process that a test interrupts.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

#: Test processes side by side, at most: each takes a few GB.
MOST_WORKERS = 4
# Each test process has its share of the cores, and leaves it to the others while it waits; libraries read this when they are loaded.
let_waiting_threads_sleep()
if (workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))) > 1:
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, usable_cores() // workers)))

# Python's collector walks through all that the libraries keep, again and again, while exports are traced. Rarely is enough.
gc.set_threshold(50_000, 20, 100)

# A commit is red for what it changed, never by the luck of an example. To explore: --hypothesis-profile=default
settings.register_profile("steady", derandomize=True, deadline=None)
settings.load_profile("steady")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """What `-n auto` means here: tests keep one core busy each, seldom two; one process more, since some wait for a clock or a program."""
    return min(usable_cores() + 1, MOST_WORKERS)


@pytest.fixture(autouse=True)
def the_same_weights_every_time() -> None:
    """What a test draws from PyTorch's own generator is the same on every run; PyTorch is not loaded for it."""
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of this run's that all test processes have."""
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "shared"
    folder.mkdir(exist_ok=True)
    return folder


#: Makes what has a name, once for all test processes, by a function that gets its path; returns the path.
Once = Callable[[str, Callable[[Path], object]], Path]


@pytest.fixture(scope="session")
def once(shared: Path) -> Once:
    """Return what makes a file or folder once: one process makes it, the others wait for it. Read it; copy it before changing it."""

    def made(name: str, make: Callable[[Path], object]) -> Path:
        path, done = shared / name, shared / f"{name}.done"
        with FileLock(shared / f"{name}.lock"):
            if not done.exists():
                if path.is_dir():
                    shutil.rmtree(path)  # half made
                make(path)
                done.touch()
        return path

    return made


@pytest.fixture(scope="session", autouse=True)
def cache_of_its_own(shared: Path) -> Iterator[None]:
    """Graphs that tests make do not end up in the user's cache, nor come from it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLOWLESS_CACHE", str(shared / "cache"))
        yield


@pytest.fixture(scope="session")
def clips() -> Path:
    """Folder of real videos; tests that need it skip where FLOWLESS_CLIPS does not say where they are."""
    named = os.environ.get("FLOWLESS_CLIPS")
    if not named:
        pytest.skip("FLOWLESS_CLIPS is not set: no real clips here")
    folder = Path(named)
    if not folder.is_dir():
        pytest.fail(f"FLOWLESS_CLIPS is {named!r}, which is not a folder")
    return folder


@pytest.fixture(scope="session")
def reference() -> ModuleType:
    """The models' arithmetic in NumPy float64: what every body of an op is held against."""
    spec = importlib.util.spec_from_file_location("numpy_reference", Path(__file__).with_name("numpy_reference.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def shapes(once: Once) -> Path:
    """A few Moving Shapes: 24 training and 12 validation videos of 32 x 32 pixels and 16 frames."""
    options = ShapesOptions(size=32, frames=16, train_videos=24, val_videos=12)
    return once("shapes", lambda folder: generate(folder, options=options, workers=1))


@pytest.fixture(scope="session")
def train_index(shapes: Path) -> DatasetIndex:
    return DatasetIndex.load(shapes / "train.index.jsonl")


@pytest.fixture(scope="session")
def val_index(shapes: Path) -> DatasetIndex:
    return DatasetIndex.load(shapes / "val.index.jsonl")


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Spread tests over processes; skip GPU tests where there is no GPU, unless FLOWLESS_REQUIRE_GPU=1 demands them (so they fail)."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        _spread(items)
    if os.environ.get("FLOWLESS_REQUIRE_GPU") == "1":
        return
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked or _gpu_here():
        return
    for item in marked:
        item.add_marker(pytest.mark.skip(reason="no CUDA GPU here"))


def _spread(items: list[pytest.Item]) -> None:
    """Keep the tests of a file in one process, unless they name groups of their own, and begin with files that have slow ones.

    So the short files, which come last, even out when the processes end.
    """
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
    for item in items:
        if not item.get_closest_marker("xdist_group"):
            item.add_marker(pytest.mark.xdist_group(item.nodeid.partition("::")[0]))


def _gpu_here() -> bool:
    try:
        import torch
    except ModuleNotFoundError:
        return False
    return torch.cuda.is_available()
