"""`flowless doctor`: what this machine can decode, train, build and run, and how to install what is missing."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import tyro
from rich.markup import escape
from rich.table import Table

from flowless import cuda_driver, thread_waiting
from flowless.console import emit
from flowless.engines.targets import TARGETS, Target
from flowless.errors import FlowlessError, first_line
from flowless.machine import environment, gpu_names

Area = Literal["decode", "train", "build", "run", "measure"]

#: Codec -> FFmpeg's names of its decoders, the preferred one first.
CODECS = {
    "H.264": ("h264",),
    "HEVC": ("hevc",),
    "AV1": ("libdav1d", "av1"),
    "VP9": ("vp9", "libvpx-vp9"),
    "VP8": ("vp8", "libvpx"),
    "MPEG-4": ("mpeg4",),
    "MJPEG": ("mjpeg",),
}
_NEEDS_GPU = "an NVIDIA GPU with its driver"
#: ONNX Runtime's extras install the CUDA and cuDNN libraries of the version that it was built for.
_ORT_CUDA = "pip install 'onnxruntime-gpu[cuda,cudnn]', and a driver for its CUDA"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Whether this machine can do one thing."""

    area: Area
    what: str
    ok: bool
    detail: str
    remedy: str = ""
    """The command or package that adds it; empty where it works."""


def examine(areas: Sequence[Area] = get_args(Area)) -> list[Finding]:
    """Try everything that flowless can use on this machine in these areas; what fails becomes a finding and raises nothing."""
    parts = {"decode": (_decoders, _dali), "train": (_training,), "build": (_building,), "run": (_running,), "measure": (_measuring,)}
    return [finding for area in areas for part in parts[area] for finding in part()]


def document(findings: list[Finding]) -> dict[str, Any]:
    """Return the findings and the environment as JSON values."""
    return {"environment": environment(), "findings": [asdict(finding) for finding in findings]}


def table(findings: list[Finding]) -> Table:
    """Return the findings as a table for people."""
    out = Table("stage", "what", "", "detail", "to add it", title="What this machine can do")
    area = ""
    for finding in findings:
        if finding.area != area:
            out.add_section()
        mark = "[green]yes[/]" if finding.ok else "[yellow]no[/]"
        out.add_row("" if finding.area == area else finding.area, finding.what, mark, escape(finding.detail), escape(finding.remedy))
        area = finding.area
    return out


def _decoders() -> Iterator[Finding]:
    from av.codec import Codec
    from av.codec.codec import UnknownCodecError

    for name, decoders in CODECS.items():
        for decoder in decoders:
            try:
                Codec(decoder, "r")
            except UnknownCodecError:
                continue
            yield Finding(area="decode", what=f"{name} on the CPU", ok=True, detail=f"PyAV, {decoder}")
            break
        else:
            yield Finding(
                area="decode", what=f"{name} on the CPU", ok=False, detail="not in this build of PyAV", remedy="pip install -U av"
            )


def _dali() -> Iterator[Finding]:
    if not _installed("nvidia.dali"):
        missing = {"ok": False, "detail": "DALI is not installed", "remedy": "pip install 'flowless[dali]'"}
        yield Finding(area="decode", what="DALI graph", **missing)
        yield Finding(area="decode", what="NVDEC", **missing)
        return
    yield _attempt("decode", "DALI graph", _run_dali_graph, remedy="pip install -U 'flowless[dali]'")
    if cuda_driver.compute_capability() is None:
        yield Finding(area="decode", what="NVDEC", ok=False, detail="no GPU here; frames come from PyAV", remedy=_NEEDS_GPU)
    else:
        # A container has the driver's decoders only where it was started with them.
        yield _attempt(
            "decode", "NVDEC", _nvdec, remedy="the driver's libnvcuvid (in a container: NVIDIA_DRIVER_CAPABILITIES=compute,video)"
        )


def _nvdec() -> str:
    from flowless.pipeline.loading import nvdec

    if reason := nvdec.why_no_nvdec():
        raise FlowlessError(reason)
    found = {codec: nvdec.caps(codec, "4:2:0", 8) for codec in nvdec.CODECS}
    listed = [
        f"{codec} from {caps.min_width}x{caps.min_height} to {caps.max_width}x{caps.max_height}"
        for codec, caps in found.items()
        if caps.supported
    ]
    return f"8-bit 4:2:0 by the driver: {', '.join(listed) or 'nothing'}"


def _run_dali_graph() -> str:
    import numpy as np
    from nvidia import dali

    frames = np.zeros((2, 8, 8, 3), dtype=np.uint8)

    @dali.pipeline_def(batch_size=1, num_threads=1, device_id=None)  # pyright: ignore[reportArgumentType]  # None: no GPU
    def shrink() -> Any:
        source = dali.fn.external_source(source=lambda: [frames], layout="FHWC")
        return dali.fn.resize(source, size=(4, 4))

    pipeline = shrink()
    pipeline.build()
    (out,) = pipeline.run()
    if (shape := tuple(out[0].shape())) != (2, 4, 4, 3):
        raise RuntimeError(f"a resize to 4x4 gave {shape}")
    return f"DALI {dali.__version__} on the CPU; it decodes VP8, VP9, MJPEG itself"


