"""Does a model read time? Videos played forwards and backwards, which share every picture, as classes of their own."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from flowless.console import emit, log
from flowless.errors import CheckFailed, FlowlessError
from flowless.files import whole_folder, write_json

if TYPE_CHECKING:
    from rich.table import Table

    from flowless.pipeline.dataset.index import DatasetIndex
    from flowless.train.recipes import Recipe


@dataclass(frozen=True)
class Contestant:
    """A model, and which frames it is given."""

    name: str
    family: str
    stacks: bool
    """Whether it gets stacks of m frames (and a part's first frame with them) or the single frames of `inner_parts`."""
    about: str
    control: bool = False


CONTESTANTS = (
    Contestant("pan-lite", "pan-lite", True, "stacks of m frames: motion inside a stack, order between stacks"),
    Contestant("tsn", "tsn", False, "single frames, the same pictures of a film and its reversal: at most half can be right"),
    Contestant("tsm", "tsm", False, "the pictures that tsn gets; only their order tells the films apart", control=True),
    Contestant("tsn, stacks", "tsn", True, "the first frame of pan-lite's stacks: what remembering places alone gives", control=True),
)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How the reversal benchmark is run."""

    source: Path
    epochs: int
    size: int
    depth: str
    seed: int
    controls: bool


def main(words: Sequence[str]) -> None:
    """`flowless bench reversal`."""

    def run(
        source: tyro.conf.Positional[Path],
        *,
        out: Path = Path("runs/bench/reversal.json"),
        epochs: int = 120,
        size: int = 48,
        depth: str = "r18",
        seed: int = 0,
        controls: bool = True,
        json: bool = False,
    ) -> None:
        """Train models to tell each video from the same video played backwards.

        Every video of SOURCE becomes two classes, NAME and NAME-reversed, of one film each: the same pictures, without
        loss, in opposite order. Training accuracy then says whether a model reads order: one that does not cannot pass a
        half. PAN-Lite and TSN are trained alike, from scratch, and judged on the centre clip of the films that they
        learnt from. Films are cut so that sampling takes the same pictures from both ends, and that is checked.

        Args:
            source: folder of videos (each is a class), or a folder with one folder a class.
            out: JSON to write; films and checkpoints go into the folder of the same name beside it.
            epochs: times that training sees every film.
            size: side of the square that the networks see, in pixels.
            depth: backbone: r18, r34, r50 or r101, a quarter wide.
            seed: seed of the training.
            controls: also train two controls: TSM on TSN's frames, and TSN on the first frame of PAN-Lite's stacks.
            json: print one JSON document instead of the table.
        """
        if size < 16 or size % 2:
            raise FlowlessError(f"bench reversal: size is {size}; it must be an even number of at least 16.")
        settings = Settings(source=source, epochs=epochs, size=size, depth=depth, seed=seed, controls=controls)
        document = run_reversal(settings, work=out.with_suffix(""))
        write_json(out, document)
        emit(document, table(document), as_json=json)

    tyro.cli(run, prog="flowless bench reversal", args=words)


def run_reversal(settings: Settings, *, work: Path) -> dict[str, Any]:
    """Write the films into `work`, train every contestant, and return the document.

    Raises:
        FlowlessError: The source holds no usable video.
        CheckFailed: A film and its reversal do not show the same pictures, so the comparison would mean nothing.
    """
    from flowless.bench.lib.goals import goal
    from flowless.bench.lib.reversal_films import inner_parts, same_pictures, write_films
    from flowless.machine import environment
    from flowless.pipeline.dataset.scan import scan

    recipe = _recipe("pan-lite", settings, stacks=True)
    with whole_folder(work / "films") as draft:
        films = write_films(settings.source, draft, spec=recipe.spec)
    index = scan(work / "films", out=work / "films.index", workers=1)
    single = inner_parts(index, stack=recipe.frames_per_segment)
    checks = ((index, recipe), (single, _recipe("tsn", settings, stacks=False)))
    if not all(same_pictures(part, its.spec) for part, its in checks):
        raise CheckFailed(f"{work}: a film and its reversal do not give the same pictures; nothing can be learnt from comparing them.")
    rows = []
    for contestant in CONTESTANTS:
        if contestant.control and not settings.controls:
            continue
        log.print(f"training {contestant.name} …", style="dim")
        rows.append(_contest(contestant, settings, index if contestant.stacks else single, work))
    return {
        "benchmark": "reversal",
        "environment": environment(),
        "settings": {"source": settings.source.name, "epochs": settings.epochs, "size": settings.size, "seed": settings.seed},
        "recipe": recipe.to_dict(),
        "videos": films.videos,
        "classes": len(index.labels),
        "skipped": list(films.skipped),
        "same_pictures": True,
        "measure": "training accuracy: top-1 of the last checkpoint on the centre clip of every film it was trained on",
        "models": rows,
        "goals": [
            goal("pan-lite learns the films", 0.95, rows[0]["top1"]),
            goal("tsn cannot", 0.55, rows[1]["top1"], at_most=True),
        ],
    }


def table(document: dict[str, Any]) -> Table:
    """Return the result for people."""
    from rich.table import Table

    shown = Table(title=f"{document['videos']} videos forwards and backwards, {document['classes']} classes: training accuracy")
    for column in ("model", "top-1", "video found, direction aside", "loss", "seconds", "it is given"):
        shown.add_column(column, justify="left" if column in {"model", "it is given"} else "right")
    for row in document["models"]:
        shown.add_row(
            row["model"], f"{row['top1']:.3f}", f"{row['pair_top1']:.3f}", f"{row['loss']:.3f}", f"{row['seconds']:.0f}", row["given"]
        )
    return shown


def _recipe(family: str, settings: Settings, *, stacks: bool) -> Recipe:
    from flowless.train.recipes import find_recipe

    recipe = find_recipe(f"{family}-{settings.depth}/tiny", epochs=settings.epochs, seed=settings.seed, size=settings.size)
    # The films are square and of that size already: pictures are learnt as they are, and only their places in time jitter.
    return replace(recipe, short_side=settings.size, frames_per_segment=recipe.frames_per_segment if stacks else 1)


def _contest(contestant: Contestant, settings: Settings, index: DatasetIndex, work: Path) -> dict[str, Any]:
    from flowless.train.loop.fit import fit

    recipe = _recipe(contestant.family, settings, stacks=contestant.stacks)
    # Every film in every epoch: a rest that is dropped would be another one each time, but a small set has small rests.
    recipe = replace(recipe, batch_size=_batch(len(index.videos), recipe.batch_size))
    folder = work / contestant.name.replace(", ", "-")
    began = time.perf_counter()
    fit(recipe, index=index, out=folder, overwrite=True)
    seconds = time.perf_counter() - began
    return {
        "model": contestant.name,
        "given": contestant.about,
        "control": contestant.control,
        "name": recipe.model,
        "frames_per_segment": recipe.frames_per_segment,
        **_judge(folder / "last.safetensors", index),
        "seconds": round(seconds, 1),
    }


def _judge(checkpoint: Path, index: DatasetIndex) -> dict[str, float]:
    """Return the accuracy on the centre clips, the same with direction ignored, and the mean cross entropy."""
    import numpy as np
    import torch

    from flowless.bench.lib.reversal_films import SUFFIX, clips_of
    from flowless.train.checkpoints import load_checkpoint

    loaded = load_checkpoint(checkpoint)
    clips, labels = clips_of(index, loaded.spec)
    with torch.inference_mode():
        scores = torch.cat([loaded.model(torch.from_numpy(clips[start : start + 8])) for start in range(0, len(clips), 8)])
    predicted = scores.argmax(1).numpy()
    undirected: Callable[[int], str] = lambda label: index.labels[label].removesuffix(SUFFIX)  # noqa: E731
    found = [undirected(int(one)) == undirected(int(other)) for one, other in zip(predicted, labels, strict=True)]
    return {
        "top1": round(float(np.mean(predicted == labels)), 4),
        "pair_top1": round(float(np.mean(found)), 4),
        "loss": round(float(torch.nn.functional.cross_entropy(scores.float(), torch.from_numpy(labels))), 4),
    }


def _batch(videos: int, wanted: int) -> int:
    """Return the largest divisor of `videos` up to `wanted` that is at least half of it, else `wanted` or what there is."""
    whole = [size for size in range(min(wanted, videos), wanted // 2, -1) if videos % size == 0]
    return whole[0] if whole else min(wanted, videos)
