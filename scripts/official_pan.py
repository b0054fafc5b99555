"""Run the official PAN code from the user's clone of it; `flowless bench peers` and tests use this. No code of it is kept here.

The code of 2020 calls `torch.nn.PairwiseDistance` for a norm over the channels, which is axis 1 of a three-dimensional tensor. PyTorch
has since moved that norm to the last axis, so the code ends in a shape error. This module gives the name its old meaning for the
official file alone, in two ways: the norm as the old PyTorch computed it, and the same values by square, sum and root, which is several
times faster on a CPU. Both are measured; the second is the fair comparison.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import shutil
import subprocess
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from flowless.errors import FlowlessError, first_line
from flowless.pipeline.clip.spec import ClipSpec
from flowless.train.checkpoints import Checkpoint
from flowless.train.models import MotionRecognizer

URL = "https://github.com/zhang-can/PAN-PyTorch"
_NEEDED = ("ops/models.py", "ops/PAN_modules.py", "ops/temporal_shift.py", "ops/transforms.py", "ops/dataset.py")

Norm = Literal["as-published", "rewritten"]
#: How the repaired distance computes its norm over the channels.
NORMS: tuple[Norm, ...] = ("as-published", "rewritten")


class _ChannelDistance(torch.nn.Module):
    """The distance of two `[B, C, P]` tensors over C, with 1e-6 added to the difference, as PyTorch gave it in 2020."""

    norm: Norm = "as-published"

    def __init__(self, p: float = 2.0) -> None:
        super().__init__()
        if p != 2:
            raise FlowlessError(f"The official code uses a distance of order {p}; this adapter repairs order 2 only.")

    def forward(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        difference = first - second + 1e-6
        if self.norm == "as-published":
            return torch.linalg.vector_norm(difference, ord=2, dim=1)
        return (difference * difference).sum(1).sqrt()


class _RepairedLayers:
    """`torch.nn` for the official file, with the old meaning of the one name that changed it."""

    PairwiseDistance = _ChannelDistance

    def __getattr__(self, name: str) -> Any:
        return getattr(torch.nn, name)


@dataclass(frozen=True)
class OfficialCode:
    """The parts of the clone that are measured."""

    folder: Path
    commit: str
    models: types.ModuleType
    parts: types.ModuleType
    transforms: types.ModuleType
    dataset: types.ModuleType

    @contextlib.contextmanager
    def norm(self, norm: Norm) -> Iterator[None]:
        """Choose, for the block, how the repaired distance computes its norm."""
        before = _ChannelDistance.norm
        _ChannelDistance.norm = norm
        try:
            yield
        finally:
            _ChannelDistance.norm = before

    def pan_lite(self, *, backbone: str, classes: int, segments: int, frames: int) -> torch.nn.Module:
        """Build the official PAN-Lite with VAP and random weights, in evaluation mode."""
        with _without_output():
            model = self.models.PAN(
                classes,
                segments,
                "Lite",
                base_model=backbone,
                pretrain="",
                is_shift=True,
                data_length=frames,
                has_VAP=True,
                dropout=0.5,
                partial_bn=False,
            )
            model.eval()  # returns nothing in the official class, so it cannot be chained
        return model

    def network_of(self, ours: Checkpoint) -> torch.nn.Module:
        """Build the official network of a PAN-Lite checkpoint, with its weights."""
        backbone = ours.name.removeprefix("pan-lite-r")
        segments, frames = ours.spec.segments, ours.spec.frames_per_segment
        theirs = self.pan_lite(backbone=f"resnet{backbone}", classes=len(ours.labels), segments=segments, frames=frames)
        copy_weights(ours.model, theirs)
        return theirs

    def persistence(self, *, frames: int) -> torch.nn.Module:
        """Build the official PA module for stacks of `frames` frames."""
        return self.parts.PA(frames).eval()

    def persistence_of(self, ours: MotionRecognizer) -> torch.nn.Module:
        """Build the official PA module with the weights of ours."""
        theirs = self.persistence(frames=ours.spec.frames_per_segment)
        with torch.no_grad():
            theirs.get_submodule("shallow_conv").get_parameter("weight").copy_(ours.get_parameter("persistence.weight"))
        return theirs

    def runs_of(self, network: torch.nn.Module, clip: np.ndarray, spec: ClipSpec) -> dict[Norm, Callable[[np.ndarray], np.ndarray]]:
        """Return norm -> what runs a network on this clip, uint8 `[B, N, m, H, W, 3]`, for each of `NORMS`."""
        layout = official_layout(clip, mean=spec.mean, std=spec.std)

        def run(norm: Norm, _: np.ndarray) -> np.ndarray:
            with self.norm(norm), torch.inference_mode():
                return network(layout).numpy()

        return {norm: partial(run, norm) for norm in NORMS}

    def path_of(self, network: torch.nn.Module, video: Path, spec: ClipSpec, *, folder: Path) -> OfficialPath:
        """Return the steps from a video file to the scores; JPEGs are written to `folder`."""
        return OfficialPath(official=self, network=network, video=video, spec=spec, folder=folder)

    def load_stack(self, folder: Path, *, frames: int, segments: int, frames_per_segment: int, model: torch.nn.Module) -> torch.Tensor:
        """Load the test clip of a folder of JPEGs by the official data set and transforms: float32 `[1, N*m*3, H, W]`."""
        from torchvision.transforms import Compose

        listing = folder.with_suffix(".txt")
        listing.write_text(f"{folder.name} {frames} 0\n", encoding="utf-8")
        official = self.transforms
        steps = [
            official.GroupScale(model.scale_size),
            official.GroupCenterCrop(model.input_size),
            official.Stack(roll=False),
            official.ToTorchFormatTensor(div=True),
            official.GroupNormalize(model.input_mean, model.input_std),
        ]
        with _without_output():
            data = self.dataset.PANDataSet(
                str(folder.parent),
                str(listing),
                num_segments=segments,
                new_length=frames_per_segment,
                modality="Lite",
                image_tmpl="{:06d}.jpg",
                transform=Compose(steps),
                random_shift=False,
                test_mode=True,
            )
            clip, _ = data[0]
        return clip.unsqueeze(0)


@dataclass(kw_only=True)
class OfficialPath:
    """From a video file to the scores: extract every frame as a JPEG, load the clip from JPEGs, run the network, in this order."""

    official: OfficialCode
    network: torch.nn.Module
    video: Path
    spec: ClipSpec
    folder: Path
    jpegs: int = 0
    how: str = ""
    """What extracted the JPEGs: see `extract_jpegs`."""
    clip: torch.Tensor | None = None

    def extract(self) -> None:
        """Write the JPEGs into an empty folder."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.jpegs, self.how = extract_jpegs(self.video, self.folder)

    def load(self) -> None:
        """Load and transform the clip by the official data set."""
        segments, frames = self.spec.segments, self.spec.frames_per_segment
        load = self.official.load_stack
        self.clip = load(self.folder, frames=self.jpegs, segments=segments, frames_per_segment=frames, model=self.network)

    def forward(self) -> None:
        """Run the network."""
        assert self.clip is not None
        with torch.inference_mode():
            self.network(self.clip)