def _training() -> Iterator[Finding]:
    if not _installed("torch"):
        yield Finding(area="train", what="PyTorch", ok=False, detail="not installed", remedy="pip install 'flowless[train]'")
        return
    import torch

    yield Finding(area="train", what="PyTorch on the CPU", ok=True, detail=f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    yield Finding(area="train", what="threads that wait", ok=True, detail=thread_waiting.described())
    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
        yield Finding(area="train", what="PyTorch on CUDA", ok=True, detail=names)
    else:
        yield Finding(area="train", what="PyTorch on CUDA", ok=False, detail="no CUDA device", remedy=_NEEDS_GPU)
    for library, use in (("lightning", "training loop"), ("timm", "backbones"), ("tensorboard", "logs")):
        ok = _installed(library)
        detail, remedy = ("installed", "") if ok else ("not installed", "pip install 'flowless[train]'")
        yield Finding(area="train", what=f"{library} ({use})", ok=ok, detail=detail, remedy=remedy)


def _building() -> Iterator[Finding]:
    ok = _installed("onnx") and _installed("onnxscript") and _installed("torch")
    exporter = "onnx, onnxscript" if ok else "onnx, onnxscript or torch is missing"
    yield Finding(area="build", what="ONNX", ok=ok, detail=exporter, remedy="" if ok else "pip install 'flowless[export,train]'")
    for name, library in TARGETS.items():
        remedy = f"{library.install}, on its GPU" if library.gpu_to_build else library.install
        if library.gpu_to_build and not library.why_missing():
            # Not imported here: without a GPU its libraries may not load.
            yield Finding(area="build", what=name, ok=bool(gpu_names()), detail="installed", remedy="" if gpu_names() else _NEEDS_GPU)
        else:
            yield _attempt("build", name, lambda library=library: f"version {_import(library.module).__version__}", remedy=remedy)


def _running() -> Iterator[Finding]:
    from flowless.engines.backends.backend import why_not

    has_gpu = cuda_driver.compute_capability() is not None
    on_cpu: dict[Target, Callable[[], str]] = {"openvino": _openvino_devices, "onnxruntime": _onnxruntime}
    for name, detail in on_cpu.items():
        yield _attempt("run", name, detail, remedy=TARGETS[name].install)
    yield _attempt("run", "onnxruntime on CUDA", _onnxruntime_on_cuda, remedy=_ORT_CUDA if has_gpu else _NEEDS_GPU)
    for name, library in TARGETS.items():
        if not library.gpu_to_run:
            continue
        if library.why_missing():
            yield Finding(area="run", what=name, ok=False, detail="not installed", remedy=library.install)
        elif reason := why_not(name):
            yield Finding(area="run", what=name, ok=False, detail=reason, remedy="another target" if has_gpu else _NEEDS_GPU)
        else:
            yield Finding(area="run", what=name, ok=True, detail=", ".join(gpu_names()))


def _measuring() -> Iterator[Finding]:
    yield _attempt("measure", "optical flow, to compare with", _opencv_flows, remedy="pip install 'flowless[bench]'")


def _opencv_flows() -> str:
    cv2 = _import("cv2")
    contrib = hasattr(cv2, "optflow")
    return f"OpenCV {cv2.__version__}: {'TV-L1, ' if contrib else ''}Farneback, DIS{'' if contrib else '; TV-L1 is in its contrib modules'}"


def _openvino_devices() -> str:
    from flowless.engines.backends.openvino_core import openvino_core

    core = openvino_core()
    if not core.available_devices:
        raise RuntimeError("no device")
    described = [f"{device}: {', '.join(core.get_property(device, 'OPTIMIZATION_CAPABILITIES'))}" for device in core.available_devices]
    return "; ".join(described)


def _onnxruntime() -> str:
    return f"version {_import('onnxruntime').__version__}, on the CPU"


def _onnxruntime_on_cuda() -> str:
    from flowless.engines.backends.onnxruntime_cuda import why_not_cuda

    if reason := why_not_cuda():
        raise FlowlessError(reason)
    return f"CUDA {_import('onnxruntime').cuda_version}"


def _attempt(area: Area, what: str, try_it: Callable[[], str], *, remedy: str) -> Finding:
    """Run `try_it`, which returns the detail; any exception becomes the finding that it does not work here."""
    try:
        return Finding(area=area, what=what, ok=True, detail=try_it())
    except ModuleNotFoundError:
        return Finding(area=area, what=what, ok=False, detail="not installed", remedy=remedy)
    except Exception as error:  # an installed but broken library must not end the command
        kind = "" if isinstance(error, FlowlessError) else f"{type(error).__name__}: "
        return Finding(area=area, what=what, ok=False, detail=kind + first_line(error), remedy=remedy)


def _import(module: str) -> Any:
    return importlib.import_module(module)


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


@dataclass(frozen=True, kw_only=True)
class DoctorArgs:
    """Show what this machine can decode, train, build and run, and how to install what is missing."""

    json: bool = False
    """Print one JSON document instead of a table."""


def main(arguments: Sequence[str]) -> None:
    """Run `flowless doctor`."""
    args = tyro.cli(DoctorArgs, args=list(arguments), prog="flowless doctor", description=inspect.getdoc(DoctorArgs))
    findings = examine()
    emit(document(findings), table(findings), as_json=args.json)
