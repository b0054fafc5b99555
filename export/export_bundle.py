"""Exporting a checkpoint to a new bundle, which is compared with PyTorch before it is kept."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from flowless.console import log
from flowless.engines.backends.backend import open_backend
from flowless.engines.bundle.manifest import MANIFEST, Artefact, Manifest, fingerprint, read_manifest
from flowless.engines.streaming.streaming_backend import zero_state
from flowless.engines.targets import TARGETS
from flowless.errors import FlowlessError
from flowless.export.graph.export_graph import export_onnx
from flowless.export.graph.graph_forms import Form, in_form, state_of_form
from flowless.export.graph.pa_function import OPSET
from flowless.export.targets.build_options import BuildOptions
from flowless.export.targets.engine_key import engine_key
from flowless.export.verify import parity
from flowless.export.verify.reference import Reference, film_of, gather_clips
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
    form: Form = "clip",
) -> Manifest:
    """Export a checkpoint to a bundle with `model.onnx`, compared with PyTorch.

    The graph runs in ONNX Runtime on clips from videos, and on noise, still frames and edges, at batch 1 and 3.

    Args:
        checkpoint: The `.safetensors` file, or the checkpoint that `load_checkpoint` returned.
        out: The bundle's folder; an existing bundle is replaced, another folder is refused.
        videos: Videos to compare on; without any, some are generated.
        form: What the graph takes: `clip`, whole clips; `online`, a frame and a memory of frames (`engines/streaming/memory.py`);
            `streaming`, a frame and a causal network's state (`engines/streaming/state.py`). The last two are compared frame by frame too.

    Returns:
        The bundle's manifest. Its one engine is `onnxruntime` in fp32, which is the graph itself.

    Raises:
        FlowlessError: The checkpoint, a video or `out` cannot be used, or the model has no such form.
        CheckFailed: The graph's scores differ from PyTorch's; no bundle is written.
    """
    from flowless.train.checkpoints import Checkpoint, load_checkpoint

    folder = Path(out)
    _refuse_foreign(folder)
    source = checkpoint if isinstance(checkpoint, Checkpoint) else load_checkpoint(checkpoint)
    module = in_form(source.model, form, name=source.name, spec=source.spec)
    state, reference = state_of_form(module), _compute_reference(source, module, videos)
    versions = {**installed_versions(("torch", "timm", "onnx", "onnxscript")), "flowless": _flowless_version()}
    with whole_folder(folder) as draft:
        about = {"spec": source.spec, "labels": source.labels, "name": source.name, "versions": versions}
        export_onnx(module, draft / "model.onnx", **about, form=form)
        library = TARGETS["onnxruntime"].versions()
        engine = Artefact(target="onnxruntime", precision="fp32", status="verified", files=("model.onnx",), versions=library)
        backend = open_backend(engine, draft / "model.onnx", classes=len(source.labels), state=state)
        result = parity.check(backend, reference, precision="fp32", what=f"{folder.name}/model.onnx")
        reference.save(draft / "reference.npz", source.spec)
        manifest = Manifest(
            folder=draft,
            model=source.name,
            spec=source.spec,
            labels=source.labels,
            opset=OPSET,
            config=dict(source.model.config),
            memory=source.spec.segments - 1 if form == "online" else 0,
            state=state,
            versions=versions,
            parity={"clips": list(reference.names), **_figures(result), "batches": list(parity.BATCHES)},
            files={"reference.npz": fingerprint(draft / "reference.npz")},
        )
        manifest = manifest.with_artefact(engine)
        key = engine_key(manifest, "onnxruntime", "fp32", BuildOptions(), None)
        manifest = manifest.with_artefact(replace(engine, max_abs_diff=result.max_abs_diff, key=key))
        manifest.write()
    _report(folder, result)
    return replace(manifest, folder=folder)


def _compute_reference(source: Checkpoint, module: torch.nn.Module, videos: Sequence[str | os.PathLike[str]]) -> Reference:
    """Return clips with PyTorch's scores; of a streaming form also those of a film."""
    names, clips = gather_clips(source.spec, videos)
    reference = Reference(names=names, clips=clips, scores=torch_scores(source.model, clips))
    if not state_of_form(module):
        return reference
    return replace(reference, film_scores=torch_film_scores(module, film_of(reference)))


def torch_scores(model: torch.nn.Module, clips: np.ndarray) -> np.ndarray:
    """Return PyTorch's float32 scores `[K, classes]` of clips uint8 `[K, N, m, H, W, 3]`, one clip at a time."""
    import torch

    with torch.inference_mode():
        return np.concatenate([model(torch.from_numpy(np.ascontiguousarray(clip[None]))).float().numpy() for clip in clips])


def torch_film_scores(form: torch.nn.Module, frames: np.ndarray) -> np.ndarray:
    """Return the scores `[T, classes]` of a streaming form in PyTorch at every frame of a stream, uint8 `[T, H, W, 3]`."""
    import torch

    state, scores = [torch.from_numpy(value) for value in zero_state(state_of_form(form), 1).values()], []
    with torch.inference_mode():
        for frame in frames:
            now, *state = form(torch.from_numpy(np.ascontiguousarray(frame[None])), *state)
            scores.append(now[0].float().numpy())
    return np.stack(scores)


def _report(folder: Path, result: parity.Comparison) -> None:
    found = f"{result.max_abs_diff:.2g} ({result.allowed:.2g} allowed) on {result.clips} clips"
    log.print(f"{folder}: exported; ONNX Runtime agrees with PyTorch to {found}", markup=False, soft_wrap=True)


def _figures(result: parity.Comparison) -> dict[str, float]:
    return {"max_abs_diff": result.max_abs_diff, "spread": result.spread, "allowed": result.allowed}


def _refuse_foreign(folder: Path) -> None:
    if folder.is_dir() and any(folder.iterdir()) and not (folder / MANIFEST).is_file():
        raise FlowlessError(
            f"{folder}: there is a folder already, and it is not a bundle. Name another place with --out, or remove the folder."
        )
    if folder.exists() and not folder.is_dir():
        raise FlowlessError(f"{folder}: is a file; a bundle is a folder. Name another place with --out.")
    if folder.is_dir() and (folder / MANIFEST).is_file():
        read_manifest(folder)  # raises for a manifest of another program


def _flowless_version() -> str:
    from flowless import __version__

    return __version__
