"""What the data decide: the clip that a model sees, and how training may change it. No heavy library is imported here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from flowless.pipeline.clip.protocols import Views
from flowless.pipeline.clip.spec import Average, ClipSpec, EvaluationRule, Rule

#: Which frames training takes.
TrainingSampling = Literal["segments", "dense", "consecutive"]


@dataclass(frozen=True, kw_only=True)
class DataFields:
    """The clip and its augmentation. The defaults are PAN's on Something-Something."""

    segments: int = 8
    """Segments N that a video is divided into."""
    frames_per_segment: int = 4
    """Adjacent frames m taken from each segment."""
    size: int = 224
    """Side of the square that the network sees, in pixels."""
    short_side: int = 256
    """Short side of the frame before an evaluation's centre crop, in pixels."""
    sampling: EvaluationRule = "centre"
    """Which frames an evaluation takes (validation during training takes one clip from the middle, whatever this says)."""
    average: Average = "logits"
    """What an evaluation averages over the views of a video: the network's scores, or their softmax."""
    test_views: Views | None = None
    """Test protocol of the paper's tables, for `flowless evaluate --views paper`; None where the paper has none of these names."""
    training_sampling: TrainingSampling = "segments"
    """Which frames training takes: a random place in each segment; N stacks spread over 64 consecutive frames (dense); or
    N x m consecutive frames (consecutive). The last two begin anywhere in the video."""
    flip: bool = False
    """Mirror half of the clips in training. Off where left and right are different actions."""
    flip_labels: dict[str, str] = field(default_factory=dict)
    """With flip: label that a mirrored clip of each label gets, such as {"swipe left": "swipe right", …}."""
    scales: tuple[float, ...] = (1.0, 0.875, 0.75, 0.66)
    """Sizes of the training crop, relative to the frame's short side."""
    colour_jitter: float = 0.0
    """Largest random change of brightness, contrast and saturation in training, as a share; 0 is off."""
    grey: float = 0.0
    """Share of the training clips that lose their colours; 0 is off."""

    @property
    def spec(self) -> ClipSpec:
        """What a clip is under this recipe."""
        return ClipSpec(
            segments=self.segments,
            frames_per_segment=self.frames_per_segment,
            height=self.size,
            width=self.size,
            short_side=self.short_side,
            sampling=self.sampling,
            average=self.average,
        )

    @property
    def training_rule(self) -> Rule:
        """The rule of `clip_indices` by which training takes frames."""
        return "train" if self.training_sampling == "segments" else self.training_sampling

    @property
    def validation_rule(self) -> EvaluationRule:
        """The rule by which validation takes one clip of the kind that training takes."""
        rules: dict[TrainingSampling, EvaluationRule] = {"segments": "centre", "dense": "one-dense", "consecutive": "consecutive"}
        return rules[self.training_sampling]
