"""Options, videos and goals of `flowless bench systems` (generated videos) and `flowless bench real` (real clips)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import permutations
from pathlib import Path
from typing import Any, ClassVar, Literal

import tyro

from flowless.bench.lib.goals import goal
from flowless.bench.systems.system_list import BLIND, SHUFFLE_SEED, SYSTEMS
from flowless.bench.systems.training_runs import Training
from flowless.errors import FlowlessError
from flowless.files import sha256_of
from flowless.pipeline.dataset.index import DatasetIndex
from flowless.pipeline.synthetic.moving_shapes import MARK, PAIRS, ShapesOptions, generate
from flowless.train.loop.index_checks import check_training_index, relabel
from flowless.train.recipes import find_recipe

Row = Mapping[str, Any]
#: `bench systems`: the top-1 that every system has to reach, and the most that one blind to the order of frames can reach.
WANTED, BLIND_LIMIT = 0.95, 0.5
#: Frames of a generated video: the fewer, the faster the motion.
FRAMES = 16
#: `bench real`: the top-1 that the best system has to reach; the lead that each motion system must have over the blind one on opposite
#: actions; and the top-1 that a motion system must lose on reversed or shuffled clips, and the blind one cannot lose.
BEST, LEAD, LOSS, ROUNDING = 0.8, 0.15, 0.15, 0.005
#: Recipe fields of all systems on real clips, without mirror images, in which left becomes right. They were chosen on three of UTD-MHAD's
#: training people, tested on the fourth, never on the test people.
_CLIP: dict[str, Any] = {"segments": 8, "size": 48, "short_side": 56, "scales": (1.0, 0.875), "flip": False, "colour_jitter": 0.2}
_REGIME: dict[str, Any] = {"batch_size": 10, "lr": 0.002, "lr_batch": 10, "dropout": 0.2, "label_smoothing": 0.1}


def refuse_common_videos(benchmark: str, train: DatasetIndex, test: DatasetIndex) -> None:
    """Raise FlowlessError where a video is in both indexes."""
    seen, tested = ({index.path_of(record).resolve() for record in index.videos} for index in (train, test))
    if both := seen & tested:
        raise FlowlessError(
            f"bench {benchmark}: {len(both)} videos are in the training and in the test index, such as {min(both)}. "
            f"What was trained on cannot be tested with: index other videos."
        )


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Options of both benchmarks; a subclass is a source of videos, whose default `systems` are all that it has, in their order."""

    benchmark: ClassVar[str]
    out: Path
    """JSON to write; the page and the folder of the runs have the same name."""
    systems: tuple[str, ...]
    """Systems to train."""
    seeds: int = 3
    """Trainings of each, with different initial weights and order of the videos."""
    epochs: int
    """Times that training sees every video."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Precision of the training; bf16 (mixed) is faster where the processor multiplies in it."""
    opposites: tuple[str, ...]
    """Pairs of opposite labels; defaults that the videos lack are left out."""
    so_far: bool = False
    """Train nothing: measure and show what is trained already."""
    earlier: Path | None = None
    """Earlier result (JSON) of the same settings: its accuracies are taken for systems that --systems does not name."""
    json: bool = False
    """Print one JSON document instead of the table."""

    def __post_init__(self) -> None:
        """Refuse what cannot be run: all problems in one error."""
        known = type(self).systems
        problems = [f"{name!r} is not one of the systems {', '.join(known)}" for name in self.systems or ("",) if name not in known]
        counts = {name: value for name, value in vars(self).items() if name in {"seeds", "epochs", "val_videos"}}
        problems += [f"{name} is {value}; it must be at least 1" for name, value in counts.items() if value < 1]
        problems += [] if self.out.suffix == ".json" else [f"out is {self.out}; it must end in .json: page and runs are named like it"]
        if problems:
            raise FlowlessError(f"bench {self.benchmark}: {'; '.join(problems)}.")

    def pairs(self, labels: Sequence[str]) -> list[list[str]]:
        """Return the pairs of opposite labels; raise FlowlessError where what is given is no pair of two labels."""
        known = {"/".join(pair): list(pair) for pair in permutations(labels, 2)}
        if wrong := [text for text in self.opposites if text not in {*known, *type(self).opposites}]:
            raise FlowlessError(f"bench {self.benchmark}: {wrong[0]!r} is not LABEL/LABEL of two of the labels {', '.join(labels)}.")
        return [known[text] for text in self.opposites if text in known]

    def _training(self, system: str, seed: int, *, preset: str, data: Path, runs: Path, **changes: Any) -> Training:
        """Return a training by a recipe of the `preset` with the fields that all systems share, and `changes`."""
        one, shared = SYSTEMS[system], {"epochs": self.epochs, "precision": self.precision, "threads": 1, "seed": seed}
        recipe = find_recipe(f"{one.model}/{preset}", objective=one.objective, **shared, **changes)
        return Training(recipe=recipe, data=data, folder=runs / f"{self.epochs}-epochs-{self.precision}" / f"{system}-{seed}")


