"""Packing: a copy of a bundle cut down to the one engine that ships, with a note on licences."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

from flowless.engines.backends.backend import why_not
from flowless.engines.bundle.manifest import MANIFEST, Artefact, Manifest, fingerprint, read_manifest
from flowless.engines.loading import check_precision, choose
from flowless.engines.targets import find_target
from flowless.errors import FlowlessError
from flowless.files import whole_folder

LICENCE_NOTE = "LICENSE-NOTE.txt"
_LIBRARIES = (".so", ".dll")


def pack(
    bundle: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    target: str | None = None,
    precision: str | None = None,
) -> Manifest:
    """Copy a bundle with one of its engines alone: manifest, labels, that engine's files, and a note on licences.

    The files that are kept have the fingerprints of the full bundle. A packed bundle is loaded as the full one; no engine can be built
    into it.

    Args:
        bundle: The full bundle's folder, which stays as it is.
        out: The new folder; without one `BUNDLE-TARGET-PRECISION`, beside the bundle. A packed bundle there is replaced, anything else
            is refused.
        target: `tensorrt`, `tensorrt-rtx`, `openvino` or `onnxruntime`; the machine need not be able to run it.
        precision: `fp32`, `bf16`, `fp16` or `int8`. Where several engines fit, the one that `flowless.load` chooses here.

    Returns:
        The packed bundle's manifest.

    Raises:
        FlowlessError: The bundle is damaged or has no such engine, none of several runs here, or `out` cannot be used.
    """
    if target is not None:
        find_target(target)
    check_precision(precision)
    manifest = read_manifest(bundle)
    artefact = _engine_to_ship(manifest, target, precision)
    folder = _default_folder(manifest.folder, artefact) if out is None else Path(out)
    _refuse_folder(folder, manifest.folder)
    names = manifest.files_of(artefact)
    manifest.check(names)
    mine = (artefact.target, artefact.precision)
    with whole_folder(folder) as draft:
        for name in names:
            copy = draft / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(manifest.path_of(name), copy)
        packed = replace(
            manifest,
            folder=draft,
            calibration=manifest.calibration if artefact.precision == "int8" else None,
            trials=tuple(row for row in manifest.trials if (row.get("target"), row.get("precision")) == mine),
            files={name: manifest.files[name] for name in names},
            artefacts=(artefact,),
        )
        packed.check(names)
        (draft / LICENCE_NOTE).write_text(licence_note(packed), encoding="utf-8")
        packed = replace(packed, files={**packed.files, LICENCE_NOTE: fingerprint(draft / LICENCE_NOTE)})
        packed.write()
    return replace(packed, folder=folder)


def _engine_to_ship(manifest: Manifest, target: str | None, precision: str | None) -> Artefact:
    """Return the one engine that fits, or of several the one that `flowless.load` chooses here."""
    fitting = [item for item in manifest.artefacts if target in {None, item.target} and precision in {None, item.precision}]
    if len(fitting) == 1:
        return fitting[0]
    have = f"The bundle's engines: {manifest.engine_names}."
    if not fitting:
        wanted = " ".join(filter(None, ("no engine", target, precision)))
        build = f"flowless build {manifest.folder} --target {target or 'openvino'} --precision {precision or 'fp32'}"
        remedy = "Pack one of these, or use the full bundle" if manifest.packed else f"Pack one of these, or build it first: {build}"
        raise FlowlessError(f"{manifest.folder}: {wanted}. {have} {remedy}.")
    if all(why_not(item.target, item) for item in fitting):
        raise FlowlessError(f"{manifest.folder}: several engines fit, and none runs here. {have} Name one: --target T --precision P.")
    return choose(manifest, target, precision)[0]


def _default_folder(bundle: Path, artefact: Artefact) -> Path:
    place = bundle if bundle.name not in {"", ".."} else bundle.resolve()
    return place.with_name(f"{place.name}-{artefact.target}-{artefact.precision}")


def _refuse_folder(folder: Path, bundle: Path) -> None:
    """Raise FlowlessError where writing `folder` would replace or enter what is not a packed bundle."""
    target, source = folder.resolve(), bundle.resolve()
    if target.is_relative_to(source) or source.is_relative_to(target):
        raise FlowlessError(f"{folder}: is the bundle {bundle}, lies in it or holds it. Name another place with --out.")
    if folder.exists() and not folder.is_dir():
        raise FlowlessError(f"{folder}: is a file; a bundle is a folder. Name another place with --out.")
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    if not (folder / MANIFEST).is_file():
        raise FlowlessError(
            f"{folder}: there is a folder already, and it is not a bundle. Name another place with --out, or remove the folder."
        )
    there = read_manifest(folder)
    if not there.packed:
        raise FlowlessError(f"{folder}: there is a full bundle already; only a packed one is replaced. Name another place with --out.")
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}
    if others := sorted(files - {MANIFEST, *there.files}):
        raise FlowlessError(
            f"{folder}: has a file that is not the packed bundle's: {others[0]}. Move it, or name another place with --out."
        )


def licence_note(manifest: Manifest) -> str:
    """Return what a packed bundle holds, and the licences of flowless and of the library that runs its engine."""
    from flowless import __version__

    (engine,) = manifest.artefacts
    libraries = [name for name in manifest.files if name.endswith(_LIBRARIES)]
    files = {MANIFEST: "the clip, the labels, the SHA-256 of the other files, what was measured, names of the videos used for that"}
    files[LICENCE_NOTE] = "this note"
    files |= {name: "TensorRT plugin, a part of flowless" if name in libraries else "engine" for name in manifest.files}
    width = max(map(len, files))
    lines = [
        f"A flowless bundle with one engine, made by flowless pack (flowless {__version__}).",
        "",
        f"Model: {manifest.model}, {len(manifest.labels)} classes",
        f"Engine: {engine.target} {engine.precision}, {engine.status}",
        "",
        "Files",
        *(f"  {name:<{width}}  {meaning}" for name, meaning in files.items()),
        "",
        "Licences",
        "- flowless, which made these files and runs them: Apache License 2.0.",
        f"- {find_target(engine.target).licence}. It runs the engine and is not part of this folder.",
    ]
    if engine.options.get("portable"):
        lines.append("- The engine is portable: TensorRT put its own runtime, which is NVIDIA's, into the engine's file.")
    lines += [
        "- The weights in the engine: their terms follow those of the videos that the model was trained on, and of the pretrained weights",
        "  that the training started from. Neither is recorded here; the checkpoint has the recipe of the training.",
    ]
    return "\n".join([*lines, ""])
