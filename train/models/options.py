"""What each family of models can be asked, beside what every model is. No heavy library is imported here.

Recipes, the command line, `build_model` and checkpoints take options from here. An option is a field with its type, its default, its
text for `--help` and, for numbers, the range that `number` checks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal, get_args, get_origin, get_type_hints

from flowless.errors import FlowlessError

PAEncoding = Literal["e1", "e2"]
#: How a head joins the segments (PAN, Table IV): VAP; VIP, the same timescales with preset weights; the average of the segments' scores;
#: or one timescale alone, named by its number.
Aggregation = Literal["vap", "vip", "average", "1", "2", "4", "8"]
#: Where STM blocks stand (STM, Table 9): all blocks, the first block of every stage, or the first block of one stage.
STMPlacement = Literal["all", "one-per-stage", "stage2", "stage3", "stage4", "stage5"]
#: How an STM block joins its two modules (STM, Table 7).
STMFusion = Literal["sum", "concat"]
#: Modules of an STM block (STM, Table 6).
STMModules = Literal["both", "cstm", "cmm"]
#: Whether a convolution mixes channels (STM, Table 10).
ConvolutionType = Literal["channel-wise", "ordinary"]
#: Side of a displacement map of a frame of 224 x 224 pixels (Disentangling, Table 3).
DisplacementSize = Literal[112, 224]
#: Where the appearance branch joins frames (Disentangling, Table 1): behind pool2, 3c and 4e, or behind the whole network.
AppearancePooling = Literal["gradual", "late"]
#: What the changes branch sees of two frames (Disentangling, Table 4).
ChangesInput = Literal["warped-features", "features", "rgb", "warped-rgb"]
#: Branches that are built (Disentangling, Tables 1, 2, 5 and 6), joined by a plus, in the order of their scores.
Branches = Literal["all", "appearance", "motion", "changes", "appearance+motion", "appearance+changes", "motion+changes"]
#: What a network sees of a segment's frames (Dynamic Appearance, Table 6).
SegmentInput = Literal["dynamic-appearance", "rgb-difference", "dynamic-image", "rgb"]
#: What moves PWTP (Dynamic Appearance, section 3.5).
Joint = Literal["decoupled", "constant", "schedule", "mgda"]


def number(default: Any, *, least: float, most: float) -> Any:
    """Declare an option that is a number from `least` to `most`."""
    return field(default=default, metadata={"range": (least, most)})


@dataclass(frozen=True, kw_only=True)
class FamilyOptions:
    """The options of a family that has none of its own: tsn, tsm."""

    #: Options that decide how a model is trained and not what it is: a checkpoint's model has no need of them.
    TRAINING: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        """Refuse values that no model has: all problems in one error."""
        hints, problems = get_type_hints(type(self)), []
        for item in fields(self):
            value, hint = getattr(self, item.name), hints[item.name]
            if get_origin(hint) is Literal and value not in get_args(hint):
                problems.append(f"{item.name} is {value!r}; it must be one of {', '.join(map(str, get_args(hint)))}")
            elif hint is bool and not isinstance(value, bool):
                problems.append(f"{item.name} is {value!r}; it must be true or false")
            elif "range" in item.metadata:
                problems += _range_problem(item.name, value, whole=hint is int, limits=item.metadata["range"])
        problems += self.more_problems()
        if problems:
            raise FlowlessError("; ".join(problems) + ".")

    def more_problems(self) -> list[str]:
        """Return what is wrong with values together."""
        return []

    def without_effect(self, names: Iterable[str], why: str) -> list[str]:
        """Return a problem where options that have no effect beside the others have another value than their default."""
        asked = [f"{name} is {getattr(self, name)}" for name in names if getattr(self, name) != getattr(type(self), name)]
        return [f"{', '.join(asked)}, but {why}: leave {'it' if len(asked) == 1 else 'them'} out"] if asked else []

    @property
    def of_the_model(self) -> dict[str, Any]:
        """The options that decide what the network is: what a checkpoint keeps."""
        return {item.name: getattr(self, item.name) for item in fields(self) if item.name not in self.TRAINING}


def _range_problem(name: str, value: Any, *, whole: bool, limits: tuple[float, float]) -> list[str]:
    least, most = limits
    kind = int if whole else (int, float)
    if isinstance(value, kind) and not isinstance(value, bool) and least <= value <= most:
        return []
    return [f"{name} is {value!r}; it must be {'a whole number ' if whole else ''}from {least:g} to {most:g}"]


@dataclass(frozen=True, kw_only=True)
class AggregationOptions(FamilyOptions):
    """How PAN's head joins the segments: pan-rgb."""

    aggregation: Aggregation = "vap"
    """How the head joins the segments (PAN, Table IV): vap learns a weight for each timescale; vip classifies every timescale by itself
    and gives all the same weight; average takes the mean of the segments' scores; 1, 2, 4 or 8 pools at that timescale alone (below
    segments)."""
    vap_expansion: int = number(4, least=1, most=16)
    """With aggregation vap: width of the network that weighs the timescales, alpha (PAN, Table IV: 1, 2, 4, 8)."""

    def more_problems(self) -> list[str]:
        """Refuse a width of what a head does not have."""
        if self.aggregation == "vap":
            return []
        return self.without_effect(["vap_expansion"], f"a head with aggregation {self.aggregation} weighs no timescales")


