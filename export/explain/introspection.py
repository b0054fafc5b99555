"""Run a checkpoint or a bundle and read its inner tensors: motion cue, branches' scores and features, segments' scores, VAP's weights.

A checkpoint runs in PyTorch. Of a bundle, `model.onnx` runs in ONNX Runtime with the inner tensors that the exporter recorded as additional
outputs. Both give the same numbers within float32 rounding.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from flowless.errors import FlowlessError, first_line
from flowless.export.explain.cues import Cue, cue_of, make_cue
from flowless.export.explain.grad_cam import BranchMaps, branch_of, grad_cam
from flowless.pipeline.clip.spec import ClipSpec

if TYPE_CHECKING:
    from torch import Tensor

    from flowless.export.graph.graph_outputs import HeadOutputs
    from flowless.train.checkpoints import Checkpoint

Floats = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """What was loaded."""

    name: str
    """The model's name, such as `pan-lite-r50`."""
    path: Path
    """The checkpoint or bundle, as it was given."""
    source: str
    """The checkpoint or bundle and the library that runs it, for messages and pages."""
    spec: ClipSpec
    """What a clip is."""
    labels: tuple[str, ...]
    """Class names in the order of the scores."""
    causal: bool = False
    """Whether RGB is the newest frame of each segment; in other networks it is the first, or every frame is seen."""

    @property
    def shown(self) -> int:
        """Position of the frame that stands for its segment, the one on which Grad-CAM lies."""
        return self.spec.frames_per_segment - 1 if self.causal else 0


@dataclass(frozen=True, kw_only=True, eq=False)
class BranchOutputs:
    """The outputs of one branch for B clips."""

    name: str
    """Its name, such as `pa`; empty where the model has a single one."""
    scores: Floats
    """`[B, classes]`, before any softmax."""
    features: Floats
    """`[B, N, D]`, its head's input; `[B, 1, D]` where the network makes one vector of the whole clip."""
    segment_scores: Floats | None
    """`[B, N, classes]`: the last layer applied to each segment's features; None where the network makes one vector of the whole clip."""
    timescale_weights: Floats | None
    """`[B, N-1]`: VAP's weights; None in other heads."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ModelOutputs:
    """The outputs of a model for B clips."""

    scores: Floats
    """`[B, classes]`, fused over the branches, before any softmax."""
    branches: tuple[BranchOutputs, ...]


class InspectableModel(ABC):
    """A model whose inner tensors can be read."""

    info: ModelInfo
    has_gradients = False
    """Whether `grad_cam` returns maps."""

    @abstractmethod
    def run(self, clips: NDArray[np.uint8]) -> ModelOutputs:
        """Run the network on clips, uint8 `[B, N, m, H, W, 3]`."""

    @abstractmethod
    def cue(self, clips: NDArray[np.uint8]) -> Cue | None:
        """Compute the motion cue without the layers after it; None where the model has none."""

    def grad_cam(self, clips: NDArray[np.uint8], *, index: int) -> tuple[BranchMaps, ...]:
        """Return the branches' Grad-CAM for a class, counted from 0; empty without gradients."""
        return ()


def open_model(model: str | os.PathLike[str]) -> InspectableModel:
    """Open a checkpoint (a file) or a bundle (a folder).

    Raises:
        FlowlessError: It does not exist, is damaged, or its graph does not record where its inner tensors are.
    """
    path = Path(model)
    if not path.exists():
        raise FlowlessError(f"{path}: no such checkpoint (a .safetensors file) or bundle (a folder).")
    if path.is_dir():
        return BundleModel(path)
    from flowless.train.checkpoints import load_checkpoint

    return CheckpointModel(load_checkpoint(path), path=path)


class CheckpointModel(InspectableModel):
    """A checkpoint in PyTorch, on the GPU if there is one."""

    has_gradients = True

    def __init__(self, checkpoint: Checkpoint, *, path: Path) -> None:
        import torch

        source = f"checkpoint {path.name}, PyTorch in float32"
        causal = bool(checkpoint.model.config.get("causal"))
        self.info = ModelInfo(name=checkpoint.name, path=path, source=source, spec=checkpoint.spec, labels=checkpoint.labels, causal=causal)
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        # Grad-CAM needs the gradients of features alone; those of parameters would keep all layers' inputs in memory.
        self._network = checkpoint.model.eval().requires_grad_(False).to(self._device)

    def run(self, clips: NDArray[np.uint8]) -> ModelOutputs:
        """Run the network on clips, uint8 `[B, N, m, H, W, 3]`."""
        import torch

        heads = self._network.heads
        recorded: dict[int, tuple[Tensor, Tensor]] = {}

        def record(head: Any, inputs: Any, scores: Tensor) -> None:
            recorded[id(head)] = (inputs[0], scores)

        hooks = [head.register_forward_hook(record) for head in heads]
        try:
            with torch.inference_mode():
                scores = self._network(self._tensor(clips)).cpu().numpy()
                branches = tuple(self._branch(head, *recorded[id(head)]) for head in heads)
        finally:
            for hook in hooks:
                hook.remove()
        return ModelOutputs(scores=scores, branches=branches)

    def cue(self, clips: NDArray[np.uint8]) -> Cue | None:
        """Compute the motion cue without the layers after it; None where the model has none."""
        return cue_of(self._network, self._tensor(clips))

    def grad_cam(self, clips: NDArray[np.uint8], *, index: int) -> tuple[BranchMaps, ...]:
        """Return the branches' Grad-CAM for a class, counted from 0."""
        return grad_cam(self._network, self._tensor(clips), index=index)

    def _branch(self, head: Any, features: Tensor, scores: Tensor) -> BranchOutputs:
        path = next(path for path, module in self._network.named_modules() if module is head)
        by_segment = features.shape[1] == self.info.spec.segments
        last_layer = getattr(head, "segment_scores", head.pred)
        weights = getattr(head, "timescale_weights", None)
        return BranchOutputs(
            name=branch_of(path),
            scores=scores.cpu().numpy(),
            features=features.cpu().numpy(),
            segment_scores=last_layer(features).cpu().numpy() if by_segment else None,
            timescale_weights=None if weights is None else weights(features).cpu().numpy(),
        )

    def _tensor(self, clips: NDArray[np.uint8]) -> Tensor:
        import torch

        return torch.from_numpy(clips).to(self._device)


