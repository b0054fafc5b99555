"""`flowless bench real`: the systems trained alike from scratch on real clips, and tested on other people's."""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from flowless.bench.systems.systems_config import SYSTEMS
from flowless.console import emit, log
from flowless.errors import FlowlessError
from flowless.files import refuse_unwritable, write_json
from flowless.train.recipes import Recipe, find_recipe

if TYPE_CHECKING:
    from rich.table import Table

    from flowless.bench.lib.training_runs import Training
    from flowless.bench.systems.real_scores import Scored
    from flowless.pipeline.dataset.index import DatasetIndex

#: System -> its row in `flowless bench systems`; Disentangling, at ten times the cost, and Twins Training, at twice, are left out.
CONTESTANTS = {
    system.name: system for system in SYSTEMS if not system.of and system.objective == "scores" and system.name != "disentangling"
}
#: The one that is blind to order.
BLIND = "tsn"
#: What the best has to reach; what each motion system must have over TSN on opposite actions; what a motion system must lose when the
#: frames of the same clips are reversed or shuffled, and TSN cannot lose when they are reversed.
WANTED, OVER_BLIND, FALL, ROUNDING = 0.8, 0.15, 0.15, 0.005
#: Actions that differ in their direction alone, as UTD-MHAD names them.
OPPOSITES = (
    ("swipe_left", "swipe_right"),
    ("draw_circle_cw", "draw_circle_ccw"),
    ("sit_to_stand", "stand_to_sit"),
)
#: What no option changes. From scratch, a quarter of a ResNet-18's channels (the recipes for a handful of videos, `tiny`); no mirror
#: images, in which left is right. These and the options' defaults were tried on three people of UTD-MHAD's training set (324 videos), and
#: judged on the fourth (108 videos; one seed, so 4 points are chance), never on the test people. TSM, 22 to 24 epochs: batches of 20 clips
#: 71 %, of 10 clips 74 %; 56 x 56 pixels 71 % (it learns its people by heart); training crops of 0.875 alone, with dropout of 0.5,
#: 65 %; crops of 0.875, 0.75 and 0.66 around a test crop of 0.75, 30 epochs, 61 % (too much shift to be learnt); twice the rate and
#: the whole frame as test crop, 63 %. As below: STM 78 %; without the jitter of brightness (a person's distance), PAN-Lite 81 % in 16
#: epochs. DA-TSM in 16 epochs: with the paper's stride of 8 pixels, far too coarse a grid of subspaces for such frames, 51 % (60 % of the
#: training videos); with a stride of 2, the recipe's since then, 57 % (69 %); with that and six frames of 0.2 s instead of four, 65 %
#: (77 %); the frames themselves (da_input rgb), by the same code, 67 % (78 %): the pose, by which these actions differ, is what is
#: projected away. Its own loss falls from 12 to 0.03, and MGDA's alpha rises to 0.99, the shorter gradient having the say. With the
#: stride of 8: both gradients scaled to one length 50 %, the scheduled alpha 56 %, recognition alone (joint constant, joint_alpha 0),
#: which leaves the pose in, 59 % (73 %). The last two learn less on Moving Shapes: 72 and 47 % after 3 epochs, MGDA 88 %.
_SAME: dict[str, Any] = {"threads": 1, "flip": False, "dropout": 0.2, "label_smoothing": 0.1, "colour_jitter": 0.2}


