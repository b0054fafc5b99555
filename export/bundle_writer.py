"""Writing a bundle: whole or not at all, compared with PyTorch before it is kept; and adding an engine to one."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flowless.console import log
from flowless.engines.backends.backend import open_backend
from flowless.engines.bundle.manifest import MANIFEST, Artefact, Manifest, fingerprint, read_manifest
from flowless.errors import FlowlessError
from flowless.export.graph import export_graph as graph
from flowless.export.graph.pa_function import OPSET
from flowless.export.targets.build_options import BuildOptions
from flowless.export.verify import parity
from flowless.export.verify.reference import Reference, gather_clips
from flowless.files import whole_folder
from flowless.machine import installed_versions

if TYPE_CHECKING:
    import torch

    from flowless.train.checkpoints import Checkpoint


def export_bundle(
    checkpoint: str | os.PathLike[str] | Checkpoint,
    out: str | os.PathLike[str],
    *,
    videos: Sequence[str | os.PathLike[str]] = (),
    online: bool = False,
) -> Manifest:
    """Export a checkpoint to a bundle with `model.onnx`, checked against PyTorch.

    The graph runs in ONNX Runtime on clips from real videos, and on noise, stillness and edges, at batch 1 and 3.

    Args:
        checkpoint: The `.safetensors` file, or what `load_checkpoint` read from it.
        out: The bundle's folder; a bundle that is there already is replaced, another folder is refused.
        videos: Videos to compare on; without any, some are generated.
        online: The graph takes a frame and a memory, as `flowless.engines.streaming.memory` says. It is compared frame by frame as well.

    Returns:
        The bundle's manifest. Its one engine is `onnxruntime` in fp32, which is the graph itself.

    Raises:
        FlowlessError: The checkpoint, a video or the place cannot be used, or the model has no online form.
        CheckFailed: The graph's scores are not PyTorch's. No bundle is written.
    """
    from flowless.export.build_engine import engine_key
    from flowless.train.checkpoints import Checkpoint, load_checkpoint

    folder = Path(out)
    _refuse_foreign(folder)
    source = checkpoint if isinstance(checkpoint, Checkpoint) else load_checkpoint(checkpoint)
    form = _online_form(source) if online else source.model
    names, clips = gather_clips(source.spec, videos)
    reference = Reference(names=names, clips=clips, scores=torch_scores(source.model, clips))
    versions = {**installed_versions(("torch", "timm", "onnx", "onnxscript")), "flowless": _flowless_version()}
    with whole_folder(folder) as draft:
        about = {"spec": source.spec, "labels": source.labels, "name": source.name, "versions": versions}
        graph.export_onnx(form, draft / "model.onnx", **about, online=online)
        ort = installed_versions(("onnxruntime-gpu", "onnxruntime"))
        engine = Artefact(target="onnxruntime", precision="fp32", status="verified", files=("model.onnx",), versions=ort)
        backend = open_backend(engine, draft / "model.onnx", classes=len(source.labels))
        result = parity.check(backend, clips, reference.scores, precision="fp32", what=f"{folder.name}/model.onnx")
        reference.save(draft / "reference.npz", source.spec)
        manifest = Manifest(
            folder=draft,
            model=source.name,
            spec=source.spec,
            labels=source.labels,
            opset=OPSET,
            config=dict(source.model.config),
            memory=source.spec.segments - 1 if online else 0,
            versions=versions,
            parity={"clips": list(names), **_found(result), "batches": list(parity.BATCHES)},
            files={"reference.npz": fingerprint(draft / "reference.npz")},
        )
        manifest = manifest.with_artefact(engine)
        key = engine_key(manifest, "onnxruntime", "fp32", BuildOptions(), None)
        manifest = manifest.with_artefact(replace(engine, max_abs_diff=result.max_abs_diff, key=key))
        manifest.write()
    _tell(folder, result)
    return replace(manifest, folder=folder)


def torch_scores(model: torch.nn.Module, clips: np.ndarray) -> np.ndarray:
    """Return PyTorch's float32 scores `[K, classes]` of clips uint8 `[K, N, m, H, W, 3]`, one clip at a time."""
    import torch

    with torch.inference_mode():
        return np.concatenate([model(torch.from_numpy(np.ascontiguousarray(clip[None]))).float().numpy() for clip in clips])


