"""The PA op's TensorRT plugin: compiling its library, finding and registering it, and the graph that makes the parser use it.

    python -m flowless.export.plugin.plugin_library --tensorrt-root FOLDER

The sources are in `plugin/`; they need TensorRT's headers and nvcc, but neither TensorRT itself nor a GPU.
"""

from __future__ import annotations

import ctypes
import inspect
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
import tyro
from onnx import NodeProto, TensorProto, numpy_helper
from rich.text import Text

from flowless.console import emit
from flowless.engines.backends.tensorrt_backend import PLUGIN_VARIABLE
from flowless.engines.backends.tensorrt_process import TensorRtProcess
from flowless.errors import FlowlessError
from flowless.export.graph.pa_function import DOMAIN, OP, pa_nodes
from flowless.files import whole_file

SOURCES = Path(__file__).parent
#: The library's default place.
DEFAULT_LIBRARY = SOURCES / "build" / "libflowless_pa_plugin.so"
#: Shape of the weight that the plugin's kernel takes: filters, colours, rows, columns.
WEIGHT_SHAPE = (8, 3, 7, 7)
_TYPES = (TensorProto.FLOAT, TensorProto.FLOAT16)
_HOW_TO_BUILD = "Build it with: python -m flowless.export.plugin.plugin_library --tensorrt-root FOLDER"


def find_library() -> Path | None:
    """Return the plugin library that the environment variable FLOWLESS_PA_PLUGIN names, or the one built here, or None.

    Raises:
        FlowlessError: FLOWLESS_PA_PLUGIN names what is not a file.
    """
    named = os.environ.get(PLUGIN_VARIABLE)
    if not named:
        return DEFAULT_LIBRARY if DEFAULT_LIBRARY.is_file() else None
    path = Path(named).absolute()
    if not path.is_file():
        raise FlowlessError(
            f"{PLUGIN_VARIABLE} is {named!r}, which is not a file. It must be the path of the plugin's library. {_HOW_TO_BUILD}"
        )
    return path


def load_plugin(process: TensorRtProcess, library: str | os.PathLike[str]) -> None:
    """Register the library's plugin with TensorRT, unless it is registered already.

    It must be registered before an engine with the plugin is built, and in every process that loads such an engine. From then on the
    process's parsers take the plugin for every PA node, even where the graph has the body: an engine without the plugin is
    built from the inlined graph (`export_graph.inlined`), or in another process.

    Args:
        process: The state of `tensorrt` or `tensorrt_rtx` in this process, which owns the registry.
        library: The library, as `find_library` returns it.

    Raises:
        FlowlessError: There is no such library, it does not load, or it was compiled for another TensorRT.
    """
    kind = process.plugin_kind()
    if kind is None:
        path = Path(library).absolute()
        _check_library(path, process)
        kind = process.load_plugin(path)
        if kind is None:
            raise FlowlessError(f"{path}: {process.name} does not register {DOMAIN}::{OP} from it. {_HOW_TO_BUILD}")
    if "V3ONE" not in kind:
        raise FlowlessError(
            f"{DOMAIN}::{OP} is registered in this process as a Python plugin already, and TensorRT takes one plugin of a name. "
            "Use the library in a process of its own."
        )


