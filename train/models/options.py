"""The options of each family of models, and the names of all models. No heavy library is imported here.

Recipes, the command line, `build_model` and checkpoints read these classes. An option is a field with its type, its default, its `--help`
text and, for numbers, the allowed range that `number` declares.
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
#: Which residual blocks are STM blocks (STM, Table 9): all, the first block of every stage, or the first block of one stage.
STMPlacement = Literal["all", "one-per-stage", "stage2", "stage3", "stage4", "stage5"]
#: How an STM block joins its two modules (STM, Table 7).
STMFusion = Literal["sum", "concat"]
#: Modules of an STM block (STM, Table 6).
STMModules = Literal["both", "cstm", "cmm"]
#: Whether a convolution mixes channels (STM, Table 10).
ConvolutionType = Literal["channel-wise", "ordinary"]
#: Side of a displacement map for a frame of 224 x 224 pixels (Disentangling, Table 3).
DisplacementSize = Literal[112, 224]
#: Where the appearance branch pools over frames (Disentangling, Table 1): after pool2, 3c and 4e, or after the whole network.
AppearancePooling = Literal["gradual", "late"]
#: Input of the changes branch for two frames (Disentangling, Table 4).
ChangesInput = Literal["warped-features", "features", "rgb", "warped-rgb"]
#: Branches that are built (Disentangling, Tables 1, 2, 5 and 6), joined by a plus, in the order of their scores.
Branches = Literal["all", "appearance", "motion", "changes", "appearance+motion", "appearance+changes", "motion+changes"]
#: Input of the network for a segment's frames (Dynamic Appearance, Table 6).
SegmentInput = Literal["dynamic-appearance", "rgb-difference", "dynamic-image", "rgb"]
#: How PWTP's two losses are joined (Dynamic Appearance, section 3.5).
Joint = Literal["decoupled", "constant", "schedule", "mgda"]


def number(default: Any, *, least: float, most: float) -> Any:
    """Declare a numeric option in the range from `least` to `most`."""
    return field(default=default, metadata={"range": (least, most)})


@dataclass(frozen=True, kw_only=True)
class FamilyOptions:
    """Base class of a family's options, and the class of the family without options: tsn."""

    #: Options about the training, not about the network: a checkpoint's model does not need them.
    TRAINING: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        """Refuse values that are not allowed: all problems in one error."""
        hints, problems = get_type_hints(type(self)), []
        for item in fields(self):
            value, hint = getattr(self, item.name), hints[item.name]
            if get_origin(hint) is Literal and value not in get_args(hint):
                problems.append(f"{item.name} is {value!r}; it must be one of {', '.join(map(str, get_args(hint)))}")
            elif hint is bool and not isinstance(value, bool):
                problems.append(f"{item.name} is {value!r}; it must be true or false")
            elif "range" in item.metadata:
                problems += _range_problem(item.name, value, whole=hint is int, limits=item.metadata["range"])
        problems += self.combination_problems()
        if problems:
            raise FlowlessError("; ".join(problems) + ".")

    def combination_problems(self) -> list[str]:
        """Return the problems of values that do not fit each other."""
        return []

    def without_effect(self, names: Iterable[str], why: str) -> list[str]:
        """Return a problem if options that have no effect here, because of `why`, are set to another value than their default."""
        given = [f"{name} is {getattr(self, name)}" for name in names if getattr(self, name) != getattr(type(self), name)]
        return [f"{', '.join(given)}, but {why}: leave {'it' if len(given) == 1 else 'them'} out"] if given else []

    @property
    def model_options(self) -> dict[str, Any]:
        """The options that define the network, which a checkpoint stores."""
        return {item.name: getattr(self, item.name) for item in fields(self) if item.name not in self.TRAINING}


def _range_problem(name: str, value: Any, *, whole: bool, limits: tuple[float, float]) -> list[str]:
    least, most = limits
    kind = int if whole else (int, float)
    if isinstance(value, kind) and not isinstance(value, bool) and least <= value <= most:
        return []
    return [f"{name} is {value!r}; it must be {'a whole number ' if whole else ''}from {least:g} to {most:g}"]


@dataclass(frozen=True, kw_only=True)
class ShiftOptions(FamilyOptions):
    """The options of a temporal shift that may have one direction: tsm."""

    causal: bool = False
    """Shift in one direction only: a segment gets an eighth of its channels from the segment before it and none from the one after it, so
    that a stream can be recognised frame by frame, each at the cost of one segment (`flowless export --streaming`). RGB is then the last
    frame of each segment instead of the first. An offline checkpoint can be fine-tuned so (`--from`), but not used so as it is."""