@dataclass(frozen=True, kw_only=True)
class Systems(Comparison):
    """Train every system alike on Moving Shapes, from scratch, with a small backbone, and put accuracy beside cost.

    Each action of Moving Shapes is the time-reversal of another one, so a model that ignores the order of frames is right half of the
    time at most. Every system gets the same videos, epochs, batches, optimiser and rate. The control tsm-more, trained once on four times
    as many videos, shows whether tsm cannot learn this, or has not yet. Each run is kept in the folder named like OUT: the same command
    again resumes what was stopped, and trains nothing twice. Writes OUT (JSON), and a page and its plot beside it: top-1 over the seeds,
    the action that is most often confused with its reversal, and a clip's parameters, multiplications and latency on this machine's cores.
    """

    benchmark = "systems"
    out: Path = Path("runs/bench/systems.json")
    systems: tuple[str, ...] = tuple(SYSTEMS)
    epochs: int = 6
    opposites: tyro.conf.Suppress[tuple[str, ...]] = tuple("/".join(pair) for pair in PAIRS)
    train_videos: int = 4800
    """Training videos; half of them are reversals."""
    val_videos: int = 480
    """Validation videos; half of them are reversals."""

    def conditions(self) -> dict[str, Any]:
        """Return what an earlier result must share."""
        from flowless.bench.systems import engine_cost  # noqa: F401 - a missing library is reported before the training

        own = {name: getattr(self, name) for name in ("train_videos", "val_videos", "epochs", "seeds", "precision")}
        return {**own, "frames": FRAMES, "size": ShapesOptions.size, "blind_to_order": BLIND_LIMIT}

    def training(self, system: str, seed: int) -> Training:
        """Return one training; runs of other videos are in other folders."""
        data = self._videos(system) / "train.index.jsonl"
        return self._training(system, seed, preset="moving-shapes", data=data, runs=data.parents[1], **SYSTEMS[system].clip)

    def test_videos(self, systems: Sequence[str]) -> DatasetIndex:
        """Generate the videos of the systems unless they are there already; return the validation index, the same for all systems."""
        for system in systems:
            videos = self._videos(system)
            if not (videos / MARK).is_file():
                train_videos = self.train_videos * SYSTEMS[system].videos
                generate(videos, options=ShapesOptions(frames=FRAMES, train_videos=train_videos, val_videos=self.val_videos))
        return DatasetIndex.load(self._videos(systems[0]) / "val.index.jsonl")

    def goals(self, rows: Sequence[Row]) -> list[dict[str, Any]]:
        """Return the goals beside what was measured; controls have none."""
        measured = {row["system"]: row["top1"] for row in rows if not row["control"]}
        limits = {name: BLIND_LIMIT if name == BLIND else WANTED for name in measured}
        return [goal(f"{name}: top-1, mean of the seeds", limits[name], top1, at_most=name == BLIND) for name, top1 in measured.items()]

    def _videos(self, system: str) -> Path:
        number = self.train_videos * SYSTEMS[system].videos
        return self.out.with_suffix("") / f"{number}-and-{self.val_videos}-videos-of-{FRAMES}-frames" / "videos"


