"""A network with random weights, exported, and videos that are as different as its scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from flowless.console import log
from flowless.engines.bundle.manifest import Manifest
from flowless.errors import FlowlessError
from flowless.pipeline import ClipSpec, scan
from flowless.pipeline.video.encode import write_video


@dataclass(frozen=True, kw_only=True)
class NetworkArgs:
    """A network with random weights; it is as fast as a trained one."""

    model: str = "pan-lite-r50"
    """Network to measure."""
    size: int = 224
    """Side of the square that the network sees, in pixels."""
    width: float = 1.0
    """Factor on the backbone's channels."""
    blocks: int = 0
    """Residual blocks of each stage, as in flowless train."""
    classes: int = 174
    """Number of classes."""

    def spec(self) -> ClipSpec:
        """Return the network's clip: 8 segments of 4 frames."""
        return ClipSpec(height=self.size, width=self.size, short_side=self.size * 8 // 7)

    def checkpoint(self, folder: Path) -> Path:
        """Write `folder / "model.safetensors"`."""
        from flowless.bench.lib.networks import random_model
        from flowless.train.checkpoints import save_checkpoint

        spec, labels = self.spec(), [f"class {number}" for number in range(self.classes)]
        model = random_model(self.model, spec=spec, classes=self.classes, width=self.width, blocks=self.blocks)
        return save_checkpoint(folder / "model.safetensors", model, model_name=self.model, recipe={}, spec=spec, labels=labels, metrics={})

    def export(self, folder: Path, *, videos: Sequence[Path] = ()) -> Manifest:
        """Write the checkpoint and export it into `folder / "bundle"`, compared with PyTorch on `videos`."""
        from flowless.export.export_bundle import export_bundle

        log.print(f"exporting {self.model} …", style="dim", markup=False)
        return export_bundle(self.checkpoint(folder), folder / "bundle", videos=videos)


def save_random(manifest: Manifest, path: Path) -> Path:
    """Write a checkpoint of a bundle's network with random weights, which PyTorch runs as fast."""
    from flowless.train.checkpoints import save_checkpoint
    from flowless.train.models import build_model
    from flowless.train.models.options import split_options

    own, rest = split_options(manifest.model, manifest.config)
    if rest.pop("classes", None) != len(manifest.labels):
        raise FlowlessError(f"{manifest.folder}: an older bundle, which does not record the size of its network. Export the model again.")
    model = build_model(manifest.model, classes=len(manifest.labels), spec=manifest.spec, **rest, **own).eval()
    return save_checkpoint(path, model, model_name=manifest.model, recipe={}, spec=manifest.spec, labels=manifest.labels, metrics={})


def varied_videos(folder: Path, spec: ClipSpec, *, count: int, seed: int) -> Path:
    """Write `folder/class/` with one video for each of `count` random clips, and return the index of them, `folder.jsonl`.

    Videos that resemble each other would not do: random weights give them nearly the same scores, beside which rounding is large. On
    moving shapes of 256 x 256, int8 PAN-Lite ResNet-50 has an SNR of 17 dB, on these of 27 dB.
    """
    from flowless.bench.lib.networks import random_clips

    side = max(16, -(-spec.short_side // 2) * 2)
    larger = replace(spec, height=side, width=side, short_side=side)
    for number in range(count):
        frames = random_clips(1, larger, seed=10_000 * seed + number)[0].reshape(-1, side, side, 3)
        write_video(folder / "class" / f"{number:04d}.mp4", frames)
    scan(folder, out=folder.with_suffix(".jsonl"))
    return folder.with_suffix(".jsonl")
