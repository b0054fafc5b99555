"""The bundle's manifest: its engines, its files with their hashes, and what was measured when they were made."""

from __future__ import annotations

import math
import os
import posixpath
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal, get_args

from flowless.engines.bundle.field_types import MOST_ELEMENTS, check_fields, parse_json
from flowless.engines.streaming.state import FEATURES, FRAMES, STARTED, StateTensor
from flowless.engines.targets import TARGETS, Target
from flowless.errors import FlowlessError
from flowless.files import sha256_of, write_json
from flowless.pipeline.clip.spec import ClipSpec

FORMAT = "flowless-bundle"
VERSION = 1
MANIFEST = "manifest.json"

#: `verified`: compared with PyTorch when it was built. `built, not compared`: runs here, its weights are random or the comparison was
#: switched off. `built, not run here`: accepted by the builder, never run.
Status = Literal["verified", "built, not compared", "built, not run here"]


@dataclass(frozen=True, kw_only=True)
class FileRecord:
    """Size and hash of one file."""

    sha256: str
    """64 hexadecimal digits."""
    bytes: int
    """Size, in bytes."""


@dataclass(frozen=True, kw_only=True)
class Artefact:
    """One engine of a bundle."""

    target: Target
    """Library that runs it."""
    precision: str
    """Precision of the graph: `fp32`, `bf16`, `fp16` or `int8`."""
    status: Status
    """Whether it was compared with PyTorch when it was built."""
    files: tuple[str, ...]
    """Its files, relative to the bundle, the one to load first."""
    max_abs_diff: float | None = None
    """Largest difference of a score from PyTorch's on the reference clips; None where it was not run."""
    versions: dict[str, str] = field(default_factory=dict)
    """Version of the library that built it."""
    options: dict[str, Any] = field(default_factory=dict)
    """How it was built: compute capabilities, batch profile; OpenVINO: the precision hint that it is compiled with (`hint`)."""
    figures: dict[str, Any] = field(default_factory=dict)
    """What its gates measured: parity, accuracy, latency, layers by precision."""
    key: str = ""
    """SHA-256 over everything that decides the engine; an engine with the same key is not built again."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Contents of `manifest.json`."""

    folder: Path
    """The bundle."""
    model: str
    """Name of the model, such as `pan-lite-r50`."""
    spec: ClipSpec
    """What a clip is."""
    labels: tuple[str, ...]
    """Class names in the order of the scores."""
    opset: int
    """ONNX operator set of the graph."""
    config: dict[str, Any] = field(default_factory=dict)
    """What the model was built with besides its name and `spec`, such as `width`; empty in older bundles."""
    memory: int = 0
    """Earlier frames that an online graph takes beside the newest one, N - 1 (`engines/streaming/memory.py`); 0: it takes whole clips."""
    state: tuple[StateTensor, ...] = ()
    """What a streaming graph keeps from one frame to the next, in the order of its inputs (`engines/streaming/state.py`); empty: it keeps
    nothing."""
    graph: str = "model.onnx"
    """The ONNX graph that every artefact was built from; a packed bundle has it only where its engine needs it."""
    reference: str = "reference.npz"
    """Clips, and PyTorch's scores of them, that an artefact is compared with; a packed bundle has none."""
    versions: dict[str, str] = field(default_factory=dict)
    """Libraries that made the graph."""
    parity: dict[str, Any] = field(default_factory=dict)
    """Record of the comparison at export."""
    calibration: dict[str, Any] | None = None
    """How quantisation was calibrated: videos, method, SHA-256 of the scales; None while nothing is quantised."""
    trials: tuple[dict[str, Any], ...] = ()
    """Rows of `--precision auto`, one per target and precision: kept, or why not; `recommended` in at most one row per machine."""
    files: dict[str, FileRecord] = field(default_factory=dict)
    """Every file of the bundle but the manifest."""
    artefacts: tuple[Artefact, ...] = ()
    """The engines."""

    def artefact(self, target: str, precision: str) -> Artefact | None:
        """Return the engine of a target and precision, None where the bundle has none."""
        return next((item for item in self.artefacts if (item.target, item.precision) == (target, precision)), None)

    @property
    def engine_names(self) -> str:
        """The engines by target and precision, for messages."""
        return ", ".join(f"{item.target} {item.precision}" for item in self.artefacts) or "none"

    def files_of(self, artefact: Artefact) -> tuple[str, ...]:
        """Return the files that loading an engine reads: its own, and the graph that an engine without weights takes them from."""
        graph = artefact.options.get("refit_from") if artefact.options.get("stripped") else None
        if not graph:
            return artefact.files
        beside = posixpath.join(posixpath.dirname(artefact.files[0]), str(graph))
        return tuple(dict.fromkeys((*artefact.files, posixpath.normpath(beside))))

    @property
    def packed(self) -> bool:
        """Whether `flowless pack` cut the bundle down to one engine: then the reference clips are not among its files."""
        return self.reference not in self.files and len(self.artefacts) == 1

    def refuse_packed(self) -> None:
        """Raise FlowlessError where the bundle is packed, because engines are built from files that it does not have."""
        if self.packed:
            missing = " and ".join(name for name in (self.graph, self.reference) if name not in self.files)
            (engine,) = self.artefacts
            raise FlowlessError(
                f"{self.folder}: a packed bundle: it has the engine {engine.target} {engine.precision} alone, without {missing}. "
                "Use the full bundle that flowless pack made it from."
            )

    def path_of(self, name: str) -> Path:
        """Return the path of one of the bundle's files; refuse a name that leads out of the bundle."""
        pure = PurePosixPath(name)
        path = self.folder / pure
        # Not Path.resolve, which raises RuntimeError for links in a circle.
        inside = Path(os.path.realpath(path)).is_relative_to(os.path.realpath(self.folder))
        if not name or pure.is_absolute() or ".." in pure.parts or "\\" in name or ":" in name or not inside:
            raise FlowlessError(
                f"{self.folder / MANIFEST}: names the file {name!r}, which lies outside the bundle. "
                "Only files below the bundle's folder are allowed; do not trust this bundle, export the model again."
            )
        return path

    def check(self, names: Iterable[str]) -> None:
        """Compare files with their fingerprints; raise FlowlessError naming the first that is missing or altered."""
        for name in names:
            path = self.path_of(name)
            record = self.files.get(name)
            if record is None:
                if name in {self.graph, self.reference}:
                    self.refuse_packed()
                raise FlowlessError(f"{self.folder / MANIFEST}: has no fingerprint of {name!r}. Export the model again.")
            if not path.is_file():
                raise FlowlessError(f"{path}: this file of the bundle is missing. Copy the bundle again, whole, or export the model again.")
            if path.stat().st_size != record.bytes or sha256_of(path) != record.sha256:
                raise FlowlessError(
                    f"{path}: damaged: its SHA-256 is not the manifest's. Copy the bundle again, or export and build the model again."
                )

    def with_artefact(self, artefact: Artefact) -> Manifest:
        """Return the manifest with an artefact added, in place of one with the same target and precision."""
        base = self.without_artefact(artefact.target, artefact.precision)
        added = {name: fingerprint(self.folder / name) for name in artefact.files if name not in base.files}
        return replace(base, files={**base.files, **added}, artefacts=(*base.artefacts, artefact))

    def without_artefact(self, target: str, precision: str) -> Manifest:
        """Return the manifest without an artefact and without the files that only this artefact used."""
        kept = tuple(item for item in self.artefacts if (item.target, item.precision) != (target, precision))
        used = {self.graph, self.reference, *(name for item in kept for name in item.files)}
        return replace(self, files={name: record for name, record in self.files.items() if name in used}, artefacts=kept)

    def write(self) -> None:
        """Write `manifest.json` into the folder, whole or not at all."""
        document: dict[str, Any] = {"format": FORMAT, "version": VERSION}
        document.update({item.name: getattr(self, item.name) for item in fields(self) if item.name != "folder"})
        document["spec"] = self.spec.to_dict()
        document["state"] = [asdict(tensor) for tensor in self.state]
        document["files"] = {name: asdict(record) for name, record in sorted(self.files.items())}
        document["artefacts"] = [asdict(item) for item in self.artefacts]
        write_json(self.folder / MANIFEST, document)


