"""Beside the official PAN code, from the user's own clone: the same weights, clips, threads and minutes."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from flowless.console import emit, log
from flowless.errors import FlowlessError
from flowless.files import write_json
from flowless.machine import usable_cores

if TYPE_CHECKING:
    from rich.table import Table

    from flowless.bench.speed.official import OfficialCode
    from flowless.engines.bundle.manifest import Manifest
    from flowless.pipeline.clip.spec import ClipSpec
    from flowless.timing import Timing

_OFFICIAL_BACKBONES = {"r18": "resnet18", "r34": "resnet34", "r50": "resnet50", "r101": "resnet101"}


@dataclass(frozen=True, kw_only=True)
class Peers:
    """Measure beside the official PAN code: forward, the PA op alone, and from the video file to the scores.

    Needs your own clone of it: git clone https://github.com/zhang-can/PAN-PyTorch. Nothing of it is kept in flowless. Its
    one call that current PyTorch no longer understands gets its old meaning while it runs, in two ways: as PyTorch computed
    it then, and rewritten to be faster, which is the fair comparison. Both sides get the same random weights, and their scores
    are compared.
    """

    official: Path
    """Your clone of the official code."""
    videos: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="FILE...")] = ()
    """Videos to measure with; none: a few are made."""
    model: str = "pan-lite-r50"
    """pan-lite-r18, r34, r50 or r101."""
    runs: int = 10
    """Rounds, each of which every runner runs once."""
    threads: int = 0
    """CPU threads of every runner; 0: one a core."""
    compiled: bool = False
    """Also measure torch.compile of our network."""
    out: Path = Path("runs/bench/peers.json")
    """JSON to write."""
    json: bool = False
    """Print one JSON document instead of the tables."""

    def __post_init__(self) -> None:
        """Refuse what the official code has no network for."""
        family, _, depth = self.model.rpartition("-")
        if family != "pan-lite" or depth not in _OFFICIAL_BACKBONES:
            names = ", ".join(f"pan-lite-{known}" for known in _OFFICIAL_BACKBONES)
            raise FlowlessError(f"bench peers: model is {self.model!r}; it must be one of {names}.")
        if self.runs < 1:
            raise FlowlessError(f"bench peers: runs is {self.runs}; it must be at least 1.")
        if self.threads < 0:
            raise FlowlessError(f"bench peers: threads is {self.threads}; it must be at least 1, or 0 for one a core.")


def main(words: Sequence[str]) -> None:
    """`flowless bench peers`."""
    settings = tyro.cli(Peers, prog="flowless bench peers", description=Peers.__doc__, args=words)
    document = measure(settings)
    write_json(settings.out, document)
    emit(document, *tables(document), as_json=settings.json)


def measure(settings: Peers) -> dict[str, Any]:
    """Load the clone, make what is missing, measure, and return the document.

    Raises:
        FlowlessError: There is no clone at `settings.official`, or a video cannot be read.
    """
    from flowless.bench.lib.networks import torch_threads
    from flowless.bench.lib.runners import bundle_of
    from flowless.bench.lib.sample_videos import sample_videos
    from flowless.bench.lib.system_load import busy_share, judged
    from flowless.bench.speed.official import load_official
    from flowless.machine import environment
    from flowless.pipeline.clip.spec import ClipSpec

    threads = settings.threads or usable_cores()
    official = load_official(settings.official)
    busy = busy_share()
    spec = ClipSpec()
    with ExitStack() as stack:
        stack.enter_context(torch_threads(threads))
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="flowless-peers-")))
        log.print(f"exporting {settings.model} and building its engines …", style="dim", markup=False)
        manifest = bundle_of(settings.model, spec=spec, classes=174, folder=work)
        videos = settings.videos or tuple(sample_videos(work / "videos"))
        forward = measure_forward(official, manifest, videos[0], (settings, threads))
        maps = measure_maps(official, work, (settings, threads))
        files = measure_files(official, manifest, videos, (settings, threads, best_engine(forward), work))
    return {
        "benchmark": "peers",
        "environment": environment(),
        "official": {"commit": official.commit, "repaired": "PairwiseDistance: norm over the channels, while it runs"},
        "settings": {
            "model": settings.model,
            "weights": "random, the same on both sides",
            "runs": settings.runs,
            "threads": threads,
            "busy_before": busy,
        },
        "forward": forward,
        "motion_maps": maps,
        "from_file": files,
        "goals": judged(goals(forward, maps, files), busy),
    }


def measure_forward(official: OfficialCode, manifest: Manifest, video: Path, how: tuple[Peers, int]) -> list[dict[str, Any]]:
    """Time one clip's forward pass of the official network, of ours in PyTorch, and of every engine; compare the scores."""
    from flowless.bench.lib.runners import Runner, engine_runners, time_runners, torch_runners
    from flowless.bench.speed.official import NORMS, copy_weights, official_layout
    from flowless.pipeline.clip.preprocess import load_clip
    from flowless.train.checkpoints import load_checkpoint

    settings, threads = how
    log.print("measuring the forward pass …", style="dim")
    checkpoint = manifest.folder.parent / "model.safetensors"
    network = official_network(official, manifest)
    copy_weights(load_checkpoint(checkpoint).model, network)
    clip = load_clip(video, manifest.spec)
    layout = official_layout(clip, mean=manifest.spec.mean, std=manifest.spec.std)
    runners = torch_runners(checkpoint, manifest, compiled=settings.compiled)
    for norm in NORMS:
        # Its input is laid out and normalised beforehand: loading does that in the official code.
        runners.append(Runner(f"official, norm {norm}", "official", "fp32", "runs", _official_run(official, network, norm, layout)))
    runners += engine_runners(manifest, threads=threads)
    return _against(time_runners(runners, clip, runs=settings.runs, compare=True))


