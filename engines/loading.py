"""Choosing the engine of a bundle that suits this machine, and opening it."""

from __future__ import annotations

import os
from collections.abc import Sequence

from flowless.engines.backends.backend import HINTS, LIBRARIES, open_backend, other_arithmetic, why_not
from flowless.engines.bundle.manifest import TARGETS, Artefact, Manifest, read_manifest
from flowless.engines.engine import Engine
from flowless.errors import FlowlessError
from flowless.machine import machine_name

#: What is taken where several precisions are there: the quickest that an export has checked, last the exact one.
_PREFERRED = ("int8", "fp16", "bf16", "fp32")


def load(
    bundle: str | os.PathLike[str],
    target: str | None = None,
    precision: str | None = None,
    *,
    threads: int | None = None,
    hint: str | None = None,
) -> Engine:
    """Load a bundle: the best target that this machine can run, unless one is named.

    Only the files that are loaded are compared with their fingerprints, so that a bundle of many engines opens quickly.

    Args:
        bundle: The bundle's folder.
        target: `tensorrt`, `tensorrt-rtx`, `openvino` or `onnxruntime`; None takes the first of these that runs here.
        precision: `fp32`, `bf16`, `fp16` or `int8`; None takes what the bundle has for the target.
        threads: CPU threads; None lets the library choose.
        hint: OpenVINO: arithmetic to compute an fp32 engine in, `f32` (the default), `bf16` or `f16`. `bf16` is about twice
            as fast where the processor has it, and rounds to 8 bits; no export has compared it with PyTorch.

    Returns:
        An engine; its `why` says what was chosen, and why not the others; its `precision` is what it computes in, and `why` says so
        where OpenVINO, which falls back without a word, lacks on this processor what was asked for.

    Raises:
        FlowlessError: The bundle is damaged, or has no engine that runs here.
    """
    if target is not None and target not in TARGETS:
        raise FlowlessError(f"target is {target!r}; it must be one of {', '.join(TARGETS)}.")
    if precision is not None and precision not in _PREFERRED:
        raise FlowlessError(f"precision is {precision!r}; it must be one of {', '.join(reversed(_PREFERRED))}.")
    if hint is not None and hint not in HINTS:
        raise FlowlessError(f"hint is {hint!r}; it must be one of {', '.join(HINTS)}.")
    if hint is not None and target is None:
        target = "openvino"
    if hint is not None and target != "openvino":
        raise FlowlessError(f"hint is {hint!r} and target {target!r}; only openvino takes a hint.")
    if threads is not None and threads < 1:
        raise FlowlessError(f"threads is {threads}; it must be at least 1.")
    manifest = read_manifest(bundle)
    artefact, why = _choose(manifest, target, precision)
    manifest.check(artefact.files)
    backend = open_backend(artefact, manifest.path_of(artefact.files[0]), classes=len(manifest.labels), threads=threads, hint=hint)
    computed, reason = _computed(artefact, hint)
    why += reason
    if backend.fallback:
        why += f"; on the {backend.device}, because {backend.fallback}"
    return Engine(backend, manifest=manifest, target=artefact.target, precision=computed, why=why)


def _computed(artefact: Artefact, hint: str | None) -> tuple[str, str]:
    """Return the precision that an engine computes in on this processor, and what `why` says of it."""
    if artefact.target != "openvino" or artefact.precision == "int8":
        return artefact.precision, ""
    asked = hint or artefact.options.get("hint", "f32")
    other = other_arithmetic(asked)
    if other:
        return other, f", computing in {other}: OpenVINO does not compute in {HINTS[asked]} on this processor"
    return HINTS[asked], f", computing in {HINTS[asked]} by its hint" if hint else ""