def without_function(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return the graph without the PA op's body, so that TensorRT's parser uses the plugin.

    A weight of another type than the clip is converted to the clip's type, because the parser does not convert a plugin's inputs.

    Args:
        proto: The graph, in its precision, with PA nodes. It is not changed.

    Raises:
        FlowlessError: There is no PA node, or one is not what the plugin is written for: FP32 or FP16, filters [8, 3, 7, 7].
    """
    if not pa_nodes(proto):
        raise FlowlessError("The graph has no PA node for the plugin. Build it without --pa plugin.")
    bare = onnx.ModelProto()
    bare.CopyFrom(proto)
    kept = [function for function in bare.functions if (function.domain, function.name) != (DOMAIN, OP)]
    del bare.functions[:]
    bare.functions.extend(kept)
    types = _element_types(proto)
    for index, node in enumerate(pa_nodes(bare)):
        _fit_weight(bare, node, types, index)
    return bare


def build_library(
    *, tensorrt_root: str | os.PathLike[str] | None = None, out: str | os.PathLike[str] = DEFAULT_LIBRARY, architectures: str = ""
) -> Path:
    """Compile the plugin with CMake and nvcc.

    Args:
        tensorrt_root: Folder of TensorRT's headers (`include/NvInfer.h`, or `NvInfer.h` itself); None takes the environment
            variable TENSORRT_ROOT, or else where Debian's packages put them.
        out: The library, which appears whole or not at all.
        architectures: GPUs as CMake names them, `80;86-real`; empty takes the environment variable CUDAARCHS, or else Ampere
            to Blackwell: 80, 86, 89, 90 and 120, and from there on what the driver compiles.

    Raises:
        FlowlessError: CMake, nvcc or the headers are missing, or compiling fails.
    """
    cmake, nvcc, headers = _cmake(), _nvcc(), _headers(tensorrt_root)
    if not (SOURCES / "CMakeLists.txt").is_file():
        raise FlowlessError(f"{SOURCES}: the plugin's sources are not in this installation. Build it from flowless's repository.")
    options = [f"-DTENSORRT_ROOT={headers}", f"-DTENSORRT_INCLUDE={headers}", f"-DCMAKE_CUDA_COMPILER={nvcc}", "-DCMAKE_BUILD_TYPE=Release"]
    if architectures:
        options.append(f"-DCMAKE_CUDA_ARCHITECTURES={architectures}")
    with tempfile.TemporaryDirectory(prefix="flowless-plugin-") as work:
        _run([cmake, "-S", str(SOURCES), "-B", work, *options], "configured")
        _run([cmake, "--build", work], "compiled")
        with whole_file(out) as draft:
            shutil.copyfile(Path(work) / DEFAULT_LIBRARY.name, draft)
    return Path(out)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `python -m flowless.export.plugin.plugin_library`."""
    args = tyro.cli(
        PluginArgs,
        args=list(sys.argv[1:] if arguments is None else arguments),
        prog="flowless.export.plugin.plugin_library",
        description=inspect.getdoc(PluginArgs),
    )
    library = build_library(tensorrt_root=args.tensorrt_root, out=args.out, architectures=args.architectures)
    emit({"library": str(library), "bytes": library.stat().st_size}, Text(str(library), overflow="ignore", no_wrap=True), as_json=args.json)
    return 0


@dataclass(frozen=True, kw_only=True)
class PluginArgs:
    """Compile the PA op's plugin library for TensorRT. It needs CMake, nvcc and TensorRT's headers, but no GPU."""

    tensorrt_root: Path | None = None
    """Folder with include/NvInfer.h; by default the environment variable TENSORRT_ROOT, or where Debian's packages put it."""
    out: Path = DEFAULT_LIBRARY
    """The library. In another place than the default, name it in the environment variable FLOWLESS_PA_PLUGIN."""
    architectures: str = ""
    """GPUs to compile for, as CMake names them, such as "86;89"; by default 80, 86, 89, 90 and 120."""
    json: bool = False
    """Print one JSON document instead of a line."""


def _check_library(path: Path, process: TensorRtProcess) -> None:
    if not path.is_file():
        raise FlowlessError(f"{path}: no such plugin library. {_HOW_TO_BUILD}")
    try:
        major = int(ctypes.CDLL(str(path)).flowless_pa_tensorrt_major())
    except (OSError, AttributeError) as error:
        raise FlowlessError(f"{path}: not flowless's plugin library, or not for this system ({error}). {_HOW_TO_BUILD}") from error
    # TensorRT-RTX has version numbers of its own, and cannot run plugin layers.
    if process.target == "tensorrt" and major != int(process.trt.__version__.split(".")[0]):
        raise FlowlessError(
            f"{path}: compiled with the headers of TensorRT {major}, and this is TensorRT {process.trt.__version__}. The headers must be "
            f"of the same major version. {_HOW_TO_BUILD}"
        )


def _element_types(proto: onnx.ModelProto) -> dict[str, int]:
    """Return tensor name -> element type, where the type is known."""
    graph = proto.graph
    if not {node.input[0] for node in pa_nodes(proto)} <= {item.name for item in (*graph.value_info, *graph.input)}:
        graph = onnx.shape_inference.infer_shapes(proto).graph
    types = {item.name: item.type.tensor_type.elem_type for item in (*graph.input, *graph.value_info, *graph.output)}
    return types | {item.name: item.data_type for item in graph.initializer}


def _fit_weight(model: onnx.ModelProto, node: NodeProto, types: dict[str, int], index: int) -> None:
    clip, name = node.input
    stored = next((item for item in model.graph.initializer if item.name == name), None)
    if stored is not None and tuple(stored.dims) != WEIGHT_SHAPE:
        raise FlowlessError(
            f"The PA op's weight is {list(stored.dims)}; the plugin is written for {list(WEIGHT_SHAPE)}. Build without --pa plugin."
        )
    wanted = types.get(clip) or types.get(name)
    if wanted is not None and wanted not in _TYPES:
        raise FlowlessError(
            f"The PA op computes in {TensorProto.DataType.Name(wanted)} in this graph; the plugin takes FLOAT and FLOAT16. "
            "Build another precision, or without --pa plugin."
        )
    if stored is not None and wanted is not None and stored.data_type != wanted:
        array = numpy_helper.to_array(stored).astype(onnx.helper.tensor_dtype_to_np_dtype(wanted))
        node.input[1] = f"{name}_plugin_{index}"
        model.graph.initializer.append(numpy_helper.from_array(array, node.input[1]))


def _cmake() -> str:
    found = shutil.which("cmake")
    if found is None:
        raise FlowlessError("cmake is not here; the plugin is compiled with it. Install CMake 3.22 or newer, with your system's packages.")
    return found


def _nvcc() -> str:
    named = os.environ.get("CUDACXX")
    found = shutil.which(named or "nvcc") or (None if named else shutil.which("/usr/local/cuda/bin/nvcc"))
    if found is None:
        where = f"CUDACXX is {named!r}, which is not a program" if named else "nvcc is not here"
        raise FlowlessError(
            f"{where}; the plugin is compiled with it. Install the CUDA toolkit 12.8 or newer, or name its nvcc in CUDACXX."
        )
    return found


def _headers(root: str | os.PathLike[str] | None) -> Path:
    root = root or os.environ.get("TENSORRT_ROOT")
    folders = [Path(root) / "include", Path(root)] if root else [Path("/usr/include"), *Path("/usr/include").glob("*-linux-gnu")]
    for folder in folders:
        if (folder / "NvInfer.h").is_file():
            return folder.absolute()
    raise FlowlessError(
        f"TensorRT's headers are not here: no NvInfer.h in {' or '.join(map(str, folders))}. Give --tensorrt-root the folder of "
        "TensorRT 10 or newer, as unpacked or as NVIDIA's public repository TensorRT has it, with include/NvInfer.h."
    )


def _run(command: list[str], what: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        reasons = [line for line in said if re.search(r"\b(error|fatal)\b", line, re.IGNORECASE)] or said[-8:]
        raise FlowlessError(f"The plugin could not be {what}; {Path(command[0]).name} says: " + "\n".join(reasons[:8]))


if __name__ == "__main__":
    from flowless.cli import run_command

    sys.exit(run_command(main))