def measure_maps(official: OfficialCode, work: Path, how: tuple[Peers, int]) -> list[dict[str, Any]]:
    """Time the PA op alone on the paper's 8 stacks of 6 frames; compare the maps."""
    import torch

    from flowless.bench.lib.networks import random_clips
    from flowless.bench.lib.runners import Runner, time_runners
    from flowless.bench.motion.motion_maps import PAPER_CLIP, maps_per_clip, motion_runners
    from flowless.bench.speed.official import NORMS, official_layout

    settings, threads = how
    log.print("measuring the PA op alone …", style="dim")
    model, runners = motion_runners(PAPER_CLIP, threads=threads, folder=work)
    theirs = official.persistence(frames=PAPER_CLIP.frames_per_segment)
    with torch.no_grad():
        theirs.shallow_conv.weight.copy_(model.persistence.weight)  # type: ignore[union-attr]
    clip = random_clips(1, PAPER_CLIP, seed=2)
    layout = official_layout(clip, mean=PAPER_CLIP.mean, std=PAPER_CLIP.std)
    for norm in NORMS:
        runners.append(Runner(f"official, norm {norm}", "official", "fp32", "runs", _official_run(official, theirs, norm, layout, clips=1)))
    rows = _against(time_runners(runners, clip, runs=settings.runs, compare=True))
    for row in rows:
        if "p50_ms" in row:
            row["maps_per_s"] = round(1e3 * maps_per_clip(PAPER_CLIP) / row["p50_ms"], 1)
    return rows