@dataclass(frozen=True, kw_only=True)
class AggregationOptions(FamilyOptions):
    """The options of PAN's head, which aggregates the segments."""

    aggregation: Aggregation = "vap"
    """How the head aggregates the segments (PAN, Table IV). vap: max-pool at several timescales and learn their weights from the input;
    vip: one classifier per timescale, with equal weights; average: the mean of the segments' scores; 1, 2, 4 or 8: max-pool at this
    timescale only (it must be below segments)."""
    vap_expansion: int = number(4, least=1, most=16)
    """With aggregation vap: width of the network that predicts the timescales' weights, alpha (PAN, Table IV: 1, 2, 4, 8)."""

    def combination_problems(self) -> list[str]:
        """Refuse vap_expansion where the head is not vap."""
        if self.aggregation == "vap":
            return []
        return self.without_effect(["vap_expansion"], f"a head with aggregation {self.aggregation} learns no weights of timescales")


@dataclass(frozen=True, kw_only=True)
class PAOptions(AggregationOptions):
    """The options of models with PA maps: pan-pa."""

    pa_encoding: PAEncoding = "e1"
    """How the network sees the PA maps: e1, as channels; e2, as attention on the mean feature map (PAN, Eq. 7)."""
    pa_depth: int = number(1, least=0, most=8)
    """Number of 7x7 convolutions whose output's change between frames PA measures; the paper's choice is 1, and 0 compares pixels."""
    eps_inside: bool = False
    """Add eps where the official code does, to each feature's change instead of under the root; imported checkpoints need it."""

    def combination_problems(self) -> list[str]:
        """Refuse eps_inside at depths that the official code does not have."""
        problems = super().combination_problems()
        if self.eps_inside and self.pa_depth != 1:
            problems.append(f"eps_inside is the official code's rule, whose PA has depth 1; pa_depth is {self.pa_depth}")
        return problems


@dataclass(frozen=True, kw_only=True)
class ShiftedRGBOptions(AggregationOptions, ShiftOptions):
    """The options of pan-rgb."""


@dataclass(frozen=True, kw_only=True)
class ShiftedPAOptions(PAOptions, ShiftOptions):
    """The options of pan-lite."""


@dataclass(frozen=True, kw_only=True)
class FusionOptions(PAOptions):
    """The options of a model of two branches: pan-full."""

    #: Names of the branches, in the order of their weights.
    BRANCHES: ClassVar[tuple[str, ...]] = ("rgb", "pa")

    fusion_weights: tuple[float, ...] = ()
    """Weight of each branch's scores, in the order rgb, pa (pan-full) or lite, rgb, pa (pan-en); they are divided by their sum (PAN,
    section IV-A; the official code's --coeff divides by the number of branches). Default: equal weights, as in the paper."""

    def __post_init__(self) -> None:
        """Convert the list of a JSON file back to a tuple."""
        if isinstance(self.fusion_weights, list):
            object.__setattr__(self, "fusion_weights", tuple(self.fusion_weights))
        super().__post_init__()

    def combination_problems(self) -> list[str]:
        """Refuse weights that are not one for each branch, or all 0."""
        problems, weights = super().combination_problems(), self.fusion_weights
        if not isinstance(weights, tuple) or any(_range_problem("", weight, whole=False, limits=(0, 1000)) for weight in weights):
            problems.append(f"fusion_weights is {weights!r}; they must be numbers from 0 to 1000")
        elif weights and (len(weights) != len(self.BRANCHES) or not sum(weights)):
            problems.append(
                f"fusion_weights is {weights!r}; there must be one for each of {', '.join(self.BRANCHES)}, at least one above 0, or none"
            )
        return problems


@dataclass(frozen=True, kw_only=True)
class EnsembleOptions(FusionOptions):
    """The options of a model of three branches: pan-en."""

    BRANCHES: ClassVar[tuple[str, ...]] = ("lite", "rgb", "pa")