@dataclass(frozen=True, kw_only=True)
class PAOptions(AggregationOptions):
    """Models with motion maps: pan-lite, pan-pa."""

    pa_encoding: PAEncoding = "e1"
    """The motion maps as channels (e1), or as attention on the mean feature map (e2)."""
    pa_depth: int = number(1, least=0, most=8)
    """Layers of 7x7 convolutions whose change is measured; the paper's choice is 1, and 0 takes differences of pixels."""
    eps_inside: bool = False
    """The official code's place of eps in PA; its checkpoints need it."""

    def more_problems(self) -> list[str]:
        """Refuse the official code's rule where it has none."""
        problems = super().more_problems()
        if self.eps_inside and self.pa_depth != 1:
            problems.append(f"eps_inside is the official code's rule, whose PA has depth 1; pa_depth is {self.pa_depth}")
        return problems


@dataclass(frozen=True, kw_only=True)
class FusionOptions(PAOptions):
    """Two branches: pan-full."""

    #: Names of the branches, in the order of their weights.
    BRANCHES: ClassVar[tuple[str, ...]] = ("rgb", "pa")

    fusion_weights: tuple[float, ...] = ()
    """How much each branch's scores count, in the order rgb, pa (pan-full) or lite, rgb, pa (pan-en); they are divided by their sum
    (PAN, section IV-A; official code: --coeff, divided by the number of branches). None are equal weights, as in the paper."""

    def __post_init__(self) -> None:
        """Read what a JSON file holds, a list, as what it was."""
        if isinstance(self.fusion_weights, list):
            object.__setattr__(self, "fusion_weights", tuple(self.fusion_weights))
        super().__post_init__()

    def more_problems(self) -> list[str]:
        """Refuse weights that are not one for each branch, or of which nothing is left."""
        problems, weights = super().more_problems(), self.fusion_weights
        if not isinstance(weights, tuple) or any(_range_problem("", weight, whole=False, limits=(0, 1000)) for weight in weights):
            problems.append(f"fusion_weights is {weights!r}; they must be numbers from 0 to 1000")
        elif weights and (len(weights) != len(self.BRANCHES) or not sum(weights)):
            problems.append(
                f"fusion_weights is {weights!r}; there must be one for each of {', '.join(self.BRANCHES)}, at least one above 0, or none"
            )
        return problems


@dataclass(frozen=True, kw_only=True)
class EnsembleOptions(FusionOptions):
    """Three branches: pan-en."""

    BRANCHES: ClassVar[tuple[str, ...]] = ("lite", "rgb", "pa")


@dataclass(frozen=True, kw_only=True)
class STMOptions(FamilyOptions):
    """stm."""

    stm_placement: STMPlacement = "all"
    """Which residual blocks are STM blocks (STM, Table 9): all, the first of every stage, or the first of one stage."""
    stm_fusion: STMFusion = "sum"
    """Add spatiotemporal and motion features up (sum), or concatenate them and convolve (concat) (STM, Table 7)."""
    stm_fixed: bool = False
    """The frequency-degenerated variant, whose temporal and motion kernels are fixed and do not learn (STM, Table 8)."""
    stm_modules: STMModules = "both"
    """What an STM block has (STM, Table 6): CSTM and CMM, one of them alone; cmm alone keeps the residual block's own 3x3 convolution."""
    stm_temporal: ConvolutionType = "channel-wise"
    """CSTM's convolution over the segments (STM, Table 10)."""
    stm_spatial: ConvolutionType = "ordinary"
    """CSTM's 3x3 convolution (STM, Table 10)."""
    stm_motion: ConvolutionType = "channel-wise"
    """CMM's 3x3 convolution (STM, Table 10)."""

    def more_problems(self) -> list[str]:
        """Refuse what asks for something of a module that is not there, or whose kernels are fixed."""
        problems = []
        if self.stm_fixed and "ordinary" in (self.stm_temporal, self.stm_motion):
            problems.append("stm_fixed has fixed channel-wise kernels; stm_temporal and stm_motion must be channel-wise")
        if self.stm_modules == "cmm":
            problems += self.without_effect(["stm_temporal", "stm_spatial"], "with stm_modules cmm there is no CSTM")
        if self.stm_modules == "cstm":
            problems += self.without_effect(["stm_motion"], "with stm_modules cstm there is no CMM")
        if self.stm_modules != "both":
            problems += self.without_effect(["stm_fusion"], f"stm_modules is {self.stm_modules}, one module, which is joined with nothing")
        return problems