def load_official(path: Path) -> OfficialCode:
    """Import the official code from the user's clone, its one broken call repaired.

    Raises:
        FlowlessError: `path` is not a clone of it, or the clone does not import here.
    """
    missing = [name for name in _NEEDED if not (path / name).is_file()]
    if missing:
        raise FlowlessError(
            f"{path}: this is not a clone of the official PAN code ({', '.join(missing)} not found). "
            f"Make one with: git clone {URL}    and give its folder: --official PAN-PyTorch"
        )
    with _without_output(), _imported_from(path):
        try:
            modules = {name: importlib.import_module(f"ops.{name}") for name in ("models", "PAN_modules", "transforms", "dataset")}
        except Exception as error:
            raise FlowlessError(f"{path}: the official code does not import here ({type(error).__name__}: {error}).") from error
    parts = modules["PAN_modules"]
    parts.nn = _RepairedLayers()  # pyright: ignore[reportAttributeAccessIssue]
    return OfficialCode(
        folder=path,
        commit=_commit(path),
        models=modules["models"],
        parts=parts,
        transforms=modules["transforms"],
        dataset=modules["dataset"],
    )


def official_layout(clip: np.ndarray, *, mean: tuple[float, ...], std: tuple[float, ...]) -> torch.Tensor:
    """Return the official network's input of a clip.

    Args:
        clip: uint8 `[B, N, m, H, W, 3]`.
        mean: of R, G, B, in the range 0 to 1.
        std: of R, G, B, in the range 0 to 1.

    Returns:
        float32 `[B, N*m*3, H, W]`: segment, then frame, then colour.
    """
    pixels = torch.from_numpy(np.ascontiguousarray(clip)).float() / 255
    pixels = (pixels - torch.tensor(mean)) / torch.tensor(std)
    batch, segments, frames, height, width, _ = pixels.shape
    return pixels.permute(0, 1, 2, 5, 3, 4).reshape(batch, segments * frames * 3, height, width).contiguous()