@dataclass(frozen=True, kw_only=True)
class Real:
    """Train every system alike from scratch on real clips, with a small backbone, and test it once on clips that it has never seen.

    Make the two indexes of tables path,label (UTD-MHAD's depth clips: people 1, 3, 5, 7 against 2, 4, 6, 8), then train and test:
    flowless scan train.csv --format csv --out train.jsonl;
    flowless scan test.csv --format csv --labels train.jsonl --out test.jsonl;
    flowless bench real train.jsonl test.jsonl

    Every system gets the same videos, epochs, batches, optimiser and rate; nothing is chosen by the test videos, which are scored after
    the last epoch. The same test clips are also shown reversed and shuffled: all frames of a clip, over the borders of its segments. A
    model of motion must fall; one that averages over frames cannot tell. Each run is kept in the folder named like OUT: the same command
    again goes on where it was stopped, and trains nothing twice.

    Writes OUT (JSON), and a page and its plot beside it: top-1 over the seeds, mean class accuracy, and what opposite actions are
    taken for.
    """

    train: tyro.conf.Positional[Path]
    """Index of the training videos."""
    test: tyro.conf.Positional[Path]
    """Index of the test videos: the same actions, by other people."""
    out: Path = Path("runs/bench/real.json")
    """JSON to write; the page and the runs' folder are named like it."""
    systems: tuple[str, ...] = tuple(CONTESTANTS)
    """Systems to train."""
    seeds: int = 3
    """Trainings of each, from other first weights and in another order."""
    opposites: tuple[str, ...] | None = None
    """Pairs of labels that are each other's opposite, such as swipe_left/swipe_right; by default those of UTD-MHAD that the training
    videos have. Without a pair: --opposites with nothing behind it."""
    epochs: int = 24
    """Times that training sees every video."""
    batch_size: int = 10
    """Clips in one step."""
    lr: float = 0.002
    """Highest learning rate (AdamW, one cycle)."""
    segments: int = 8
    """Segments of a clip."""
    frames_per_segment: int = 4
    """Adjacent frames of a segment, for the systems that see stacks; the others see one."""
    size: int = 48
    """Side of the square that the network sees, in pixels."""
    short_side: int = 56
    """Short side of a test frame before the centre crop, in pixels."""
    scales: tuple[float, ...] = (1.0, 0.875)
    """Sizes of the training crop, relative to the frame's short side."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the training: auto takes mixed bf16 where the processor multiplies in it, else fp32."""
    so_far: bool = False
    """Train nothing: test and show what is trained already."""
    earlier: Path | None = None
    """Earlier result (JSON), made under the same settings: its rows are taken for systems that it has and --systems does not name."""
    jobs: int | None = None
    """Trainings side by side, each on one core; by default one a core."""
    json: bool = False
    """Print one JSON document instead of the table."""

    def __post_init__(self) -> None:
        """Refuse what cannot be run: all problems in one error."""
        problems = [f"{name!r} is no system; there are {', '.join(CONTESTANTS)}" for name in self.systems if name not in CONTESTANTS]
        if not self.systems:
            problems.append(f"no system is named; there are {', '.join(CONTESTANTS)}")
        counts = {name: getattr(self, name) for name in ("seeds", "jobs")}
        problems += [f"{name} is {count}; it must be at least 1" for name, count in counts.items() if count is not None and count < 1]
        if self.frames_per_segment < 2:
            problems.append(f"frames_per_segment is {self.frames_per_segment}; a stack has at least 2 frames")
        if self.out.suffix != ".json":
            problems.append(f"out is {self.out}; it must end in .json: its page, plot and runs are named like it")
        if problems:
            raise FlowlessError("bench real: " + "; ".join(problems) + ".")

    def recipe(self, system: str, *, seed: int, precision: str) -> Recipe:
        """Return what a system is trained by: nothing but its network and the frames that it sees differs from the others."""
        found = find_recipe(f"{CONTESTANTS[system].model}/tiny")
        alike: dict[str, Any] = {name: getattr(self, name) for name in _FIELDS}
        own = {"frames_per_segment": 1 if found.frames_per_segment == 1 else self.frames_per_segment, "lr_batch": self.batch_size}
        return replace(found, **_SAME, **alike, **own, seed=seed, precision=precision)


_FIELDS = ("epochs", "batch_size", "lr", "segments", "size", "short_side", "scales")


def main(words: Sequence[str]) -> None:
    """`flowless bench real`."""
    settings = tyro.cli(Real, prog="flowless bench real", description=Real.__doc__, args=words)
    refuse_unwritable(settings.out)
    document = measure(settings)
    write_json(settings.out, document)
    from flowless.bench.lib.goals import goals_table
    from flowless.bench.systems.real_page import write_page

    write_page(settings.out.with_suffix(".html"), document)
    log.print(f"figures: {settings.out}; page: {settings.out.with_suffix('.html')}", style="dim", markup=False)
    emit(document, table(document), goals_table(document["goals"]), as_json=settings.json)


