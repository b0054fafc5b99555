"""Recipes: everything that decides how a model is trained, by name `model/data set`. No heavy library is imported here."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal, get_args

from flowless.errors import FlowlessError
from flowless.pipeline.clip.spec import ClipSpec
from flowless.train.model_options import (
    BACKBONES,
    AppearancePooling,
    DisplacementSize,
    ModelOptions,
    PAEncoding,
    STMFusion,
    STMPlacement,
)
from flowless.train.recipes_appearance import appearance_changes

#: What training minimises.
ObjectiveName = Literal["scores", "twins"]
#: How the two losses of dynamic appearance are joined.
JointRule = Literal["decoupled", "constant", "schedule", "mgda"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a model is trained. Every field can be overridden on the command line.

    The defaults are the official code's for PAN-Lite: SGD, momentum 0.9, weight decay 1e-4, rate 0.01 for a batch of 64,
    divided by 10 at epochs 30 and 60 of 80.
    """

    name: str = "custom"
    """The recipe's name, model/data set."""
    model: str = "pan-lite-r50"
    """A family and its backbone: tsn, tsm, pan-lite and others with r18 to r101; stm-r18 to -r50; da-tsm-r50, da-x3d-xs, da-vit-b;
    disentangling-bninception."""
    width: float = 1.0
    """Factor on the backbone's channels; 0.25 gives 16, 32, 64, 128."""
    blocks: int = 0
    """ResNets, X3D: residual blocks of each stage; BN-Inception: modules of each stage; ViT: blocks in all. 1 gives the smallest network,
    0 as many as the name says."""
    dropout: float = 0.5
    """Share of the features dropped before the last layer."""
    pa_encoding: PAEncoding = "e1"
    """Models with motion maps: the maps as channels (e1), or as attention on the mean feature map (e2)."""
    pa_depth: int = 1
    """Models with motion maps: layers of 7x7 convolutions whose change is measured, 0 to 8 (the paper's choice is 1)."""
    stm_placement: STMPlacement = "all"
    """STM: which residual blocks are STM blocks: all, the first of every stage, or the first of one stage."""
    stm_fusion: STMFusion = "sum"
    """STM: add spatiotemporal and motion features up (sum), or concatenate them and convolve (concat)."""
    stm_fixed: bool = False
    """STM: the frequency-degenerated variant, whose temporal and motion kernels are fixed and do not learn."""
    da_subspace: int = 1
    """Models with dynamic appearance: dimensions of the static subspace that is taken out, 1 to 3, at most half of the frames."""
    joint: JointRule = "mgda"
    """Models with dynamic appearance: how its own loss and the recognition loss are joined. constant: joint_alpha of its own and the
    rest of recognition's; schedule: less and less of its own (joint_gamma, joint_lambda); mgda: as much as helps both, and all other
    layers learn by recognition in full; decoupled: its own loss moves it alone, recognition's everything else."""
    joint_alpha: float = 0.5
    """With joint constant: share of dynamic appearance's own loss, at least 0 and below 1."""
    joint_gamma: float = 0.2
    """With joint schedule: share of the training after which joint_lambda is reached."""
    joint_lambda: float = 0.1
    """With joint schedule: share of dynamic appearance's own loss that is left then; it falls to nothing by the end."""
    displacement_window: int = 4
    """disentangling: cells that a feature may move each way between two frames, 1 to 16."""
    displacement_temperature: float = 0.02
    """disentangling: the smaller, the nearer is a displacement to the best match alone."""
    displacement_size: DisplacementSize = 112
    """disentangling: side of a displacement map of a frame of 224 x 224 pixels."""
    appearance_pooling: AppearancePooling = "gradual"
    """disentangling: join neighbouring frames at three places of the appearance network (gradual), or all behind it (late)."""
    pretrained: bool = True
    """Start from ImageNet weights, which timm downloads or finds in its cache."""
    pretrained_path: str | None = None
    """Start from ImageNet weights in this file instead (for machines without a network)."""

    segments: int = 8
    """Segments N that a video is divided into."""
    frames_per_segment: int = 4
    """Adjacent frames m taken from each segment."""
    size: int = 224
    """Side of the square that the network sees, in pixels."""
    short_side: int = 256
    """Short side of the frame before an evaluation's centre crop, in pixels."""
    sampling: Literal["centre", "two-clip", "dense"] = "centre"
    """Which frames an evaluation takes (validation during training always takes one centre clip)."""

    epochs: int = 80
    """Times that training sees every video."""
    batch_size: int = 64
    """Clips in one step of the optimiser, over all devices and accumulated batches."""
    accumulate: int = 1
    """Batches that make one step: more of them need less memory for the same batch_size."""
    optimiser: Literal["sgd", "adamw"] = "sgd"
    """sgd, as in the papers; adamw learns small networks from scratch in fewer epochs."""
    lr: float = 0.01
    """Learning rate for a batch of lr_batch clips; scaled linearly with batch_size."""
    lr_batch: int = 64
    """The batch size that lr is meant for."""
    momentum: float = 0.9
    """Momentum of SGD; the first moment's decay of AdamW."""
    weight_decay: float = 1e-4
    """Weight decay of convolutions and linear layers (never of biases and batch norm)."""
    schedule: Literal["steps", "one-cycle", "cosine"] = "steps"
    """steps: divide the rate at epochs; one-cycle: rise to lr in warm_up of the time, then fall to nothing; cosine: the same,
    rising in a straight line."""
    steps: tuple[int, ...] = (30, 60)
    """Epochs at which the schedule `steps` multiplies the rate with step_factor."""
    step_factor: float = 0.1
    """What `steps` multiplies with."""
    warm_up: float = 0.3
    """Share of the time in which `one-cycle` and `cosine` rise; 0 starts at lr."""
    layer_rates: bool = True
    """The official rates by layer: 5 times lr for PA's filters and linear layers, 10 times for their biases."""
    head_decay: float = 1.0
    """Factor on the weight decay of the linear layers behind the backbone."""
    projection_rate: float = 1.0
    """Models with dynamic appearance: factor on its learning rate."""
    clip_gradient: float = 20.0
    """Largest norm of the gradient; 0 switches clipping off."""
    objective: ObjectiveName = "scores"
    """scores: cross entropy. twins: Twins Training, two augmentations of each clip at once, whose scores also have to agree; a
    step takes the memory and time of twice the batch. It brings the paper's augmentation: where they are not given, colour_jitter
    becomes 0.4, grey 0.2, and scales of 1.0 alone 1.0 and 0.875."""
    twins_lambda: float = 0.01
    """Twins: weight of the correlation loss beside the cross entropy."""
    twins_beta: float = 0.0039
    """Twins: weight of pairs of different classes in the correlation loss."""
    label_smoothing: float = 0.0
    """Share of the target that is spread over all classes."""
    partial_bn: bool = False
    """Freeze every batch norm but the first."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Arithmetic of the network: fp32, or mixed bf16 or fp16 (fp16 on a GPU only). PA itself stays in fp32."""

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

    seed: int = 0
    """Fixes the first weights, the order of videos, the frames and crops taken, and dropout."""
    threads: int | None = None
    """Threads that decode; by default one a processor core."""
    max_bad_share: float = 0.05
    """Training stops when more than this share of the videos cannot be read."""
    keep_every: float = 10.0
    """Minutes after which the state to resume from is kept within an epoch; 0 keeps it after every step. It is kept after every epoch
    anyway."""
    validate_every: int = 1
    """Epochs between validations; the last epoch is always validated."""
    accelerator: str = "auto"
    """Lightning's accelerator: auto, cpu, gpu."""
    devices: str = "auto"
    """Lightning's devices: auto, a number, or a list such as 0,1."""
    num_nodes: int = 1
    """Machines that train together."""

    def __post_init__(self) -> None:
        """Refuse what cannot be trained: all problems in one error."""
        rules = (
            (("epochs", "batch_size", "accumulate", "lr_batch", "validate_every", "num_nodes"), lambda x: x >= 1, "at least 1"),
            (("lr",), lambda x: 0 < x < math.inf, "above 0"),
            (("momentum", "label_smoothing", "dropout"), lambda x: 0 <= x < 1, "in [0, 1)"),
            (
                ("weight_decay", "clip_gradient", "seed", "head_decay", "projection_rate", "keep_every"),
                lambda x: 0 <= x < math.inf,
                "at least 0",
            ),
            (("twins_lambda", "twins_beta"), lambda x: 0 <= x < math.inf, "at least 0"),
            (("pa_depth",), lambda x: 0 <= x <= 8, "from 0 to 8"),
            (("da_subspace",), lambda x: 1 <= x <= 3, "from 1 to 3"),
            (("warm_up",), lambda x: 0 <= x < 1, "at least 0 and below 1"),
            (("joint_gamma",), lambda x: 0 < x < 1, "between 0 and 1"),
            (("step_factor", "max_bad_share", "colour_jitter", "grey", "joint_alpha", "joint_lambda"), lambda x: 0 <= x <= 1, "in [0, 1]"),
            (("displacement_window",), lambda x: 1 <= x <= 16, "from 1 to 16"),
            (("displacement_temperature",), lambda x: 0.001 <= x <= 10, "from 0.001 to 10"),
            (("displacement_size",), lambda x: x in {112, 224}, "112 or 224"),
            (("scales",), lambda x: len(x) > 0 and all(0 < scale <= 1 for scale in x), "numbers in (0, 1]"),
        )
        problems = [
            f"{name} is {getattr(self, name)!r}; it must be {allowed}"
            for names, good, allowed in rules
            for name in names
            if not good(getattr(self, name))
        ]
        problems += [
            f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(get_args(words))}"
            for name, words in (
                ("pa_encoding", PAEncoding),
                ("stm_placement", STMPlacement),
                ("stm_fusion", STMFusion),
                ("appearance_pooling", AppearancePooling),
                ("objective", ObjectiveName),
                ("joint", JointRule),
            )
            if getattr(self, name) not in get_args(words)
        ]
        if self.threads is not None and self.threads < 1:
            problems.append(f"threads is {self.threads}; it must be at least 1")
        if self.joint == "constant" and self.joint_alpha == 1:
            problems.append(
                "joint_alpha is 1 with joint constant: recognition would not learn; it must be below 1 (or take joint decoupled)"
            )
        if self.batch_size % self.accumulate:
            problems.append(f"accumulate is {self.accumulate}; it must divide batch_size, {self.batch_size}")
        if problems:
            raise FlowlessError(f"recipe {self.name}: " + "; ".join(problems) + ".")

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
        )

    @property
    def draws(self) -> int:
        """How often training augments each clip in one step."""
        return 2 if self.objective == "twins" else 1

    @property
    def model_options(self) -> ModelOptions:
        """What `build_model` is asked beside the model's name and size."""
        return {
            "blocks": self.blocks,
            "pa_encoding": self.pa_encoding,
            "pa_depth": self.pa_depth,
            "stm_placement": self.stm_placement,
            "stm_fusion": self.stm_fusion,
            "stm_fixed": self.stm_fixed,
            "da_subspace": self.da_subspace,
            "displacement_window": self.displacement_window,
            "displacement_temperature": self.displacement_temperature,
            "displacement_size": self.displacement_size,
            "appearance_pooling": self.appearance_pooling,
        }

    @property
    def peak_rate(self) -> float:
        """The learning rate at its highest, scaled to the batch."""
        return self.lr * self.batch_size / self.lr_batch

    def rate_at(self, epoch: float) -> float:
        """Return the learning rate after `epoch` epochs, a fraction counted (before the factors by layer)."""
        if self.schedule == "steps":
            return self.peak_rate * self.step_factor ** sum(epoch >= step for step in self.steps)
        done = min(1.0, epoch / self.epochs)
        if done < self.warm_up and self.schedule == "cosine":
            return self.peak_rate * (1 + 24 * done / self.warm_up) / 25
        if done < self.warm_up:
            return _cosine(self.peak_rate / 25, self.peak_rate, done / self.warm_up)
        return _cosine(self.peak_rate, self.peak_rate / 25e4, (done - self.warm_up) / (1 - self.warm_up))

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for a checkpoint or a JSON file."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, document: dict[str, Any]) -> Recipe:
        """Read what `to_dict` wrote; raise FlowlessError on an unknown field."""
        unknown = sorted(set(document) - {item.name for item in fields(cls)})
        if unknown:
            raise FlowlessError(f"recipe: unknown fields {', '.join(unknown)}. It was written by another version of flowless.")
        values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in document.items()}
        if values.get("joint") == "separate":  # its name before
            values["joint"] = "decoupled"
        return cls(**values)


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


