"""Looking into a model while it sees clips: its cue, each branch's scores, each segment's, VAP's weights.

A checkpoint runs in PyTorch, a bundle as its `model.onnx` in ONNX Runtime with the tensors opened that the exporter noted. Both
give the same numbers.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from flowless.engines.streaming.memory import feeds_of
from flowless.errors import FlowlessError, first_line
from flowless.export.explain.cues import (
    Cue,
    appearance_cue,
    channelwise_motion_cue,
    cue_of,
    displacement_cue,
    persistence_cue,
)
from flowless.export.explain.grad_cam import BranchMaps, branch_of, grad_cam
from flowless.pipeline.clip.spec import ClipSpec

if TYPE_CHECKING:
    from torch import Tensor

    from flowless.export.graph.graph_outputs import GraphOutputs, HeadOutputs
    from flowless.train.checkpoints import Checkpoint

Floats = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, eq=False)
class BranchSeen:
    """What one branch said of some clips."""

    name: str
    """Its name, such as `pa`; empty where there is one alone."""
    scores: Floats
    """`[B, classes]`, before any softmax."""
    features: Floats
    """`[B, N, D]`: what its head reads; `[B, 1, D]` where a clip has one vector alone."""
    segment_scores: Floats | None
    """`[B, N, classes]`: the last layer's scores of each segment's own features; None where a clip has one vector alone."""
    timescale_weights: Floats | None
    """`[B, N-1]`: VAP's weights; None in a head that learns none."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Seen:
    """What a model saw in some clips, and said of them."""

    scores: Floats
    """`[B, classes]`: the branches', fused."""
    branches: tuple[BranchSeen, ...]
    """The branches."""
    cue: Cue | None
    """Its motion cue; None where it has none, or was not asked for."""


class Looker(ABC):
    """A model that can be looked into.

    Attributes:
        model: The model's name.
        source: What runs, for people.
        spec: What a clip is.
        labels: Class names in the order of the scores.
        has_gradients: Whether there is Grad-CAM.
    """

    model: str
    source: str
    spec: ClipSpec
    labels: tuple[str, ...]
    has_gradients = False

    @abstractmethod
    def look(self, clips: NDArray[np.uint8], *, cue: bool = True) -> Seen:
        """Look at clips, uint8 `[B, N, m, H, W, 3]`; without `cue` at all but their cue, which may take a pass of its own."""

    @abstractmethod
    def cue(self, clips: NDArray[np.uint8]) -> Cue | None:
        """Return the cue of clips alone, without the network behind it."""

    def grad_cam(self, clips: NDArray[np.uint8], *, index: int) -> tuple[BranchMaps, ...]:
        """Return the branches' Grad-CAM of clips for a class, counted from 0; nothing where what runs has no gradients."""
        return ()


def open_looker(model: str | os.PathLike[str]) -> Looker:
    """Open a checkpoint (a file) or a bundle (a folder).

    Raises:
        FlowlessError: There is none, it is damaged, or its graph does not say where its cue lies.
    """
    path = Path(model)
    if not path.exists():
        raise FlowlessError(f"{path}: no such checkpoint (a .safetensors file) or bundle (a folder).")
    if path.is_dir():
        return BundleLooker(path)
    from flowless.train.checkpoints import load_checkpoint

    return CheckpointLooker(load_checkpoint(path), name=path.name)


class CheckpointLooker(Looker):
    """A checkpoint, run by PyTorch, on the GPU where there is one."""

    has_gradients = True

    def __init__(self, checkpoint: Checkpoint, *, name: str) -> None:
        self.model, self.spec, self.labels = checkpoint.name, checkpoint.spec, checkpoint.labels
        self.source = f"checkpoint {name}, PyTorch in float32"
        import torch

        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        # Grad-CAM asks for the gradients of features alone; those of parameters would keep all layers' inputs in memory.
        self._network = checkpoint.model.eval().requires_grad_(False).to(self._device)

    def look(self, clips: NDArray[np.uint8], *, cue: bool = True) -> Seen:
        """Look at clips, uint8 `[B, N, m, H, W, 3]`."""
        import torch

        network = self._network
        paths = {id(module): path for path, module in network.named_modules()}
        read: dict[int, Any] = {}
        hooks = [head.register_forward_hook(lambda one, given, out: read.update({id(one): (given[0], out)})) for head in network.heads]
        try:
            with torch.inference_mode():
                scores = network(self._tensor(clips)).cpu().numpy()
                branches = []
                for head in network.heads:
                    features, said = read[id(head)]
                    apart = features.shape[1] == self.spec.segments
                    each = getattr(head, "segment_scores", head.get_submodule("pred"))
                    weights = getattr(head, "timescale_weights", None)
                    branches.append(
                        BranchSeen(
                            name=branch_of(paths[id(head)]),
                            scores=said.cpu().numpy(),
                            features=features.cpu().numpy(),
                            segment_scores=each(features).cpu().numpy() if apart else None,
                            timescale_weights=weights(features).cpu().numpy() if weights is not None else None,
                        )
                    )
        finally:
            for hook in hooks:
                hook.remove()
        return Seen(scores=scores, branches=tuple(branches), cue=self.cue(clips) if cue else None)

    def cue(self, clips: NDArray[np.uint8]) -> Cue | None:
        """Return the cue of clips alone, without the network behind it."""
        return cue_of(self._network, self._tensor(clips))

    def grad_cam(self, clips: NDArray[np.uint8], *, index: int) -> tuple[BranchMaps, ...]:
        """Return the branches' Grad-CAM of clips for a class, counted from 0."""
        return grad_cam(self._network, self._tensor(clips), index=index)

    def _tensor(self, clips: NDArray[np.uint8]) -> Tensor:
        import torch

        return torch.from_numpy(clips).to(self._device)