def read_manifest(bundle: str | os.PathLike[str]) -> Manifest:
    """Read a bundle's manifest.

    Args:
        bundle: The bundle's folder.

    Raises:
        FlowlessError: There is no bundle there, or it is damaged, foreign or of a newer version.
    """
    folder = Path(bundle)
    path = folder / MANIFEST
    if folder.is_file() and folder.name == MANIFEST:
        raise FlowlessError(f"{folder}: the manifest of a bundle; give the bundle's folder, {folder.parent}.")
    if folder.is_file():
        raise FlowlessError(f"{folder}: a file. A bundle is a folder with {MANIFEST}; make one with: flowless export {folder} --out BUNDLE")
    if not folder.is_dir():
        raise FlowlessError(
            f"{folder}: no such folder. A bundle is a folder with {MANIFEST}; make one with: flowless export CHECKPOINT --out {folder}"
        )
    if path.exists() and not path.is_file():
        raise FlowlessError(f"{path}: not a regular file. Copy the bundle again, or export the model again.")
    try:
        document = parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FlowlessError(
            f"{folder}: not a bundle: it has no {MANIFEST}. Make one with: flowless export CHECKPOINT --out BUNDLE"
        ) from None
    except OSError as error:
        raise FlowlessError(f"{path}: cannot be read ({error.strerror}).") from error
    except ValueError as error:
        raise FlowlessError(f"{path}: damaged: not JSON ({error}). Copy the bundle again, or export the model again.") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise FlowlessError(f"{path}: not the manifest of a {FORMAT}. Make a bundle with: flowless export CHECKPOINT --out BUNDLE")
    version = document.get("version")
    if type(version) is not int or version != VERSION:
        hint = "Update flowless" if type(version) is int and version > VERSION else "Export the model again"
        raise FlowlessError(f"{path}: is a {FORMAT} of version {version!r}; this flowless reads version {VERSION}. {hint}.")
    try:
        return _parse(folder, document)
    except ValueError as error:
        raise FlowlessError(f"{path}: damaged ({error}). Copy the bundle again, or export the model again.") from error