@dataclass(frozen=True, kw_only=True)
class AppearanceOptions(FamilyOptions):
    """Models with dynamic appearance: da-tsm, da-x3d, da-vit."""

    TRAINING: ClassVar[frozenset[str]] = frozenset({"joint", "joint_alpha", "joint_gamma", "joint_lambda", "projection_rate"})

    da_input: SegmentInput = "dynamic-appearance"
    """What the network sees of each segment's frames (Dynamic Appearance, Table 6): dynamic appearance; rgb-difference, the differences
    of neighbouring frames side by side; dynamic-image, one picture by approximate rank pooling; rgb, the first frame. The last three
    have no projection: da_subspace, da_mlp and da_channels must keep their defaults, and da_kernel, da_stride, joint_* and
    projection_rate have no effect."""
    da_subspace: int = number(1, least=1, most=3)
    """Dimensions of the static subspace that is taken out, at most half of the frames (Dynamic Appearance, Table 4b)."""
    da_mlp: int = number(7, least=1, most=7)
    """Configuration of the network that finds the subspace (Dynamic Appearance, Table 8); the paper's choice is 7."""
    da_kernel: int = number(9, least=1, most=31)
    """Side of the convolution that describes each place of a frame, odd (Dynamic Appearance, Table 4a: 7, 9, 11)."""
    da_stride: int = number(8, least=1, most=32)
    """Stride of that convolution (Table 4a: 1, 4, 8); the smaller, the finer is the grid of subspaces, and the slower."""
    da_channels: int = number(24, least=1, most=256)
    """Filters of that convolution (Table 4a: 12, 24)."""
    joint: Joint = "mgda"
    """How dynamic appearance's own loss and the recognition loss are joined. constant: joint_alpha of its own and the rest of
    recognition's; schedule: less and less of its own (joint_gamma, joint_lambda); mgda: as much as helps both, and all other layers
    learn by recognition in full; decoupled: its own loss moves it alone, recognition's everything else."""
    joint_alpha: float = number(0.5, least=0, most=1)
    """With joint constant: share of dynamic appearance's own loss, below 1."""
    joint_gamma: float = number(0.2, least=0.001, most=0.999)
    """With joint schedule: share of the training after which joint_lambda is reached."""
    joint_lambda: float = number(0.1, least=0, most=1)
    """With joint schedule: share of dynamic appearance's own loss that is left then; it falls to nothing by the end."""
    projection_rate: float = number(1.0, least=0, most=1000)
    """Factor on dynamic appearance's learning rate."""

    def more_problems(self) -> list[str]:
        """Refuse an even kernel, options of a projection that is not there, and a share that leaves recognition nothing."""
        problems = []
        if self.joint == "constant" and self.joint_alpha == 1:
            problems.append(
                "joint_alpha is 1 with joint constant: recognition would not learn; it must be below 1 (or take joint decoupled)"
            )
        if isinstance(self.da_kernel, int) and self.da_kernel % 2 == 0:
            problems.append(f"da_kernel is {self.da_kernel}; it must be odd, such as 7, 9 or 11")
        if self.da_input != "dynamic-appearance":
            own = ("da_subspace", "da_mlp", "da_channels")  # the others a recipe of small frames sets
            problems += self.without_effect(own, f"da_input {self.da_input} has no projection")
        if self.joint != "constant":
            problems += self.without_effect(["joint_alpha"], f"joint is {self.joint}, not constant")
        if self.joint != "schedule":
            problems += self.without_effect(["joint_gamma", "joint_lambda"], f"joint is {self.joint}, not schedule")
        return problems


