"""The layout: sizes of files and functions, imports between packages, and the contents of the wheel."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("pipeline", "train", "export", "engines", "bench")
MAX_LINES = 400
MAX_FUNCTION_LINES = 60
MAX_MODULES = 12
LIBRARIES = set(sys.stdlib_module_names) | {
    *("av", "numpy", "torch", "onnx", "onnxruntime", "openvino", "tensorrt", "tensorrt_rtx", "timm", "lightning"),
    *("nvidia", "PIL", "rich", "tyro", "safetensors", "triton", "polygraphy", "modelopt"),
}
#: Package -> packages that it may import. (train evaluates engines too.)
MAY_IMPORT = {
    "pipeline": set(),
    "engines": {"pipeline"},
    "train": {"pipeline", "engines"},
    "export": {"pipeline", "train", "engines"},
    "bench": {"pipeline", "train", "export", "engines"},
}


def sources() -> list[Path]:
    """Return every Python file of the project."""
    folders = [ROOT / folder for folder in (*PACKAGES, "examples", "scripts", "tests")]
    return sorted([*(ROOT / "flowless").glob("*.py"), *(path for folder in folders for path in folder.rglob("*.py"))])


def cpp_sources() -> list[Path]:
    """Return every C, C++ and CUDA file of the project; the tables of wrong arguments in the C tests are as long as they are."""
    folders = [ROOT / folder for folder in ("engines", "export", "examples", "tests")]
    return sorted(
        path
        for folder in folders
        for path in folder.rglob("*")
        if path.suffix in {".c", ".cpp", ".h", ".hpp", ".cu"} and path.name != "bad_input.c"
    )


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_sizes_of_files_and_functions(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MAX_LINES
    long = [
        f"{node.name}: {lines} lines"
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef) and (lines := (node.end_lineno or 0) - node.lineno + 1) > MAX_FUNCTION_LINES
    ]
    assert not long


@pytest.mark.parametrize("path", cpp_sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_sizes_of_c_and_cpp_files(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_LINES


def test_examples_are_short() -> None:
    """A program of the examples is read at a glance; what they share is in their headers."""
    programs = list((ROOT / "examples/cpp").glob("*.cpp"))
    assert programs
    assert not [path.name for path in programs if len(path.read_text(encoding="utf-8").splitlines()) > MAX_FUNCTION_LINES]


def test_no_module_is_named_after_a_library() -> None:
    clashes = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py") if path.stem in LIBRARIES]
    assert not clashes, "a script run by its path has its own folder first on the import path"


def test_examples_import_what_an_application_imports() -> None:
    names = [name for path in (ROOT / "examples").rglob("*.py") for name in _imports(path) if name.startswith("flowless")]
    assert set(names) <= {"flowless", "flowless.engines", "flowless.machine"}


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_between_packages(package: str) -> None:
    wrong = []
    for path in (ROOT / package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Import | ast.ImportFrom):
                continue
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            for name in names:
                first, _, rest = name.partition(".")
                other = rest.partition(".")[0]
                if first in PACKAGES:
                    wrong.append(f"{path.name}:{node.lineno} imports {name} without flowless.")
                elif first == "flowless" and other in PACKAGES and other != package and other not in MAY_IMPORT[package]:
                    wrong.append(f"{path.name}:{node.lineno} imports {name}")
    assert not wrong


def package_files() -> dict[str, Path]:
    """Every module of the project by its import name."""
    found = {}
    for path in (ROOT / "flowless").glob("*.py"):
        found["flowless" if path.stem == "__init__" else f"flowless.{path.stem}"] = path
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found["flowless." + ".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported_modules(path: Path, files: dict[str, Path]) -> set[str]:
    """Return the project's modules that a module imports anywhere, inside functions and for type checks too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {inner if (inner := f"{node.module}.{alias.name}") in files else node.module for alias in node.names}
    return {name for name in names if name in files and files[name] != path}


def test_no_module_imports_itself_through_others() -> None:
    files = package_files()
    # A package's __init__ re-exports from below and holds no code.
    inits = {name for name, path in files.items() if path.stem == "__init__"}
    graph = {name: imported_modules(path, files) - inits for name, path in files.items() if name not in inits}
    done: set[str] = set()

    def walk(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, "import cycle: " + " -> ".join([*way[way.index(name) :], name])
        if name not in done:
            for other in sorted(graph[name]):
                walk(other, (*way, name))
            done.add(name)

    for name in graph:
        walk(name, ())


def test_the_demo_needs_no_benchmark() -> None:
    """The wheel has bench/commands.py and the demo alone."""
    files = package_files()
    for name, path in files.items():
        if name == "flowless.bench.commands" or name.startswith("flowless.bench.demo"):
            others = {other for other in imported_modules(path, files) if other.startswith("flowless.bench.")}
            assert all(other.startswith("flowless.bench.demo") for other in others), f"{name}: {others}"


def test_folders_are_small() -> None:
    for folder in {path.parent for path in package_files().values()}:
        modules = [path.name for path in folder.glob("*.py") if path.stem not in {"__init__", "__main__"}]
        assert len(modules) <= MAX_MODULES, f"{folder.relative_to(ROOT)}: {len(modules)} modules"


def test_the_checkout_resolves_flowless() -> None:
    """Static tools do not follow import hooks, so `flowless/` has links to the packages."""
    for package in PACKAGES:
        assert (ROOT / "flowless" / package).resolve() == ROOT / package


def wheel_packages() -> set[str]:
    """Return the packages of the wheel: all but the benchmarks; of bench/ it has the command and the demo."""
    there = {path.parent.relative_to(ROOT) for package in PACKAGES for path in (ROOT / package).rglob("__init__.py")}
    shipped = {folder for folder in there if folder.parts[0] != "bench" or folder.parts[1:] in {(), ("demo",)}}
    return {"flowless"} | {"flowless." + ".".join(folder.parts) for folder in shipped}


def test_pyproject_lists_all_packages() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"]
    assert set(listed) == wheel_packages()


@pytest.mark.slow
def test_wheel_contents(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path / "dist"), str(_copy(tmp_path))],
        check=True,
        capture_output=True,
    )
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    held = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("flowless/")}
    folders = [ROOT / name.removeprefix("flowless.").replace(".", "/") for name in wheel_packages()]
    files = {path for folder in folders for kind in ("*.py", "*.html", "*.css") for path in folder.glob(kind)}
    files |= {path for path in (ROOT / "export/plugin").iterdir() if path.is_file()}
    relative = {path.relative_to(ROOT).as_posix() for path in files}
    assert held == {name if name.startswith("flowless/") else f"flowless/{name}" for name in relative}


def _copy(tmp_path: Path) -> Path:
    """Copy the sources of a wheel, so that building leaves no files in the work tree."""
    import shutil

    target = tmp_path / "source"
    target.mkdir()
    for path in [*ROOT.glob("*.toml"), *ROOT.glob("*.md"), ROOT / "LICENSE"]:
        shutil.copy2(path, target)
    for package in (*PACKAGES, "flowless"):
        shutil.copytree(ROOT / package, target / package, symlinks=True, ignore=shutil.ignore_patterns("__pycache__", "build"))
    return target


def test_tests_of_a_file_share_a_process(request: pytest.FixtureRequest) -> None:
    """Otherwise each process makes a file's fixtures again; an incompatible pytest and pytest-xdist ignore the groups without a warning."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        pytest.skip("needs several test processes")
    assert request.node.nodeid.endswith("@tests/project/test_layout.py")
