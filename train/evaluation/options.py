"""How an evaluation runs: the options of `flowless evaluate`. No heavy library is imported here, so that `--help` is instant."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, get_args

from flowless.engines.decoded_scores import Decode
from flowless.errors import FlowlessError
from flowless.pipeline.clip.protocols import ALIASES, PROTOCOLS, ViewsOption, paper_views, protocol_name, protocol_spec
from flowless.pipeline.clip.spec import Average, ClipSpec


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions:
    """How an evaluation runs."""

    views: ViewsOption | None = None
    """Test protocol: which clips and crops of a video are scored and averaged. At the model's own frame size (such as 224): one-view (or
    centre), two-clip, dense (10 clips), consecutive, three-crop, three-crop-two-clip. At the size of the resized frame's short side (such
    as 256): full-resolution (2 clips); with 3 crops: three-view, six-view (2 clips), thirty-view (10 dense clips), three-consecutive,
    thirty-consecutive (10 clips). Crops of the short side's size, scaled down to the model's own: thirty-draw (3 crops x 10 random clips).
    paper takes the protocol of the model's paper, which a checkpoint's recipe names. Default: the protocol in the checkpoint or bundle."""
    average: Average | None = None
    """What is averaged over a video's views: logits or softmax. Default: as the protocol defines, else as the checkpoint or bundle does."""
    batch_size: int = 16
    """Views that run together in one batch; a video with more views takes several batches."""
    threads: int | None = None
    """Threads that decode; default: one per processor core."""
    decode: Decode = "auto"
    """What decodes: cpu is PyAV, with Pillow's resize; gpu is DALI on the GPU, and PyAV what DALI cannot; auto is gpu where the model runs
    on an NVIDIA GPU and DALI is installed."""
    target: str | None = None
    """Bundles only: which engine runs, such as openvino; default: the best one that this machine can run."""
    precision: str | None = None
    """Bundles only: the engine's precision, such as int8."""

    def __post_init__(self) -> None:
        """Refuse numbers below 1 and unknown decoders."""
        if self.decode not in get_args(Decode):
            raise FlowlessError(f"decode is {self.decode!r}; it must be one of {', '.join(get_args(Decode))}.")
        for name, value in (("batch_size", self.batch_size), ("threads", self.threads)):
            if value is not None and value < 1:
                raise FlowlessError(f"{name} is {value}; it must be at least 1.")

    def protocol(self, spec: ClipSpec, *, recipe: Mapping[str, Any] | None = None) -> tuple[str, ClipSpec]:
        """Return the test protocol's name, and the ClipSpec by which it cuts the views.

        Args:
            spec: The model's own ClipSpec.
            recipe: The recipe's fields where the model is a checkpoint; a bundle has none.

        Raises:
            FlowlessError: The protocol does not fit the model, or views is `paper` and no recipe names the paper's protocol.
        """
        if self.views == "paper" and recipe is None:
            raise FlowlessError(
                f"views is 'paper', but a bundle has no recipe that names the paper's protocol. Evaluate the checkpoint, or choose "
                f"one of {', '.join(PROTOCOLS)}."
            )
        views = paper_views(recipe or {}) if self.views == "paper" else self.views
        name, found = (protocol_name(spec), spec) if views is None else (ALIASES.get(views, views), protocol_spec(spec, views))
        return name, replace(found, average=self.average or found.average)
