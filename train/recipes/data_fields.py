"""The fields of a recipe about the data: the clip, and its augmentation in training. No heavy library is imported here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from flowless.pipeline.clip.protocols import Views
from flowless.pipeline.clip.spec import Average, ClipSpec, EvaluationRule, Rule

#: Which frames of a video a training clip consists of.
TrainingSampling = Literal["segments", "dense", "consecutive"]


@dataclass(frozen=True, kw_only=True)
class DataFields:
    """The clip and its augmentation. The defaults are PAN's on Something-Something."""

    segments: int = 8
    """Number of segments N that a video is divided into."""
    frames_per_segment: int = 4
    """Number of adjacent frames m taken from each segment."""
    size: int = 224
    """Height and width of the network's input, in pixels."""
    short_side: int = 256
    """Short side, in pixels, that frames are resized to before an evaluation crops them."""
    sampling: EvaluationRule = "centre"
    """Which frames an evaluation takes, such as centre (the middle of each segment). Validation during training always takes one clip."""
    average: Average = "logits"
    """What an evaluation averages over the views of a video: the network's scores (logits), or their softmax."""
    test_views: Views | None = None
    """Test protocol of the paper's tables, used by `flowless evaluate --views paper`; None where the paper has none that is known here."""
    training_sampling: TrainingSampling = "segments"
    """Which frames a training clip takes. segments: m adjacent frames at a random place of each segment; dense: N stacks of m frames spread
    over 64 consecutive frames; consecutive: N x m consecutive frames. The last two begin at a random frame of the video."""
    flip: bool = False
    """Mirror half of the training clips. Leave it off where left and right are different actions, or give flip_labels."""
    flip_labels: dict[str, str] = field(default_factory=dict)
    """With flip: pairs of labels that mirroring exchanges, such as "swipe left" "swipe right"."""
    scales: tuple[float, ...] = (1.0, 0.875, 0.75, 0.66)
    """Sides of the training crop, relative to the frame's short side; each clip draws its crop's height and width from them."""
    colour_jitter: float = 0.0
    """Largest random change of brightness, contrast and saturation in training, as a fraction; 0 is off."""
    grey: float = 0.0
    """Fraction of the training clips that are converted to grey; 0 is off."""

    @property
    def spec(self) -> ClipSpec:
        """The clip that this recipe describes."""
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
        """The sampling rule of `clip_indices` for training."""
        return "train" if self.training_sampling == "segments" else self.training_sampling

    @property
    def validation_rule(self) -> EvaluationRule:
        """The sampling rule by which validation takes one clip of the kind that training takes."""
        rules: dict[TrainingSampling, EvaluationRule] = {"segments": "centre", "dense": "one-dense", "consecutive": "consecutive"}
        return rules[self.training_sampling]