def extract_jpegs(video: Path, folder: Path) -> tuple[int, str]:
    """Write every frame of a video as a JPEG of height 256 and best quality into `folder`, as the official tool does.

    The `ffmpeg` program does it where it is installed, by the official command line; otherwise its library (libav) through PyAV.

    Returns:
        How many JPEGs there are now, and `ffmpeg` or `libav through PyAV`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    program = shutil.which("ffmpeg")
    if program:
        command = [program, "-v", "error", "-i", str(video), "-threads", "1", "-vf", "scale=-1:256", "-q:v", "0", str(folder / "%06d.jpg")]
        subprocess.run(command, check=True)
        how = "ffmpeg"
    else:
        _extract_with_libav(video, folder)
        how = "libav through PyAV"
    return sum(1 for _ in folder.glob("*.jpg")), how


def _extract_with_libav(video: Path, folder: Path) -> None:
    import av

    with av.open(str(video)) as source, av.open(str(folder / "%06d.jpg"), "w", format="image2") as sink:
        stream = source.streams.video[0]
        stream.thread_type = "AUTO"
        # Quality 0 of the command line is the encoder's constant-quantiser mode at its finest.
        output = sink.add_stream("mjpeg", rate=25, options={"flags": "+qscale", "global_quality": "0", "threads": "1"})
        output.height = 256
        output.width = round(256 * stream.width / stream.height)
        output.pix_fmt = "yuvj420p"
        for number, frame in enumerate(source.decode(stream)):
            picture = frame.reformat(width=output.width, height=256, format="yuvj420p", interpolation="BICUBIC")
            picture.pts, picture.time_base = number, Fraction(1, 25)
            sink.mux(output.encode(picture))
        sink.mux(output.encode(None))


@contextlib.contextmanager
def _imported_from(path: Path) -> Iterator[None]:
    """Put the clone first on the import path for the block; lmdb, which is not used here, is an empty module where it is missing."""
    for name in [name for name in sys.modules if name == "ops" or name.startswith("ops.")]:
        del sys.modules[name]
    empty_lmdb = "lmdb" not in sys.modules and importlib.util.find_spec("lmdb") is None
    if empty_lmdb:
        sys.modules["lmdb"] = types.ModuleType("lmdb")
    sys.path.insert(0, str(path.resolve()))
    try:
        yield
    finally:
        sys.path.remove(str(path.resolve()))
        if empty_lmdb:
            del sys.modules["lmdb"]


@contextlib.contextmanager
def _without_output() -> Iterator[None]:
    """Hide what it prints, and warnings about its calls of 2020."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _commit(path: Path) -> str:
    program = shutil.which("git")
    if program is None:
        return ""
    found = subprocess.run([program, "-C", str(path), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return found.stdout.strip() if found.returncode == 0 else ""


def copy_weights(ours: torch.nn.Module, official: torch.nn.Module) -> None:
    """Copy the weights of our PAN-Lite into the official one, so that both compute the same function.

    Raises:
        FlowlessError: The clone's network has other layers.
    """
    names = (("backbone.", "base_model."), ("head.", "base_model.fc."), ("persistence.", "PA.shallow_conv."))
    weights = {}
    for name, value in ours.state_dict().items():
        start, theirs = next((start, theirs) for start, theirs in names if name.startswith(start))
        weights[theirs + name.removeprefix(start)] = value
    try:
        official.load_state_dict(weights)
    except RuntimeError as error:
        raise FlowlessError(
            f"The clone's network has other layers than the published PAN-Lite ({first_line(error)}). Use an unchanged clone of {URL}."
        ) from error
