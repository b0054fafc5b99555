"""Loading a bundle: choosing the engine for this machine and opening it."""

from __future__ import annotations

import os
from collections.abc import Sequence

from flowless.engines.backends.backend import open_backend, why_not
from flowless.engines.backends.openvino_core import HINTS, other_arithmetic
from flowless.engines.bundle.manifest import Artefact, Manifest, read_manifest
from flowless.engines.engine import Engine
from flowless.engines.targets import TARGETS, Target, find_target
from flowless.errors import FlowlessError
from flowless.machine import machine_name

#: Preference among a target's precisions: lower precisions were verified when they were built, so the exact one comes last.
_PREFERRED = ("int8", "fp16", "bf16", "fp32")


def load(
    bundle: str | os.PathLike[str],
    target: str | None = None,
    precision: str | None = None,
    *,
    threads: int | None = None,
    hint: str | None = None,
    warm_up: bool | int = False,
    cuda_graph: bool = False,
) -> Engine:
    """Load a bundle: the fastest target that this machine can run, unless one is named.

    Only the files that are loaded are checked against their hashes, so that a bundle of many engines opens quickly.

    Args:
        bundle: The bundle's folder.
        target: `tensorrt`, `tensorrt-rtx`, `openvino` or `onnxruntime`; None takes the first of these that runs here.
        precision: `fp32`, `bf16`, `fp16` or `int8`; None takes what the bundle has for the target.
        threads: CPU threads; None lets the library choose.
        hint: OpenVINO: precision to compute an fp32 engine in, `f32` (the default), `bf16` or `f16`. `bf16` is about twice
            as fast where the processor has it, and rounds to 8 bits; its scores were not compared with PyTorch's.
        warm_up: True runs the engine on a blank clip before it is returned, a number on a batch of that many (`Engine.warm_up`), so
            that the first real call is not slower than the others.
        cuda_graph: TensorRT-RTX: let it capture its work as a CUDA graph and replay that, which saves launches. Not yet run on a GPU.

    Returns:
        An engine. Its `why` says what was chosen and why not the others. Its `precision` is the one that it computes in; where OpenVINO
        silently falls back to another one on this processor, `why` says so. Its `warm_up_seconds` is what the warm-up took.

    Raises:
        FlowlessError: The bundle is damaged, or has no engine that runs here.
    """
    if target is not None:
        find_target(target)
    check_precision(precision)
    target = _target_of_options(target, hint=hint, cuda_graph=cuda_graph)
    if threads is not None and threads < 1:
        raise FlowlessError(f"threads is {threads}; it must be at least 1.")
    if not isinstance(warm_up, int) or warm_up < 0:
        raise FlowlessError(f"warm_up is {warm_up!r}; it must be True, False, or the number of clips in a batch.")
    manifest = read_manifest(bundle)
    artefact, why = choose(manifest, target, precision)
    manifest.check(manifest.files_of(artefact))
    path, classes = manifest.path_of(artefact.files[0]), len(manifest.labels)
    backend = open_backend(artefact, path, classes=classes, state=manifest.state, threads=threads, hint=hint, cuda_graph=cuda_graph)
    computed, reason = computed_precision(artefact, hint)
    why += reason
    if backend.fallback:
        why += f"; on the {backend.device}, because {backend.fallback}"
    engine = Engine(backend, manifest=manifest, target=artefact.target, precision=computed, why=why)
    if warm_up:
        engine.warm_up(int(warm_up))
    return engine


def check_precision(precision: str | None) -> None:
    """Raise FlowlessError for a precision that no engine has; None is any."""
    if precision is not None and precision not in _PREFERRED:
        raise FlowlessError(f"precision is {precision!r}; it must be one of {', '.join(reversed(_PREFERRED))}.")


def _target_of_options(target: str | None, *, hint: str | None, cuda_graph: bool) -> str | None:
    """Return the target that an option implies which one target alone has; raise FlowlessError where another is named."""
    if hint is not None:
        if hint not in HINTS:
            raise FlowlessError(f"hint is {hint!r}; it must be one of {', '.join(HINTS)}.")
        if target not in {None, "openvino"}:
            raise FlowlessError(f"hint is {hint!r} and target {target!r}; only openvino takes a hint.")
        target = "openvino"
    if cuda_graph:
        if target not in {None, "tensorrt-rtx"}:
            raise FlowlessError(f"cuda_graph is True and target {target!r}; only tensorrt-rtx captures CUDA graphs. Leave one of them out.")
        target = "tensorrt-rtx"
    return target


def computed_precision(artefact: Artefact, hint: str | None) -> tuple[str, str]:
    """Return the precision that an engine computes in on this processor, and what `Engine.why` adds about it."""
    if artefact.target != "openvino" or artefact.precision == "int8":
        return artefact.precision, ""
    asked = hint or artefact.options.get("hint", "f32")
    other = other_arithmetic(asked)
    if other:
        return other, f", computing in {other}: OpenVINO does not compute in {HINTS[asked]} on this processor"
    return HINTS[asked], f", computing in {HINTS[asked]} by its hint" if hint else ""


