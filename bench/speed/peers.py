"""Measure beside the official PAN code, from the user's clone: the same weights, clips and threads in the same run."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
from rich.table import Table

from flowless.bench.lib.goals import goal
from flowless.bench.lib.run_bench import TimingArgs, import_script, run_bench
from flowless.bench.lib.runners import Run, Runner, engine_runners, time_runners, torch_runners
from flowless.bench.lib.sample_videos import sample_videos
from flowless.bench.lib.tables import rows_table
from flowless.bench.speed.random_network import NetworkArgs
from flowless.console import log
from flowless.engines.bundle.manifest import read_manifest
from flowless.engines.engine import Engine
from flowless.pipeline import load_clip
from flowless.timing import time_interleaved

if TYPE_CHECKING:
    from official_pan import OfficialPath


@dataclass(frozen=True, kw_only=True)
class Peers(TimingArgs):
    """Measure beside the official PAN code: forward, the PA op alone, and from the video file to the scores.

    Needs your own clone of it: git clone https://github.com/zhang-can/PAN-PyTorch. Nothing of it is kept in flowless. The one call that
    current PyTorch computes differently gets its old meaning while it runs, in two ways: as PyTorch computed it then, and rewritten to be
    faster, which is the fair comparison. Both sides get the same random weights, and their scores are compared.
    """

    official: Path
    """Your clone of the official code."""
    model: Literal["pan-lite-r18", "pan-lite-r34", "pan-lite-r50", "pan-lite-r101"] = "pan-lite-r50"
    """Network to measure."""


def main(args: Sequence[str]) -> None:
    """`flowless bench peers`."""
    run_bench("peers", Peers, args, measure=measure, tables=tables)


def measure(settings: Peers) -> dict[str, Any]:
    """Load the clone, export and build, measure, and return the document's parts."""
    from flowless.bench.lib.networks import random_clips, torch_threads
    from flowless.bench.motion.motion_methods import PAPER_CLIP, maps_per_clip, motion_runners
    from flowless.export.build_engine import build_all
    from flowless.train import load_checkpoint

    official = import_script("official_pan").load_official(settings.official)
    with torch_threads(settings.threads or None) as threads, tempfile.TemporaryDirectory(prefix="flowless-peers-") as folder:
        work = Path(folder)
        bundle = NetworkArgs(model=settings.model).export(work).folder
        build_all(bundle)
        manifest, checkpoint = read_manifest(bundle), work / "model.safetensors"
        network = official.network_of(load_checkpoint(checkpoint))
        videos = settings.videos or sample_videos(work / "videos")
        engines = engine_runners(manifest, threads=threads)
        log.print("measuring the forward pass …", style="dim")
        ours, clip = [*torch_runners(checkpoint, compiled=False), *engines], load_clip(videos[0], manifest.spec)
        theirs = official.runs_of(network, clip, manifest.spec)
        forward = _timed(ours, theirs, clip, runs=settings.runs, rate="clips_per_s")
        log.print("measuring the PA op alone …", style="dim")
        clip, items = random_clips(1, PAPER_CLIP, seed=2), maps_per_clip(PAPER_CLIP)
        model, ours = motion_runners(PAPER_CLIP, threads=threads, folder=work)
        theirs = official.runs_of(official.persistence_of(model), clip, PAPER_CLIP)
        maps = _timed(ours, theirs, clip, runs=settings.runs, rate="maps_per_s", items=items)
        log.print("measuring from the video file …", style="dim")
        taken = {"openvino fp32", _best_engine(forward)["name"]}
        paths = [official.path_of(network, video, manifest.spec, folder=work / f"jpegs{place}") for place, video in enumerate(videos)]
        files = _from_file(paths, [one for one in engines if one.name in taken], runs=max(3, settings.runs // 2))
    return {
        "official": {"commit": official.commit, "repaired": "PairwiseDistance: norm over the channels, while it runs"},
        "forward": forward,
        "motion_maps": maps,
        "from_file": files,
        "goals": _goals(forward, maps, files),
    }


def _timed(ours: list[Runner], theirs: Mapping[str, Run], clip: np.ndarray, **timing: Any) -> list[dict[str, Any]]:
    """Time both sides; each row has how many times faster it is than the official code, as published and with its norm rewritten."""
    official = [Runner(f"official, norm {norm}", "official", "fp32", "runs", run) for norm, run in theirs.items()]
    rows = time_runners([*ours, *official], clip, **timing)
    published, rewritten = (row["p50_ms"] for row in rows[-2:])
    for row in rows:
        if spent := row.get("p50_ms"):
            row.update(times_official=round(published / spent, 3), times_official_rewritten=round(rewritten / spent, 3))
    return rows


def _from_file(paths: Sequence[OfficialPath], engines: Sequence[Runner], *, runs: int) -> dict[str, Any]:
    """Time from the video file to the scores: JPEGs, loading and forward on their side, `predict` on ours; means over the videos."""
    found = []
    for path in paths:
        steps: dict[str, Callable[[], object]] = {"extract": path.extract, "load": path.load, "forward": path.forward}
        steps |= {engine.name: partial(cast("Engine", engine.run).predict, path.video) for engine in engines}
        with path.official.norm("rewritten"):
            timings = time_interleaved(steps, runs=runs)
        found.append({name: timing.p50_ms for name, timing in timings.items()})
    mean = {name: fmean(row[name] for row in found) for name in found[0]}
    theirs = sum(mean[step] for step in ("extract", "load", "forward"))
    return {
        "extraction": paths[0].how,
        "official_norm": "rewritten",
        "official_ms": round(theirs, 1),
        "flowless_ms": {engine.name: round(mean[engine.name], 1) for engine in engines},
        "times_official": {engine.name: round(theirs / mean[engine.name], 3) for engine in engines},
    }


def _best_engine(forward: list[dict[str, Any]]) -> dict[str, Any]:
    engines = [row for row in forward if "p50_ms" in row and row["target"] not in {"official", "pytorch"}]
    return min(engines, key=lambda row: row["p50_ms"])


def _goals(forward: list[dict], maps: list[dict], files: dict[str, Any]) -> list[dict[str, Any]]:
    best = _best_engine(forward)
    return [
        goal("best CPU target's forward over PyTorch eager", 6.0, best["times_eager"]),
        goal("best CPU target's forward over the official code", 10.0, best["times_official"]),
        goal("… over the official code with its norm rewritten", 10.0, best["times_official_rewritten"]),
        goal("from the video file over the official path", 10.0, max(files["times_official"].values())),
        goal("PA alone, maps per second", 2000, _best_engine(maps)["maps_per_s"]),
    ]


def tables(document: dict[str, Any]) -> list[Table]:
    """Return the results as tables."""
    columns, files = "name p50_ms times_eager times_official times_official_rewritten max_abs_diff", document["from_file"]
    paths = [{"name": f"official, {files['extraction']}", "ms": files["official_ms"]}]
    paths += [{"name": name, "ms": ms, "times_official": files["times_official"][name]} for name, ms in files["flowless_ms"].items()]
    return [
        rows_table("forward, one clip", document["forward"], columns),
        rows_table("the PA op alone", document["motion_maps"], f"{columns} maps_per_s"),
        rows_table("from the video file, mean over the videos", paths, "name ms times_official"),
    ]