@dataclass(frozen=True, kw_only=True)
class STMOptions(FamilyOptions):
    """The options of stm."""

    stm_placement: STMPlacement = "all"
    """Which residual blocks are STM blocks (STM, Table 9): all, the first of every stage, or the first of one stage."""
    stm_fusion: STMFusion = "sum"
    """How an STM block joins spatiotemporal and motion features (STM, Table 7): sum, or concat, followed by a 1x1 convolution."""
    stm_fixed: bool = False
    """Use the frequency-degenerated variant, whose temporal and motion kernels are constants (STM, Table 8)."""
    stm_modules: STMModules = "both"
    """Modules of an STM block (STM, Table 6): both CSTM (spatiotemporal) and CMM (motion), or one of them; with cmm the residual block's
    3x3 convolution stays in the place of CSTM."""
    stm_temporal: ConvolutionType = "channel-wise"
    """Type of CSTM's convolution over the segments (STM, Table 10)."""
    stm_spatial: ConvolutionType = "ordinary"
    """Type of CSTM's 3x3 convolution (STM, Table 10)."""
    stm_motion: ConvolutionType = "channel-wise"
    """Type of CMM's 3x3 convolution (STM, Table 10)."""

    def combination_problems(self) -> list[str]:
        """Refuse options of a module that is not built, or whose kernels are fixed."""
        problems = []
        if self.stm_fixed and "ordinary" in (self.stm_temporal, self.stm_motion):
            problems.append("stm_fixed has fixed channel-wise kernels; stm_temporal and stm_motion must be channel-wise")
        if self.stm_modules == "cmm":
            problems += self.without_effect(["stm_temporal", "stm_spatial"], "with stm_modules cmm there is no CSTM")
        if self.stm_modules == "cstm":
            problems += self.without_effect(["stm_motion"], "with stm_modules cstm there is no CMM")
        if self.stm_modules != "both":
            problems += self.without_effect(["stm_fusion"], f"with stm_modules {self.stm_modules} there are no two modules to join")
        return problems


@dataclass(frozen=True, kw_only=True)
class AppearanceOptions(FamilyOptions):
    """The options of models with dynamic appearance: da-tsm, da-x3d, da-vit."""

    TRAINING: ClassVar[frozenset[str]] = frozenset({"joint", "joint_alpha", "joint_gamma", "joint_lambda", "projection_rate"})

    da_input: SegmentInput = "dynamic-appearance"
    """Input of the network for each segment's frames (Dynamic Appearance, Table 6). dynamic-appearance: the frames with their static part
    projected out (PWTP); rgb-difference: the differences of neighbouring frames side by side; dynamic-image: one image by approximate rank
    pooling; rgb: the first frame. The last three have no projection: da_subspace, da_mlp and da_channels must keep their defaults, and
    da_kernel, da_stride, joint_* and projection_rate have no effect."""
    da_subspace: int = number(1, least=1, most=3)
    """Dimensions of the static subspace that is projected out, at most half of the frames (Dynamic Appearance, Table 4b)."""
    da_mlp: int = number(7, least=1, most=7)
    """Configuration of the network that predicts the subspace (Dynamic Appearance, Table 8); the paper's choice is 7."""
    da_kernel: int = number(9, least=1, most=31)
    """Side of the convolution that describes each position of a frame, odd (Dynamic Appearance, Table 4a: 7, 9, 11)."""
    da_stride: int = number(8, least=1, most=32)
    """Stride of that convolution (Table 4a: 1, 4, 8); a smaller one gives a finer grid of subspaces, and is slower."""
    da_channels: int = number(24, least=1, most=256)
    """Number of filters of that convolution (Table 4a: 12, 24)."""
    joint: Joint = "mgda"
    """How PWTP learns from its own loss L1 and the recognition loss L2. constant: joint_alpha L1 + (1 - joint_alpha) L2; schedule: the
    same with a falling share of L1 (joint_gamma, joint_lambda); mgda: the mixture that reduces both, computed at every step, while all
    other layers learn by L2 alone; decoupled: PWTP learns by L1 alone, all other layers by L2 alone."""
    joint_alpha: float = number(0.5, least=0, most=1)
    """With joint constant: share of L1, below 1."""
    joint_gamma: float = number(0.2, least=0.001, most=0.999)
    """With joint schedule: fraction of the training after which the share of L1 has fallen from 1 to joint_lambda."""
    joint_lambda: float = number(0.1, least=0, most=1)
    """With joint schedule: the share of L1 at that time; it falls to 0 by the end of the training."""
    projection_rate: float = number(1.0, least=0, most=1000)
    """Factor on PWTP's learning rate."""

    def combination_problems(self) -> list[str]:
        """Refuse an even kernel, options of a projection that is not built, and a share of L1 that leaves nothing for recognition."""
        problems = []
        if self.joint == "constant" and self.joint_alpha == 1:
            problems.append(
                "joint_alpha is 1 with joint constant, so recognition would not learn; it must be below 1 (or take joint decoupled)"
            )
        if isinstance(self.da_kernel, int) and self.da_kernel % 2 == 0:
            problems.append(f"da_kernel is {self.da_kernel}; it must be odd, such as 7, 9 or 11")
        if self.da_input != "dynamic-appearance":
            checked = ("da_subspace", "da_mlp", "da_channels")  # not da_kernel and da_stride, which recipes for small frames set
            problems += self.without_effect(checked, f"da_input {self.da_input} has no projection")
        if self.joint != "constant":
            problems += self.without_effect(["joint_alpha"], f"joint is {self.joint}, not constant")
        if self.joint != "schedule":
            problems += self.without_effect(["joint_gamma", "joint_lambda"], f"joint is {self.joint}, not schedule")
        return problems


