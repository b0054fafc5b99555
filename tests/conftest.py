"""Fixtures and settings of all tests: real clips, shared artefacts, the cache, the base install, GPU tests, distribution over processes."""

from __future__ import annotations

import gc
import importlib.metadata
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType

import pytest
from filelock import FileLock
from hypothesis import settings

from flowless.machine import usable_cores
from flowless.pipeline.dataset.index import DatasetIndex
from flowless.pipeline.synthetic.moving_shapes import ShapesOptions, generate
from flowless.thread_waiting import let_waiting_threads_sleep

# The helper modules are beside the tests, which are not a package.
sys.path.insert(0, str(Path(__file__).parent))
_ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(_ROOT / "scripts"))

# A script's background jobs ignore SIGINT and pass that on; the processes that tests interrupt must not.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

#: Largest number of test processes: each takes a few GB.
MAX_WORKERS = 4
# Each test process gets its share of the cores, and idle threads sleep; libraries read these variables when they are loaded.
let_waiting_threads_sleep()
if (workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))) > 1:
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, usable_cores() // workers)))

# Fewer garbage collections: while exports are traced, each walks through all objects of the libraries.
gc.set_threshold(50_000, 20, 100)

# Fixed hypothesis examples, so that a failure is caused by the change under test. To explore: --hypothesis-profile=default
settings.register_profile("deterministic", derandomize=True, deadline=None)
settings.load_profile("deterministic")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Number of processes for `-n auto`: one per core, and one more because some tests wait for timers or child processes."""
    return min(usable_cores() + 1, MAX_WORKERS)


@pytest.fixture(autouse=True)
def seed_torch() -> None:
    """Seed PyTorch's generator before every test, if PyTorch is loaded."""
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A temporary folder that all test processes of this run share."""
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "shared"
    folder.mkdir(exist_ok=True)
    return folder


#: `once(name, make)` calls `make(path)` once for all test processes, and returns the path.
Once = Callable[[str, Callable[[Path], object]], Path]


@pytest.fixture(scope="session")
def once(shared: Path) -> Once:
    """Return a function that makes a shared file or folder once; other processes wait for it. Tests must copy it before changing it."""

    def made(name: str, make: Callable[[Path], object]) -> Path:
        path, done = shared / name, shared / f"{name}.done"
        with FileLock(shared / f"{name}.lock"):
            if not done.exists():
                if path.is_dir():
                    shutil.rmtree(path)  # incomplete
                make(path)
                done.touch()
        return path

    return made


@pytest.fixture(scope="session", autouse=True)
def separate_cache(shared: Path) -> Iterator[None]:
    """Use a temporary cache of graphs instead of the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLOWLESS_CACHE", str(shared / "cache"))
        yield


@pytest.fixture(scope="session")
def clips() -> Path:
    """Folder of real videos; tests that need it are skipped if FLOWLESS_CLIPS is not set."""
    named = os.environ.get("FLOWLESS_CLIPS")
    if not named:
        pytest.skip("FLOWLESS_CLIPS is not set: no real clips here")
    folder = Path(named)
    if not folder.is_dir():
        pytest.fail(f"FLOWLESS_CLIPS is {named!r}, which is not a folder")
    return folder


@pytest.fixture(scope="session")
def reference() -> ModuleType:
    """The models' arithmetic in NumPy float64, the reference of all implementations of an op."""
    spec = importlib.util.spec_from_file_location("numpy_reference", Path(__file__).with_name("numpy_reference.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def shapes(once: Once) -> Path:
    """Moving Shapes with 24 training and 12 validation videos of 32 x 32 pixels and 16 frames."""
    options = ShapesOptions(size=32, frames=16, train_videos=24, val_videos=12)
    return once("shapes", lambda folder: generate(folder, options=options, workers=1))


@pytest.fixture(scope="session")
def train_index(shapes: Path) -> DatasetIndex:
    return DatasetIndex.load(shapes / "train.index.jsonl")


@pytest.fixture(scope="session")
def val_index(shapes: Path) -> DatasetIndex:
    return DatasetIndex.load(shapes / "val.index.jsonl")


def _link_base_install(folder: Path) -> Path:
    """Link flowless and the libraries of requirements/base.txt into `folder`; return it."""
    folder.mkdir(parents=True)
    (folder / "flowless").symlink_to(_ROOT / "flowless", target_is_directory=True)
    pinned = (_ROOT / "requirements" / "base.txt").read_text(encoding="utf-8")
    for name in re.findall(r"^([a-z0-9][a-z0-9._-]*)==", pinned, flags=re.MULTILINE):
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # pinned for another system
        for part in {file.parts[0] for file in distribution.files or () if ".." not in file.parts}:
            target, link = Path(str(distribution.locate_file(part))), folder / part
            if target.exists() and not link.exists() and part != "__pycache__":
                link.symlink_to(target)
    return folder


@pytest.fixture(scope="session")
def run_bare(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Sequence[str]], subprocess.CompletedProcess[str]]:
    """Return a function that runs Python with the given arguments, the base install and the standard library."""
    site = _link_base_install(tmp_path_factory.mktemp("bare") / "site")
    clean = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}

    def run(args: Sequence[str]) -> subprocess.CompletedProcess[str]:
        # -S leaves out this environment's site-packages, so only the links are found.
        command = [sys.executable, "-S", *map(str, args)]
        return subprocess.run(command, env={**clean, "PYTHONPATH": str(site)}, capture_output=True, text=True, check=False, cwd=site)

    return run


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Distribute tests over processes; skip GPU tests without a GPU, unless FLOWLESS_REQUIRE_GPU=1, with which they fail."""
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
    """Keep the tests of a file in one process, unless they set their own xdist_group, and start with files that have slow tests.

    The short files run last and balance the load of the processes.
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