def _choose(manifest: Manifest, target: str | None, precision: str | None) -> tuple[Artefact, str]:
    """Return the engine to open and the sentence that says why."""
    passed_over: list[str] = []
    for name in (target,) if target else _order(manifest, precision):
        reason, artefact = _candidate(manifest, name, precision)
        if artefact is not None and reason is None:
            because = "asked for" if target else "the fastest engine of this bundle that runs here"
            if not target and _recommended(manifest) == (name, artefact.precision):
                because = "what flowless build --precision auto found the fastest"
            why = f"{name} {artefact.precision}: {because} ({artefact.status})"
            return artefact, "; ".join([why, *passed_over])
        passed_over.append(f"not {name}: {reason}")
    have = ", ".join(f"{item.target} {item.precision}" for item in manifest.artefacts) or "none"
    wanted = " ".join(filter(None, (target, precision)))
    missing = f"no engine {wanted} that runs here" if wanted else "no engine that runs here"
    build = (target or "openvino") + (f" --precision {precision}" if precision else "")
    raise FlowlessError(
        f"{manifest.folder}: {missing} ({'; '.join(passed_over)}). The bundle's engines: {have}. "
        f"Build one with: flowless build {manifest.folder} --target {build}"
    )


def _order(manifest: Manifest, precision: str | None) -> list[str]:
    """Return the targets in the order to try: a GPU's first, and of a processor's the one that was found the faster here."""
    best = _recommended(manifest)
    there = {name: _engines(manifest, name, precision) for name in TARGETS}
    on_processor = [name for name, engines in there.items() if engines and not name.startswith("tensorrt") and why_not(name) is None]
    found = {name: time for name in on_processor if (time := _time(there[name])) is not None}
    # Where one was not timed, no time counts.
    known = found if len(found) == len(on_processor) else {}

    def rank(name: str) -> tuple[bool, bool, float, int]:
        return not name.startswith("tensorrt"), best is None or name != best[0], known.get(name, 0.0), TARGETS.index(name)

    return sorted(TARGETS, key=rank)


def _engines(manifest: Manifest, target: str, precision: str | None) -> list[Artefact]:
    """Return a bundle's engines of a target, of any precision or of one."""
    return [item for item in manifest.artefacts if item.target == target and precision in {None, item.precision}]


def _time(engines: Sequence[Artefact]) -> float | None:
    """Return the shortest time of a clip, in ms, that engines had when they were built; None where one was not timed on this machine."""
    here = machine_name()
    times = [item.figures["latency_ms_p50"] for item in engines if item.figures.get("machine") == here]
    return min(times) if times and len(times) == len(engines) else None


def _recommended(manifest: Manifest) -> tuple[str, str] | None:
    """Return target and precision that `flowless build --precision auto` recommends, where it was run on a machine like this one."""
    rows = [row for row in manifest.trials if row.get("recommended")]
    here = machine_name() if rows else ""
    return next(((row["target"], row["precision"]) for row in rows if row.get("machine") == here), None)


def _candidate(manifest: Manifest, target: str, precision: str | None) -> tuple[str | None, Artefact | None]:
    """Return why a target cannot be taken (None where it can) and its artefact."""
    there = _engines(manifest, target, precision)
    if not there:
        return "the bundle has no such engine", None
    found_best = _recommended(manifest)

    timed = _time(there) is not None

    def rank(item: Artefact) -> tuple[bool, bool, float, int]:
        # What this processor would compute in another arithmetic is no quicker here than the exact engine.
        otherwise = why_not(target, item) is None and _computed(item, None)[0] != item.precision
        time = item.figures["latency_ms_p50"] if timed else 0.0
        return (target, item.precision) != found_best, otherwise, time, _PREFERRED.index(item.precision)

    reasons = []
    for artefact in sorted(there, key=rank):
        reason = why_not(target, artefact)
        if reason is None:
            return None, artefact
        reasons.append(reason)
    return reasons[0], None


def runnable() -> dict[str, str | None]:
    """Return for each target why this machine cannot run it, None where it can."""
    return {name: why_not(name) for name in LIBRARIES}