@dataclass(frozen=True, kw_only=True)
class Real(Comparison):
    """Train every system alike from scratch on real clips, with a small backbone, and test it once on clips that it has never seen.

    Make the two indexes of tables path,label (UTD-MHAD's depth clips: people 1, 3, 5, 7 against 2, 4, 6, 8), then train and test:
    flowless scan train.csv --format csv --out train.jsonl;
    flowless scan test.csv --format csv --labels train.jsonl --out test.jsonl;
    flowless bench real train.jsonl test.jsonl

    Every system gets the same videos, epochs, batches, optimiser and rate. The test clips, which are scored after the last epoch, are also
    scored with all their frames reversed and shuffled: a model of motion must lose accuracy, one that averages over frames cannot. Each
    run is kept in the folder named like OUT: the same command again resumes what was stopped, and trains nothing twice. Writes OUT (JSON),
    and a page and its plot beside it: top-1 over the seeds, and what opposite actions are mistaken for.
    """

    benchmark = "real"
    train: tyro.conf.Positional[Path]
    """Index of the training videos."""
    test: tyro.conf.Positional[Path]
    """Index of the test videos: the same actions, by other people."""
    out: Path = Path("runs/bench/real.json")
    # Disentangling costs ten times as much as the others, Twins Training twice.
    systems: tuple[str, ...] = ("tsn", "tsm", "pan-lite", "pan-full", "stm", "da-tsm")
    epochs: int = 24
    # Actions of UTD-MHAD that differ in their direction alone.
    opposites: tuple[str, ...] = ("swipe_left/swipe_right", "draw_circle_cw/draw_circle_ccw", "sit_to_stand/stand_to_sit")

    def conditions(self) -> dict[str, Any]:
        """Return what an earlier result must share; refuse indexes that cannot be used."""
        train, test = DatasetIndex.load(self.train), self.test_videos(self.systems)
        recipe = self.training(self.systems[0], 0).recipe
        own = {"name", "model", "frames_per_segment", "average", "seed", *(field.name for field in fields(recipe.options))}
        check_training_index(train, batch_size=recipe.batch_size)
        refuse_common_videos(self.benchmark, train, test)
        return {
            "train": {"index": self.train.name, "videos": len(train.videos)},
            "test": {"index": self.test.name, "videos": len(test.videos)},
            "labels": len(train.labels),
            "opposites": self.pairs(train.labels),
            "shuffle_seed": SHUFFLE_SEED,
            "recipe": {name: value for name, value in recipe.to_dict().items() if name not in own},
        }

    def training(self, system: str, seed: int) -> Training:
        """Return one training; runs of other training videos are in other folders."""
        runs, frames = self.out.with_suffix("") / sha256_of(self.train)[:12], SYSTEMS[system].clip["frames_per_segment"]
        return self._training(system, seed, preset="tiny", data=self.train, runs=runs, frames_per_segment=frames, **_CLIP, **_REGIME)

    def test_videos(self, systems: Sequence[str]) -> DatasetIndex:
        """Return the test index, with the classes numbered as in the training index."""
        return relabel(DatasetIndex.load(self.test), DatasetIndex.load(self.train).labels)

    def goals(self, rows: Sequence[Row]) -> list[dict[str, Any]]:
        """Return the goals beside what was measured."""
        best = max(rows, key=lambda one: one["top1"])
        found = [goal(f"the best system, {best['system']}: top-1", BEST, best["top1"])]
        blind = next((one["opposite_top1"] for one in rows if one["system"] == BLIND), None)
        for one in rows:
            name, lost = one["system"], {order: round(one["top1"] - one[f"{order}_top1"], 4) for order in ("reversed", "shuffled")}
            if name == BLIND:
                found.append(goal(f"{name}: top-1 lost on reversed clips", ROUNDING, abs(lost["reversed"]), at_most=True))
                continue
            if blind is not None:
                found.append(goal(f"{name}: top-1 over {BLIND}'s on opposite actions", LEAD, round(one["opposite_top1"] - blind, 4)))
            found += [goal(f"{name}: top-1 lost on {order} clips", LOSS, value) for order, value in lost.items()]
        return found