@dataclass(frozen=True, kw_only=True)
class DisentanglingOptions(FamilyOptions):
    """The options of disentangling."""

    branches: Branches = "all"
    """Branches that are built and whose scores are averaged (Disentangling, Tables 1, 2, 5 and 6)."""
    changes_input: ChangesInput = "warped-features"
    """Input of the changes branch for two neighbouring frames (Disentangling, Table 4), always a difference. warped-features: the second
    frame's features minus the first's, warped along the displacement map; features: the same without warping; rgb: the second frame minus
    the first; warped-rgb: the same with the first frame warped. Without that branch it must keep its default."""
    displacement_window: int = number(4, least=1, most=16)
    """Largest displacement, in cells of the feature map, in each direction. (All displacement_* options have no effect in a model without
    displacement: one with neither the motion branch nor a warped changes_input.)"""
    displacement_temperature: float = number(0.02, least=0.001, most=10)
    """Temperature of the softmax over the possible displacements; a smaller one comes nearer to the best match alone."""
    displacement_size: DisplacementSize = 112
    """Side of a displacement map for a frame of 224 x 224 pixels: 112 (conv1 has stride 2) or 224 (stride 1) (Disentangling, Table 3)."""
    appearance_pooling: AppearancePooling = "gradual"
    """Where the appearance branch pools over frames (Disentangling, Table 1). gradual: neighbouring frames at three places of the network;
    late: all frames after it. Without that branch it must keep its default."""

    def combination_problems(self) -> list[str]:
        """Refuse options of a branch that is not built."""
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


#: Family -> the class of its options, in the order in which families are listed.
OPTIONS: dict[str, type[FamilyOptions]] = {
    "pan-lite": ShiftedPAOptions,
    "pan-full": FusionOptions,
    "pan-en": EnsembleOptions,
    "pan-rgb": ShiftedRGBOptions,
    "pan-pa": PAOptions,
    "tsm": ShiftOptions,
    "tsn": FamilyOptions,
    "stm": STMOptions,
    "da-tsm": AppearanceOptions,
    "da-x3d": AppearanceOptions,
    "da-vit": AppearanceOptions,
    "disentangling": DisentanglingOptions,
}
#: ResNets, as models' names end.
DEPTHS = ("r50", "r18", "r34", "r101")
#: Families that are not built on ResNets of all depths -> the backbones of their paper.
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
    """Return the family in a model's name, such as pan-lite for pan-lite-r50; raise FlowlessError for an unknown name."""
    if model not in MODELS:
        raise FlowlessError(f"model is {model!r}; it must be one of {', '.join(MODELS)}.")
    return model.rpartition("-")[0]


def option_names(families: Iterable[type[FamilyOptions]] = tuple(OPTIONS.values())) -> set[str]:
    """Return the names of the options of the given families, by default of all."""
    return {item.name for family in families for item in fields(family)}


def options_for(model: str, values: Mapping[str, Any]) -> FamilyOptions:
    """Return a model's options.

    Args:
        model: Such as pan-lite-r50.
        values: Option -> value; the others have their defaults.

    Raises:
        FlowlessError: The family has no such option, or a value is not allowed.
    """
    family = family_of(model)
    kind = OPTIONS[family]
    own = option_names([kind])
    unknown = sorted(set(values) - own)
    if unknown:
        has = f"it has {', '.join(sorted(own))}" if own else "it has none"
        raise FlowlessError(f"{model}: has no option {', '.join(unknown)}; {has}.{''.join(map(_owners, unknown))}")
    try:
        return kind(**values)
    except FlowlessError as error:
        raise FlowlessError(f"{model}: {error}") from None


def _owners(option: str) -> str:
    """Return a sentence that names the families with an option; empty if there are none."""
    families = [family for family, kind in OPTIONS.items() if option in option_names([kind])]
    return f" Families with {option}: {', '.join(families)}." if families else ""


def split_options(model: str, document: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split the entries of a checkpoint's config, or of a recipe, into the options of the model's family and the rest.

    Files of flowless before 0.2 hold the options of every family; those of other families had no effect and are left out.

    Returns:
        Options for `options_for`, and the entries that are not an option of any family.
    """
    own = option_names([OPTIONS[family_of(model)]])
    renamed = {name: "decoupled" if (name, value) == ("joint", "separate") else value for name, value in document.items()}
    return (
        {name: value for name, value in renamed.items() if name in own},
        {name: value for name, value in document.items() if name not in option_names()},
    )