#: From scratch, on small frames: what Moving Shapes needs to be learnt in minutes on two cores.
_SMALL: dict[str, Any] = {
    "width": 0.25,
    "pretrained": False,
    "size": 48,
    "short_side": 48,
    "schedule": "one-cycle",
    "optimiser": "adamw",
    "weight_decay": 0.05,
    "lr": 0.004,
    "lr_batch": 20,
    "batch_size": 20,
    "scales": (1.0,),
    "layer_rates": False,
}

#: Data set -> what it changes (paper, section V-A; spec of the official code).
_DATA: dict[str, dict[str, Any]] = {
    "something-v1": {},
    "something-v2": {},
    "jester": {},
    "kinetics400": {"flip": True, "sampling": "two-clip"},
    "ucf101": {"flip": True, "sampling": "two-clip", "epochs": 40, "steps": (15, 30)},
    "hmdb51": {"flip": True, "sampling": "two-clip", "epochs": 40, "steps": (15, 30)},
    "custom": {"epochs": 40, "steps": (15, 30), "batch_size": 16},
    "moving-shapes": {**_SMALL, "epochs": 5, "dropout": 0.2},
    "tiny": {**_SMALL, "epochs": 160, "batch_size": 14, "dropout": 0.0, "short_side": 56, "validate_every": 20},
}
#: What sees one frame a segment trains as the official RGB branch does: 50 epochs, steps at 20 and 40. (In PAN-Full and
#: PAN-En that branch learns with the others, by their longer schedule; train it apart and `flowless fuse` for the paper's.)
_RGB: dict[str, Any] = {"epochs": 50, "steps": (20, 40)}
#: On UCF101 and HMDB51 everything takes half of its epochs, steps included.
_RGB_SMALL: dict[str, Any] = {"epochs": 25, "steps": (10, 20)}
_ONE_FRAME = ("tsm", "tsn", "stm", "pan-rgb")
#: STM (section 4.2): batches of 64 clips of 8 frames (8 GPUs x 8), one rate for all layers. (Of 16 frames the paper takes 32
#: clips at the same rate: batch_size and lr_batch 32.) On UCF101 and HMDB51 it goes on from Kinetics.
_STM: dict[str, Any] = {"weight_decay": 5e-4, "layer_rates": False}
_STM_PUBLIC: dict[str, Any] = {"epochs": 70, "steps": (30, 40, 60)}
_STM_SMALL: dict[str, Any] = {"epochs": 50, "steps": (15, 30, 45), "lr": 0.001}
_SMALL_SETS = ("ucf101", "hmdb51")
_PUBLIC = ("something-v1", "something-v2", "jester", "kinetics400")
#: Disentangling (its section 4.1): three segments, as TSN takes them, of eight frames. No rates by layer are told. What is told in
#: iterations of 256 clips is in epochs here: of 240,436 videos (Kinetics, 110,000, steps of 40,000) and of 9,537 (UCF101's first
#: split, 18,000, steps at 10,000 and 16,000). Weight decay and the share of dropout are TSN's, whose practices it follows.
#: On UCF101 the paper trains appearance apart, at 0.001 for 4,500 iterations with steps of 1,500; one recipe has one schedule,
#: which is that of the two other branches.
_DISENTANGLING: dict[str, Any] = {"segments": 3, "frames_per_segment": 8}
_CAFFE: dict[str, Any] = {"batch_size": 256, "lr_batch": 256, "layer_rates": False, "weight_decay": 5e-4, "dropout": 0.7}
_DISENTANGLING_DATA: dict[str, dict[str, Any]] = {
    "kinetics400": {**_CAFFE, "lr": 0.01, "epochs": 117, "steps": (43, 85)},
    "ucf101": {**_CAFFE, "lr": 0.005, "epochs": 483, "steps": (268, 430), "partial_bn": True},
}
#: Twins Training's augmentation (STM, section 4.2): corner crops, scales, flips, jittered colours and grey; no number is given. Crops and
#: scales are every recipe's; it is flipped where the data set's recipe is, since elsewhere left and right are actions. The shares are those
#: of Barlow Twins, whose loss it takes. Where a recipe crops nothing (Moving Shapes), a crop still has to show the whole action.
_TWINS: dict[str, Any] = {"colour_jitter": 0.4, "grey": 0.2}
_TWINS_SCALES = (1.0, 0.875)