def choose(manifest: Manifest, target: str | None, precision: str | None) -> tuple[Artefact, str]:
    """Return the engine to open and the sentence that says why; arguments and errors are those of `load`."""
    passed_over: list[str] = []
    for name in (target,) if target else _order(manifest, precision):
        reason, artefact = _candidate(manifest, name, precision)
        if artefact is not None and reason is None:
            because = "asked for" if target else "the fastest engine of this bundle that runs here"
            if not target and recommendation(manifest) == (name, artefact.precision):
                because = "what flowless build --precision auto found the fastest"
            why = f"{name} {artefact.precision}: {because} ({artefact.status})"
            return artefact, "; ".join([why, *passed_over])
        passed_over.append(f"not {name}: {reason}")
    wanted = " ".join(filter(None, (target, precision)))
    missing = f"no engine {wanted} that runs here" if wanted else "no engine that runs here"
    raise FlowlessError(
        f"{manifest.folder}: {missing} ({'; '.join(passed_over)}). The bundle's engines: {manifest.engine_names}. "
        f"{_remedy(manifest, target, precision)}"
    )


def _remedy(manifest: Manifest, target: str | None, precision: str | None) -> str:
    """Return what to do where a bundle has no engine of a target and precision that runs here."""
    if manifest.packed:
        return "It is a packed bundle: pack another engine of the full bundle, with: flowless pack BUNDLE --target T --precision P"
    if target and _engines(manifest, target, precision):
        return "The bundle has that engine, and what it needs is not here; name another target, or none."
    build = (target or "openvino") + (f" --precision {precision}" if precision else "")
    return f"Build one with: flowless build {manifest.folder} --target {build}"


def _order(manifest: Manifest, precision: str | None) -> list[Target]:
    """Return the targets in the order to try: those of GPUs first, then those of CPUs, the one measured fastest here first."""
    best = recommendation(manifest)
    there: dict[Target, list[Artefact]] = {name: _engines(manifest, name, precision) for name in TARGETS}
    on_cpu: list[Target] = [name for name, library in TARGETS.items() if there[name] and not library.gpu_to_run and why_not(name) is None]
    measured = {name: latency for name in on_cpu if (latency := _latency(there[name])) is not None}
    # Times decide only where every candidate has one.
    times = measured if len(measured) == len(on_cpu) else {}

    def rank(name: Target) -> tuple[bool, bool, float]:
        return not TARGETS[name].gpu_to_run, best is None or name != best[0], times.get(name, 0.0)

    return sorted(TARGETS, key=rank)  # stable: equal targets stay in the table's order


def _engines(manifest: Manifest, target: str, precision: str | None) -> list[Artefact]:
    """Return a bundle's engines of a target, of any precision or of one."""
    return [item for item in manifest.artefacts if item.target == target and precision in {None, item.precision}]


def _latency(engines: Sequence[Artefact]) -> float | None:
    """Return the shortest latency of engines, in ms a clip, measured when they were built; None where one was not timed here."""
    here = machine_name()
    timed = [item.figures for item in engines if item.figures.get("machine") == here]
    times = [figures["latency_ms_p50"] for figures in timed if "latency_ms_p50" in figures]
    return min(times) if times and len(times) == len(engines) else None


def recommendation(manifest: Manifest) -> tuple[str, str] | None:
    """Return the target and precision that `flowless build --precision auto` recommends for this machine; None without such a row."""
    rows = [row for row in manifest.trials if row.get("recommended")]
    here = machine_name() if rows else ""
    return next(((row["target"], row["precision"]) for row in rows if row.get("machine") == here), None)


def _candidate(manifest: Manifest, target: str, precision: str | None) -> tuple[str | None, Artefact | None]:
    """Return the artefact of a target to load, or why none of them can be loaded."""
    there = _engines(manifest, target, precision)
    if not there:
        return "the bundle has no such engine", None
    recommended = recommendation(manifest)
    timed = _latency(there) is not None

    def rank(item: Artefact) -> tuple[bool, bool, float, int]:
        # Where this processor computes in another precision than the engine's, the engine is no faster here than the fp32 one.
        otherwise = why_not(target, item) is None and computed_precision(item, None)[0] != item.precision
        time = item.figures["latency_ms_p50"] if timed else 0.0
        return (target, item.precision) != recommended, otherwise, time, _PREFERRED.index(item.precision)

    reasons = []
    for artefact in sorted(there, key=rank):
        reason = why_not(target, artefact)
        if reason is None:
            return None, artefact
        reasons.append(reason)
    return reasons[0], None