@dataclass(frozen=True, kw_only=True)
class DisentanglingOptions(FamilyOptions):
    """disentangling."""

    branches: Branches = "all"
    """Branches that are built and whose scores are averaged (Disentangling, Tables 1, 2, 5 and 6)."""
    changes_input: ChangesInput = "warped-features"
    """What the changes branch sees of two neighbouring frames (Disentangling, Table 4): the difference of the second frame's features
    and the first's warped along the displacement map; of features as they are; of the frames themselves (rgb); or of the second frame
    and the first warped (warped-rgb). Without that branch it must keep its default."""
    displacement_window: int = number(4, least=1, most=16)
    """Cells that a feature may move each way between two frames. (The displacement_* options, which a recipe of small frames sets, have
    no effect where nothing measures displacement: neither motion nor a warped changes_input.)"""
    displacement_temperature: float = number(0.02, least=0.001, most=10)
    """The smaller, the nearer is a displacement to the best match alone."""
    displacement_size: DisplacementSize = 112
    """Side of a displacement map of a frame of 224 x 224 pixels: conv1's stride is 2 (112) or 1 (Disentangling, Table 3)."""
    appearance_pooling: AppearancePooling = "gradual"
    """Join neighbouring frames at three places of the appearance network (gradual), or all behind it (late) (Disentangling, Table 1).
    Without that branch it must keep its default."""

    def more_problems(self) -> list[str]:
        """Refuse options of what is not there."""
        problems = []
        if "changes" not in self.built:
            problems += self.without_effect(["changes_input"], f"branches {self.branches} have no changes")
        if "appearance" not in self.built:
            problems += self.without_effect(["appearance_pooling"], f"branches {self.branches} have no appearance")
        return problems

    @property
    def built(self) -> tuple[str, ...]:
        """The branches' names, in the order of their scores."""
        return ("appearance", "motion", "changes") if self.branches == "all" else tuple(str(self.branches).split("+"))


#: Family -> what it can be asked. The order is that of lists for people.
OPTIONS: dict[str, type[FamilyOptions]] = {
    "pan-lite": PAOptions,
    "pan-full": FusionOptions,
    "pan-en": EnsembleOptions,
    "pan-rgb": AggregationOptions,
    "pan-pa": PAOptions,
    "tsm": FamilyOptions,
    "tsn": FamilyOptions,
    "stm": STMOptions,
    "da-tsm": AppearanceOptions,
    "da-x3d": AppearanceOptions,
    "da-vit": AppearanceOptions,
    "disentangling": DisentanglingOptions,
}
#: ResNets, as the names of models say them.
DEPTHS = ("r50", "r18", "r34", "r101")
#: Families that do not take the ResNets of every depth -> the backbones of their paper.
BACKBONES: dict[str, tuple[str, ...]] = {
    "stm": ("r50", "r18", "r34"),
    "da-tsm": ("r50", "r18"),
    "da-x3d": ("xs", "m"),
    "da-vit": ("b",),
    "disentangling": ("bninception",),
}
#: Every model's name: a family and its backbone.
MODELS = tuple(f"{family}-{backbone}" for family in OPTIONS for backbone in BACKBONES.get(family, DEPTHS))


def family_of(model: str) -> str:
    """Return the family of a model's name, such as pan-lite of pan-lite-r50; raise FlowlessError for a name that is none."""
    if model not in MODELS:
        raise FlowlessError(f"model is {model!r}; it must be one of {', '.join(MODELS)}.")
    return model.rpartition("-")[0]


def option_names(families: Iterable[type[FamilyOptions]] = tuple(OPTIONS.values())) -> set[str]:
    """Return the names of the options of some families, by default of all."""
    return {item.name for family in families for item in fields(family)}


def options_for(model: str, values: Mapping[str, Any]) -> FamilyOptions:
    """Return a model's options.

    Args:
        model: Such as pan-lite-r50.
        values: Option -> value; the others keep their defaults.

    Raises:
        FlowlessError: The family has no such option, or not such a value.
    """
    family = family_of(model)
    kind = OPTIONS[family]
    own = option_names([kind])
    unknown = sorted(set(values) - own)
    if unknown:
        has = f"it has {', '.join(sorted(own))}" if own else "it has none"
        raise FlowlessError(f"{model}: has no option {', '.join(unknown)}; {has}.")
    try:
        return kind(**values)
    except FlowlessError as error:
        raise FlowlessError(f"{model}: {error}") from None


def kept_options(model: str, document: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split what a file says of a model into its own options and all else.

    Files of flowless before 0.2 name the options of every family; those of other families said nothing and are left out.

    Returns:
        Options that `options_for` takes, and the entries that are no family's option.
    """
    own = option_names([OPTIONS[family_of(model)]])
    renamed = {name: "decoupled" if (name, value) == ("joint", "separate") else value for name, value in document.items()}
    return (
        {name: value for name, value in renamed.items() if name in own},
        {name: value for name, value in document.items() if name not in option_names()},
    )