def measure(settings: Real) -> dict[str, Any]:
    """Train, test once, count; return the document.

    Raises:
        FlowlessError: An index cannot be used, or a training failed.
    """
    from flowless.bench.lib.earlier_rows import earlier_rows, in_order
    from flowless.bench.lib.training_runs import train_all
    from flowless.bench.systems.real_scores import SHUFFLE_SEED, score_orders
    from flowless.machine import environment, quick_precision
    from flowless.pipeline.dataset.index import DatasetIndex

    train, test = DatasetIndex.load(settings.train), DatasetIndex.load(settings.test)
    _check(train, test, settings)
    pairs = opposite_pairs(settings.opposites, train.labels)
    precision = quick_precision() if settings.precision == "auto" else settings.precision
    trainings = planned(settings, precision=precision)
    conditions: dict[str, Any] = {
        "train": {"index": settings.train.name, "videos": len(train.videos)},
        "test": {"index": settings.test.name, "videos": len(test.videos)},
        "labels": len(train.labels),
        "opposites": [list(pair) for pair in pairs],
        "shuffle_seed": SHUFFLE_SEED,
        "recipe": _alike(next(iter(trainings.values())).recipe),
    }
    earlier = earlier_rows(settings.earlier, benchmark="real", settings=conditions, known=CONTESTANTS)
    if settings.so_far:
        trainings = {key: training for key, training in trainings.items() if training.kept()}
        if not trainings:
            raise FlowlessError(f"bench real: nothing is trained yet in {settings.out.with_suffix('')}. Leave --so-far out, and it is.")
    results = train_all(trainings, jobs=settings.jobs)
    log.print("testing, reversing and shuffling …", style="dim")
    scored, bad = score_orders([training.folder / "last.safetensors" for training in trainings.values()], test)
    runs = dict(zip(trainings, scored, strict=True))
    new = {name: {seed: run for (own, seed), run in runs.items() if own == name} for name, _ in runs}
    rows = in_order([*earlier, *(row(name, own, results, pairs=pairs) for name, own in new.items())], CONTESTANTS)
    return {
        "benchmark": "real",
        "environment": environment(),
        "settings": {**conditions, "test": {**conditions["test"], "unreadable": bad}},
        "measure": "top-1 on the test videos after the last epoch, centre clip, mean of the seeds; opposite_top1: of the actions that have "
        "an opposite; reversed, shuffled: all frames of the same clips in the opposite order, and in a random one",
        "systems": rows,
        "goals": goals(rows),
    }


def planned(settings: Real, *, precision: str) -> dict[tuple[str, int], Training]:
    """Return what is to be trained, (system, seed) -> training, in this order: every system's first seed comes before a second one.

    Runs of other training videos or by other recipes lie in other folders.
    """
    from flowless.bench.lib.training_runs import Training

    found = {}
    for seed in range(settings.seeds):
        for name in (system for system in CONTESTANTS if system in settings.systems):
            recipe = settings.recipe(name, seed=seed, precision=precision)
            folder = settings.out.with_suffix("") / _digest(settings, precision) / f"{name}-{seed}"
            found[name, seed] = Training(recipe=recipe, data=settings.train, folder=folder)
    return found


def _alike(recipe: Recipe) -> dict[str, Any]:
    """Return the fields that all systems' recipes share."""
    own = {"name", "model", "frames_per_segment", "average", "seed", *(field.name for field in fields(recipe.options))}
    return {name: value for name, value in recipe.to_dict().items() if name not in own}


def _digest(settings: Real, precision: str) -> str:
    """Return what stands for the training videos and for all that the recipes share."""
    shared = {name: getattr(settings, name) for name in _FIELDS} | {"stack": settings.frames_per_segment, "precision": precision}
    return hashlib.sha256(settings.train.read_bytes() + json.dumps({**shared, **_SAME}).encode()).hexdigest()[:12]