def add_artefact(
    bundle: Path, target: str, precision: str, make: Callable[[Path], Artefact], *, calibration: dict[str, Any] | None = None
) -> Manifest:
    """Add an engine, or replace it: its folder appears whole, then the manifest names it, and what it replaces is removed last.

    Whoever reads the bundle meanwhile sees the engine as it was before or as it is then, never half of it. Where anything fails, the
    bundle stays as it was.

    Args:
        bundle: The bundle.
        target: The engine's target.
        precision: Its precision.
        make: Writes the engine into the folder it is given, and returns its record with files relative to that folder.
        calibration: int8: the record of its calibration, for the manifest.

    Returns:
        The new manifest.
    """
    with _locked(bundle):
        before = read_manifest(bundle)
        replaced = _folders(before, target, precision)
        # Beside the folder that it replaces, which the manifest names until the new one is there.
        name = next(free for free in (f"{target}-{precision}", f"{target}-{precision}-2") if free not in replaced)
        try:
            with whole_folder(bundle / name) as draft:
                record = make(draft)
            manifest = before.with_artefact(replace(record, files=tuple(f"{name}/{file}" for file in record.files)))
            if calibration is not None:
                manifest = replace(manifest, calibration=calibration)
            manifest.write()
        except BaseException:
            if name not in _folders(read_manifest(bundle), target, precision):
                shutil.rmtree(bundle / name, ignore_errors=True)
            raise
        for folder in replaced:
            shutil.rmtree(bundle / folder, ignore_errors=True)
    return manifest


def _folders(manifest: Manifest, target: str, precision: str) -> set[str]:
    """Return the folders in a bundle that an engine's files lie in."""
    artefact = manifest.artefact(target, precision)
    return {file.partition("/")[0] for file in artefact.files if "/" in file} if artefact else set()


def add_graph_artefact(bundle: Path, artefact: Artefact) -> Manifest:
    """Record an engine whose one file is the bundle's graph itself."""
    with _locked(bundle):
        manifest = read_manifest(bundle).with_artefact(artefact)
        manifest.write()
    return manifest


def keep_trials(bundle: str | os.PathLike[str], rows: Sequence[dict[str, Any]]) -> Manifest:
    """Record what `--precision auto` found."""
    folder = Path(bundle)
    with _locked(folder):
        manifest = replace(read_manifest(folder), trials=tuple(rows))
        manifest.write()
    return manifest


def _tell(folder: Path, result: parity.Comparison) -> None:
    found = f"{result.max_abs_diff:.2g} ({result.allowed:.2g} allowed) on {result.clips} clips"
    log.print(f"{folder}: exported; ONNX Runtime agrees with PyTorch to {found}", markup=False, soft_wrap=True)


def _found(result: parity.Comparison) -> dict[str, float]:
    return {"max_abs_diff": result.max_abs_diff, "spread": result.spread, "allowed": result.allowed}


def _online_form(source: Checkpoint) -> torch.nn.Module:
    from flowless.export.graph.online_graph import OnlineForm

    return OnlineForm(source.model, name=source.name).eval()


def _refuse_foreign(folder: Path) -> None:
    if folder.is_dir() and any(folder.iterdir()) and not (folder / MANIFEST).is_file():
        raise FlowlessError(
            f"{folder}: there is a folder already, and it is no bundle. Name another place with --out, or remove the folder."
        )
    if folder.exists() and not folder.is_dir():
        raise FlowlessError(f"{folder}: is a file; a bundle is a folder. Name another place with --out.")
    if folder.is_dir() and (folder / MANIFEST).is_file():
        read_manifest(folder)  # a manifest of something else is somebody else's folder


@contextlib.contextmanager
def _locked(bundle: Path) -> Iterator[None]:
    """Let one build at a time change a bundle, where the system has file locks."""
    try:
        import fcntl
    except ModuleNotFoundError:
        yield
        return
    handle = os.open(bundle, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _flowless_version() -> str:
    from flowless import __version__

    return __version__