class BundleLooker(Looker):
    """A bundle's `model.onnx`, run by ONNX Runtime on the CPU."""

    def __init__(self, bundle: Path) -> None:
        from flowless.engines.bundle.manifest import read_manifest
        from flowless.export.graph.export_graph import read_graph
        from flowless.export.graph.graph_outputs import last_layer, read_outputs, tensor_names

        manifest = read_manifest(bundle)
        manifest.check([manifest.graph])
        path = manifest.path_of(manifest.graph)
        self.model, self.spec, self.labels = manifest.model, manifest.spec, manifest.labels
        self.source = f"bundle {bundle.resolve().name}, {manifest.graph} by ONNX Runtime in float32"
        self._what = path
        self._proto = read_graph(path)
        self._outputs: GraphOutputs = read_outputs(self._proto, what=str(path))
        self._answer = self._proto.graph.output[0].name  # scores; an online graph's memory comes behind
        # Where there is one head, what it says is the answer.
        self._names = list(dict.fromkeys([*tensor_names(self._outputs), self._answer]))
        self._layers = {head.layer: last_layer(self._proto, head) for head in self._outputs.heads}
        self._whole, self._part = self._session(self._names), None

    def look(self, clips: NDArray[np.uint8], *, cue: bool = True) -> Seen:
        """Look at clips, uint8 `[B, N, m, H, W, 3]`."""
        found = self._whole.run(self._names, self._feeds(clips))
        tensors = dict(zip(self._names, found, strict=True))
        branches = tuple(self._branch(head, tensors) for head in self._outputs.heads)
        seen = self._cue(tensors[self._outputs.cue], len(clips)) if self._outputs.cue and cue else None
        return Seen(scores=tensors[self._answer], branches=branches, cue=seen)

    def cue(self, clips: NDArray[np.uint8]) -> Cue | None:
        """Return the cue of clips alone, without the network behind it."""
        if not self._outputs.cue:
            return None
        self._part = self._part or self._session([self._outputs.cue])
        return self._cue(self._part.run(None, self._feeds(clips))[0], len(clips))

    def _feeds(self, clips: NDArray[np.uint8]) -> dict[str, np.ndarray]:
        return feeds_of(np.ascontiguousarray(clips), [item.name for item in self._proto.graph.input])

    def _branch(self, head: HeadOutputs, tensors: dict[str, Floats]) -> BranchSeen:
        features = tensors[head.features]
        weight, bias = self._layers[head.layer]
        apart = features.shape[1] == self.spec.segments
        # A head with a classifier for each timescale (VIP) is, to one segment alone, their mean.
        weight = weight.reshape(-1, features.shape[-1], weight.shape[-1]).mean(0)
        return BranchSeen(
            name=head.branch,
            scores=tensors[head.scores],
            features=features,
            segment_scores=features @ weight + bias if apart else None,
            timescale_weights=tensors[head.weights] if head.weights else None,
        )

    def _cue(self, values: Floats, clips: int) -> Cue:
        lead, size = (clips, self.spec.segments), values.shape[-2:]
        if self._outputs.system == "persistence":
            return persistence_cue(values.reshape(*lead, -1, *size))
        if self._outputs.system == "displacement":
            return displacement_cue(values.reshape(*lead, -1, 2, *size))
        if self._outputs.system == "appearance":
            return appearance_cue(values.reshape(*lead, 3, *size))
        return channelwise_motion_cue(values.reshape(*lead, -1, *size))

    def _session(self, names: list[str]) -> Any:
        import onnxruntime

        from flowless.engines.backends.onnxruntime_backend import onnxruntime_options
        from flowless.export.graph.graph_outputs import opened

        graph = opened(self._proto, names)
        try:
            return onnxruntime.InferenceSession(graph.SerializeToString(), onnxruntime_options(), providers=["CPUExecutionProvider"])
        except Exception as error:  # the library raises types of its own
            raise FlowlessError(
                f"{self._what}: ONNX Runtime cannot compute its inner tensors ({first_line(error)}). Export it again."
            ) from error