def fingerprint(path: Path) -> FileRecord:
    """Return the size and hash of a file."""
    return FileRecord(sha256=sha256_of(path), bytes=path.stat().st_size)


def _parse(folder: Path, document: dict[str, Any]) -> Manifest:
    body = {name: value for name, value in document.items() if name not in {"format", "version"}}
    for name, absent in (("trials", []), ("memory", 0), ("config", {}), ("state", [])):
        body.setdefault(name, absent)  # older bundles have none
    check_fields(body)
    if not body["labels"]:
        raise ValueError("labels must be a list of at least one name")
    try:
        spec = ClipSpec.from_dict(body["spec"])
    except FlowlessError as error:
        raise FlowlessError(f"{folder / MANIFEST}: {error}") from error
    manifest = Manifest(
        **{
            **body,
            "folder": folder,
            "spec": spec,
            "labels": tuple(body["labels"]),
            "state": tuple(StateTensor(**{**tensor, "shape": tuple(tensor["shape"])}) for tensor in body["state"]),
            "files": {name: FileRecord(**record) for name, record in body["files"].items()},
            "trials": tuple(body["trials"]),
            "artefacts": tuple(Artefact(**{**item, "files": tuple(item["files"])}) for item in body["artefacts"]),
        }
    )
    if manifest.memory not in {0, manifest.spec.segments - 1} or (manifest.memory and manifest.spec.frames_per_segment != 1):
        raise ValueError(f"memory is {manifest.memory!r} of a clip of {list(manifest.spec.shape)}")
    _check_state(manifest)
    for item in manifest.artefacts:
        if item.target not in TARGETS or item.status not in get_args(Status) or not item.files:
            raise ValueError(f"artefact {item.target!r} of status {item.status!r} with {len(item.files)} files is unknown")
    for name in (
        manifest.graph,
        manifest.reference,
        *sorted(manifest.files),
        *(name for item in manifest.artefacts for name in item.files),
    ):
        manifest.path_of(name)
    return manifest


def _check_state(manifest: Manifest) -> None:
    """Raise ValueError where a state does not fit the clip; C++ has the same checks in the same order."""
    if not manifest.state:
        return
    if manifest.memory:
        raise ValueError(f"memory is {manifest.memory} beside a state")
    segments, several, *picture = manifest.spec.shape
    there: dict[str, StateTensor] = {}
    for tensor in manifest.state:
        if tensor.name in there:
            raise ValueError(f"state has the name {tensor.name!r} twice")
        if math.prod(tensor.shape) > MOST_ELEMENTS:
            raise ValueError(f"state {tensor} has more than 2^31 - 1 elements")
        there[tensor.name] = tensor
    features = there[FEATURES].shape[-1] if FEATURES in there else 1
    wanted = [StateTensor(name=STARTED, shape=(2,), dtype="float32")]
    if segments > 1:
        wanted.append(StateTensor(name=FEATURES, shape=(segments - 1, features), dtype="float32"))
    if several > 1:
        wanted.append(StateTensor(name=FRAMES, shape=(several - 1, *picture), dtype="uint8"))
    by_name = {tensor.name: tensor for tensor in wanted}
    for name in (STARTED, FEATURES, FRAMES):
        if there.get(name) != by_name.get(name):
            found = there.get(name, f"{name}: missing")
            raise ValueError(f"state {found} for a clip of {list(manifest.spec.shape)}")