def measure_files(
    official: OfficialCode, manifest: Manifest, videos: Sequence[Path], how: tuple[Peers, int, dict[str, Any], Path]
) -> dict[str, Any]:
    """Time from the video file to the scores: JPEGs, loading and forward on their side, `predict` on ours."""
    from flowless.bench.lib.runners import open_engine
    from flowless.bench.speed.file_paths import OfficialPath
    from flowless.timing import time_interleaved

    settings, threads, best, work = how
    log.print("measuring from the video file …", style="dim")
    engines = {row["name"]: open_engine(manifest, row, threads=threads) for row in (_exact(manifest), best)}
    network = official_network(official, manifest)
    rows = []
    for number, video in enumerate(videos):
        path = OfficialPath(official, network, manifest.spec, video, work / f"jpegs{number}")
        runners: dict[str, Callable[[], object]] = {
            "official: extract": path.extract,
            "official: load": path.load,
            "official: forward": path.forward,
        }
        runners |= {f"flowless: {name}": (lambda engine=engine, video=video: engine.predict(video)) for name, engine in engines.items()}
        with official.norm("rewritten"):
            timings = time_interleaved(runners, runs=max(3, settings.runs // 2))
        rows.append(_file_row(video, timings, path))
    ours = {name: round(sum(row["ms"][f"flowless: {name}"] for row in rows) / len(rows), 1) for name in engines}
    theirs = round(sum(row["official_ms"] for row in rows) / len(rows), 1)
    return {
        "extraction": rows[0]["extraction"],
        "official_norm": "rewritten",
        "videos": rows,
        "official_ms": theirs,
        "flowless_ms": ours,
        "times_official": {name: round(theirs / spent, 3) for name, spent in ours.items()},
    }


def best_engine(forward: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the row of the quickest engine of ours."""
    engines = [row for row in forward if "p50_ms" in row and row["target"] not in {"official", "pytorch", "torch.compile"}]
    return min(engines, key=lambda row: row["p50_ms"])


def goals(forward: list[dict], maps: list[dict], files: dict[str, Any]) -> list[dict[str, Any]]:
    """Say which of the project's goals this run met."""
    from flowless.bench.lib.goals import goal

    best = best_engine(forward)
    quickest = max(row["maps_per_s"] for row in maps if row["target"] not in {"official", "pytorch"} and "maps_per_s" in row)
    return [
        goal("best CPU target's forward over PyTorch eager", 6.0, best["times_eager"]),
        goal("best CPU target's forward over the official code", 10.0, best["times_official"]),
        goal("… over the official code with its norm rewritten", 10.0, best["times_official_rewritten"]),
        goal("from the video file over the official path", 10.0, max(files["times_official"].values())),
        goal("PA alone, maps per second", 2000, quickest),
    ]


def tables(document: dict[str, Any]) -> list[Table]:
    """Return the result for people."""
    from flowless.bench.lib.goals import goals_table
    from flowless.bench.lib.tables import rows_table

    columns = {
        "name": "",
        "p50_ms": "p50 ms",
        "p99_ms": "p99 ms",
        "times_eager": "× eager",
        "times_official": "× official",
        "times_official_rewritten": "× rewritten",
        "max_abs_diff": "diff",
    }
    without_p99 = {key: heading for key, heading in columns.items() if key != "p99_ms"}
    files = document["from_file"]
    paths = [{"name": f"official, {files['extraction']}", "ms": files["official_ms"], "times": 1.0}]
    paths += [{"name": f"flowless {name}", "ms": ms, "times": files["times_official"][name]} for name, ms in files["flowless_ms"].items()]
    return [
        rows_table("forward, one clip", document["forward"], columns),
        rows_table("the PA op alone, 40 maps", document["motion_maps"], {"name": "", "maps_per_s": "maps/s", **without_p99}),
        rows_table("from the video file, mean over the videos", paths, {"name": "", "ms": "ms", "times": "× official"}),
        goals_table(document["goals"]),
    ]


def official_network(official: OfficialCode, manifest: Manifest) -> Any:
    """Build the official network that corresponds to a bundle's."""
    spec: ClipSpec = manifest.spec
    backbone = _OFFICIAL_BACKBONES[manifest.model.rpartition("-")[2]]
    return official.pan_lite(backbone=backbone, classes=len(manifest.labels), segments=spec.segments, frames=spec.frames_per_segment)


def _official_run(official: OfficialCode, network: Any, norm: Any, layout: Any, *, clips: int | None = None) -> Callable[[Any], Any]:
    import torch

    def run(_: Any) -> Any:
        with official.norm(norm), torch.inference_mode():
            answer = network(layout).numpy()
        return answer if clips is None else answer[None]

    return run


def _against(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add how many times faster each row is than our eager PyTorch and than the official code, both ways."""
    runners = {
        "times_eager": "pytorch eager",
        "times_official": "official, norm as-published",
        "times_official_rewritten": "official, norm rewritten",
    }
    spent = {row["name"]: row["p50_ms"] for row in rows if "p50_ms" in row}
    for row in rows:
        if "p50_ms" in row:
            row |= {key: round(spent[name] / row["p50_ms"], 3) for key, name in runners.items()}
    return rows


def _exact(manifest: Manifest) -> dict[str, Any]:
    """Return the row of the fp32 engine that `flowless.load` takes on a CPU."""
    from flowless.engines.backends.backend import why_not

    order = ("openvino", "onnxruntime")
    target = next(name for name in order if manifest.artefact(name, "fp32") and why_not(name) is None)
    return {"name": f"{target} fp32", "target": target, "precision": "fp32"}


def _file_row(video: Path, timings: dict[str, Timing], path: Any) -> dict[str, Any]:
    spent = {name: timing.p50_ms for name, timing in timings.items()}
    theirs = sum(value for name, value in spent.items() if name.startswith("official"))
    return {
        "file": video.name,
        "jpegs": path.jpegs,
        "extraction": path.how,
        "official_ms": round(theirs, 1),
        "ms": spent,
    }
