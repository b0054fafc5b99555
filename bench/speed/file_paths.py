"""The official code's way from a video file to the scores, in its three steps."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from flowless.bench.speed.official import OfficialCode, extract_jpegs
from flowless.pipeline.clip.spec import ClipSpec


class OfficialPath:
    """Extract every frame as a JPEG, load the clip from JPEGs, run the network: each step uses what the one before left."""

    def __init__(self, official: OfficialCode, network: torch.nn.Module, spec: ClipSpec, video: Path, folder: Path) -> None:
        self._official, self._network, self._spec, self._video, self._folder = official, network, spec, video, folder
        self._clip: torch.Tensor | None = None
        self.jpegs = 0
        self.how = ""

    def extract(self) -> None:
        """Write the JPEGs, in an empty folder."""
        shutil.rmtree(self._folder, ignore_errors=True)
        self.jpegs, self.how = extract_jpegs(self._video, self._folder)

    def load(self) -> None:
        """Load and transform the clip by the official data set."""
        spec = self._spec
        self._clip = self._official.load_stack(
            self._folder,
            frames=self.jpegs,
            segments=spec.segments,
            frames_per_segment=spec.frames_per_segment,
            model=self._network,
        )

    def forward(self) -> None:
        """Run the network."""
        assert self._clip is not None
        with torch.inference_mode():
            self._network(self._clip)