def _recipe(model: str, data: str) -> Recipe:
    changes = dict(_DATA[data])
    family = model.rpartition("-")[0]
    if family in _ONE_FRAME:
        changes |= {"frames_per_segment": 1} | (_RGB if data in _PUBLIC else _RGB_SMALL if data in _SMALL_SETS else {})
    if family == "stm" and data in (*_PUBLIC, *_SMALL_SETS, "custom"):
        changes |= _STM | (_STM_PUBLIC if data in _PUBLIC else _STM_SMALL if data in _SMALL_SETS else {})
    if family == "pan-en":
        changes["sampling"] = "two-clip"
    if family.startswith("da-"):
        changes |= appearance_changes(model, data)
    if family == "disentangling":
        changes |= _DISENTANGLING | _DISENTANGLING_DATA.get(data, {})
    return Recipe(name=f"{model}/{data}", model=model, **changes)


FAMILY_NAMES = ("pan-lite", "pan-full", "pan-en", "pan-rgb", "pan-pa", "tsm", "tsn", "stm", "da-tsm", "da-x3d", "da-vit", "disentangling")
DEPTH_NAMES = ("r50", "r18", "r34", "r101")
#: Models and data sets that recipes are named after.
MODEL_NAMES = tuple(f"{family}-{backbone}" for family in FAMILY_NAMES for backbone in BACKBONES.get(family, DEPTH_NAMES))
DATA_NAMES = tuple(_DATA)
RECIPES: dict[str, Recipe] = {f"{model}/{data}": _recipe(model, data) for model in MODEL_NAMES for data in DATA_NAMES}


def find_recipe(name: str, **changes: Any) -> Recipe:
    """Return a recipe by name, with fields changed; raise FlowlessError, listing what there is, on an unknown name.

    The objective `twins` brings the paper's augmentation, where its fields are not among the changes.
    """
    if name not in RECIPES:
        raise FlowlessError(
            f"no recipe {name!r}. A recipe is MODEL/DATA, such as pan-lite-r50/something-v1; models: {', '.join(MODEL_NAMES)}; "
            f"data: {', '.join(DATA_NAMES)}. For data of your own, take /custom (fine-tuning) or /tiny (a handful of videos)."
        )
    found = RECIPES[name]
    if changes.get("objective") == "twins":
        changes = _TWINS | ({"scales": _TWINS_SCALES} if found.scales == (1.0,) else {}) | changes
    return replace(found, **changes)