def opposite_pairs(given: Sequence[str] | None, labels: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Return the pairs of opposite labels: those given as A/B, or by default UTD-MHAD's of which both are among the labels.

    Raises:
        FlowlessError: What is given is no pair of two labels, or a label is in two pairs.
    """
    if given is None:
        return tuple(pair for pair in OPPOSITES if set(pair) <= set(labels))
    found, problems = [], []
    for text in given:
        # A label may hold a slash itself.
        cuts = [(text[:at], text[at + 1 :]) for at, character in enumerate(text) if character == "/"]
        fits = [cut for cut in cuts if set(cut) <= set(labels) and cut[0] != cut[1]]
        if len(fits) == 1:
            found.append(fits[0])
        else:
            problems.append(f"opposites: {text!r} is not LABEL/LABEL of two of the training videos' labels: {', '.join(labels)}")
    named = [label for pair in found for label in pair]
    problems += [f"opposites: {label!r} is in more than one pair" for label in dict.fromkeys(named) if named.count(label) > 1]
    if problems:
        raise FlowlessError("bench real: " + "; ".join(problems) + ".")
    return tuple(found)


def row(
    name: str, runs: Mapping[int, Scored], results: Mapping[tuple[str, int], Mapping[str, Any]], *, pairs: Sequence[tuple[str, str]]
) -> dict[str, Any]:
    """Return a system's row: figures over its seeds.

    Args:
        name: The system.
        runs: Seed -> its scores.
        results: (System, seed) -> its result.json.
        pairs: The opposite actions.
    """
    from flowless.bench.systems.real_scores import opposite_answers, share
    from flowless.train.evaluation.metrics import mean_class_accuracy, summary

    own = list(runs.values())
    top1 = [run.top1("forwards") for run in own]
    answers, backwards = (opposite_answers(own, pairs, order=order) for order in ("forwards", "reversed"))
    classes = [summary(run.scores["forwards"], run.labels, names=run.names)["per_class"] for run in own]
    last = [results[name, seed]["history"][-1] for seed in runs]
    return {
        "system": name,
        "model": CONTESTANTS[name].model,
        "about": CONTESTANTS[name].about,
        "clip": list(own[0].clip),
        "seeds": [round(one, 4) for one in top1],
        "top1": _mean(top1),
        "spread": round(statistics.stdev(top1), 4) if len(top1) > 1 else None,
        "mean_class": _mean(mean_class_accuracy(run.scores["forwards"], run.labels) for run in own),
        "opposite_top1": share(answers, "right"),
        "reversed_top1": _mean(run.top1("reversed") for run in own),
        "shuffled_top1": _mean(run.top1("shuffled") for run in own),
        "reversed_as_opposite": share(backwards, "opposite"),
        "train_top1": _mean(epoch["train_top1"] for epoch in last),
        "seconds": round(statistics.mean(results[name, seed]["seconds"] for seed in runs)),
        "opposites": answers,
        "per_class": {label: _mean(found[label]["accuracy"] for found in classes) for label in classes[0] if classes[0][label]["videos"]},
    }


def goals(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the goals beside what was measured."""
    from flowless.bench.lib.goals import goal

    best = max(rows, key=lambda one: one["top1"])
    found = [goal(f"the best system, {best['system']}: top-1", WANTED, best["top1"])]
    blind = next((one for one in rows if one["system"] == BLIND), None)
    for one in rows:
        name, lost = one["system"], {order: round(one["top1"] - one[f"{order}_top1"], 4) for order in ("reversed", "shuffled")}
        if one is blind:
            found.append(goal(f"{name}: top-1 lost on reversed clips", ROUNDING, abs(lost["reversed"]), at_most=True))
            continue
        if blind is not None and blind["opposite_top1"] is not None:
            over = round(one["opposite_top1"] - blind["opposite_top1"], 4)
            found.append(goal(f"{name}: top-1 over {BLIND}'s on opposite actions", OVER_BLIND, over))
        found += [goal(f"{name}: top-1 lost on {order} clips", FALL, value) for order, value in lost.items()]
    return found


def table(document: Mapping[str, Any]) -> Table:
    """Return the result for people."""
    from rich.table import Table

    settings = document["settings"]
    shown = Table(
        title=f"{settings['labels']} actions, {settings['train']['videos']} training and {settings['test']['videos']} test videos",
        caption="classes: mean accuracy of a class",
    )
    columns = ("top-1, %", "seeds", "classes", "opposites", "reversed", "shuffled")
    shown.add_column("system", no_wrap=True)
    for column in columns:
        shown.add_column(column, justify="right", no_wrap=True)
    for one in document["systems"]:
        spread = "" if one["spread"] is None else f" ± {100 * one['spread']:.1f}"
        names = ("mean_class", "opposite_top1", "reversed_top1", "shuffled_top1")
        figures = ("–" if one[name] is None else f"{100 * one[name]:.1f}" for name in names)
        shown.add_row(one["system"], f"{100 * one['top1']:.1f}{spread}", str(len(one["seeds"])), *figures)
    return shown


def _check(train: DatasetIndex, test: DatasetIndex, settings: Real) -> None:
    """Refuse indexes that cannot be used, before anything is trained."""
    from flowless.train.loop.index_checks import check_training_index, relabel

    check_training_index(train, batch_size=settings.batch_size)
    relabel(test, train.labels)
    seen = {train.path_of(record).resolve() for record in train.videos}
    both = sorted({str(path) for record in test.videos if (path := test.path_of(record).resolve()) in seen})
    if both:
        raise FlowlessError(
            f"bench real: {len(both)} videos are in the training and in the test index, such as {both[0]}. "
            f"What was trained on cannot be tested with: index other videos."
        )


def _mean(values: Any) -> float:
    return round(statistics.mean(values), 4)