class BundleModel(InspectableModel):
    """A bundle's `model.onnx` in ONNX Runtime on the CPU."""

    def __init__(self, bundle: Path) -> None:
        from flowless.engines.bundle.manifest import read_manifest
        from flowless.export.graph.export_graph import read_graph
        from flowless.export.graph.graph_feeds import GraphFeeds
        from flowless.export.graph.graph_outputs import last_layer, read_outputs, tensor_names

        manifest = read_manifest(bundle)
        manifest.check([manifest.graph])
        self._path = manifest.path_of(manifest.graph)
        source = f"bundle {bundle.resolve().name}, {manifest.graph} by ONNX Runtime in float32"
        causal = bool(manifest.config.get("causal"))
        self.info = ModelInfo(name=manifest.model, path=bundle, source=source, spec=manifest.spec, labels=manifest.labels, causal=causal)
        self._graph = read_graph(self._path)
        self._feeds = GraphFeeds(self._graph)
        self._outputs = read_outputs(self._graph, what=str(self._path))
        self._scores = self._graph.graph.output[0].name  # the next memory comes after it
        # A single head's scores are the graph's.
        self._names = list(dict.fromkeys([*tensor_names(self._outputs), self._scores]))
        self._names = [name for name in self._names if name != self._outputs.cue]
        self._last_layers = {head.layer: last_layer(self._graph, head) for head in self._outputs.heads}
        self._session = self._session_of(self._names)

    def run(self, clips: NDArray[np.uint8]) -> ModelOutputs:
        """Run the network on clips, uint8 `[B, N, m, H, W, 3]`."""
        *_, feeds = self._feeds(np.ascontiguousarray(clips))  # of a streaming graph the last step's, over the features of all
        tensors = dict(zip(self._names, self._session.run(self._names, feeds), strict=True))
        return ModelOutputs(scores=tensors[self._scores], branches=tuple(self._branch(head, tensors) for head in self._outputs.heads))

    def cue(self, clips: NDArray[np.uint8]) -> Cue | None:
        """Compute the motion cue by the part of the graph that it needs; None where the model has none."""
        if not self._outputs.cue:
            return None
        steps = [self._cue_session.run(None, feeds)[0] for feeds in self._feeds(np.ascontiguousarray(clips))]
        values = np.concatenate(steps, axis=1) if len(steps) > 1 else steps[0]  # a streaming graph sees one segment a step
        return make_cue(self._outputs.system, values, clips=len(clips), segments=self.info.spec.segments)

    def _branch(self, head: HeadOutputs, tensors: dict[str, Floats]) -> BranchOutputs:
        features = tensors[head.features]
        weight, bias = self._last_layers[head.layer]
        # VIP's head has a classifier for each timescale, side by side; the scores of one segment alone are their mean.
        weight = weight.reshape(-1, features.shape[-1], weight.shape[-1]).mean(0)
        return BranchOutputs(
            name=head.branch,
            scores=tensors[head.scores],
            features=features,
            segment_scores=features @ weight + bias if features.shape[1] == self.info.spec.segments else None,
            timescale_weights=tensors[head.weights] if head.weights else None,
        )

    @cached_property
    def _cue_session(self) -> Any:
        return self._session_of([self._outputs.cue])

    def _session_of(self, names: list[str]) -> Any:
        import onnxruntime

        from flowless.engines.backends.onnxruntime_backend import onnxruntime_options
        from flowless.export.graph.graph_outputs import opened

        graph = opened(self._graph, names)
        try:
            return onnxruntime.InferenceSession(graph.SerializeToString(), onnxruntime_options(), providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's own exception types
            raise FlowlessError(
                f"{self._path}: ONNX Runtime cannot compute its inner tensors ({first_line(error)}). Export the model again."
            ) from error
