"""Runs engines/cpp/tests/read_manifest.cpp and its counterpart in Python: reading a bundle, and choosing an engine of it."""

from __future__ import annotations

import copy
import json
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

import pytest

from flowless.engines import loading
from flowless.engines.bundle.manifest import Artefact, read_manifest
from flowless.engines.targets import TARGETS
from flowless.errors import FlowlessError

VALUES = (
    None,
    True,
    False,
    0,
    1,
    -1,
    3,
    2**63,
    1.5,
    "",
    "x",
    "..",
    "a/../b",
    "/a",
    "é'",
    [],
    {},
    [1],
    ["x"],
    {"a": 1},
    [[]],
    [0.5, 0.5, 0.5],
)
PRECISIONS = ("fp32", "bf16", "fp16", "int8")


class Reader:
    """The C++ program: a request in, a reply out."""

    def __init__(self, program: Path) -> None:
        self._process = subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def request(self, **request: Any) -> dict[str, Any]:
        """Return `{"value": …}`, or the status and message of an error."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        self._process.stdin.flush()
        reply = self._process.stdout.readline()
        assert reply, f"the program ended with {self._process.wait()} at {request}"
        return json.loads(reply)

    def close(self) -> None:
        self._process.communicate()


def python_verdict(folder: str | Path, check: Sequence[str] = ()) -> tuple[dict[str, Any] | None, str | None]:
    """Return what Python reads, as the program shows it, or the error's message."""
    try:
        manifest = read_manifest(folder)
        manifest.check(check)
    except FlowlessError as error:
        return None, str(error)
    spec = asdict(manifest.spec)
    content = {
        **{name: getattr(manifest, name) for name in ("model", "memory", "graph", "reference")},
        "folder": str(manifest.folder),
        "labels": list(manifest.labels),
        "state": [{**asdict(tensor), "shape": list(tensor.shape)} for tensor in manifest.state],
        "spec": {
            **{name: spec[name] for name in ("segments", "frames_per_segment", "height", "width", "short_side", "sampling")},
            "three_crops": spec["crop"] == "three",
            "crop_side": spec["crop_side"] or 0,
            "average_softmax": spec["average"] == "softmax",
        },
        "files": {name: asdict(record) for name, record in manifest.files.items()},
        "artefacts": [_described(item) for item in manifest.artefacts],
        "recommendations": [[row.get("machine", ""), row["target"], row["precision"]] for row in manifest.trials if row.get("recommended")],
    }
    return content, None


def _described(artefact: Artefact) -> dict[str, Any]:
    options, figures = artefact.options, artefact.figures
    return {
        **{name: getattr(artefact, name) for name in ("target", "precision", "status", "versions")},
        "files": list(artefact.files),
        **{name: options.get(name) or "" for name in ("hint", "platform", "gpu", "refit_from")},
        "gpu_compute_capability": min(options.get("gpu_compute_capability") or 0, 2**31 - 1),
        "compute_capabilities": [min(item, 2**31 - 1) for item in options.get("compute_capabilities", [])],
        "portable": options.get("portable", False),
        "stripped": options.get("stripped", False),
        "plugin_pa": options.get("pa") == "plugin",
        "latency_ms_p50": figures.get("latency_ms_p50"),
        "machine": figures.get("machine", ""),
    }


def changed(text: str, generator: Random) -> str:
    """Return a manifest's JSON with one to three of its values replaced, removed, renamed or added."""
    document = json.loads(text)
    for _ in range(generator.choice((1, 1, 2, 3))):
        places = list(_tables_and_lists(document))
        weights = [5 if isinstance(place, dict) and "machine" not in place else 1 for place in places]
        (place,) = generator.choices(places, weights)
        key = generator.choice(list(place) if isinstance(place, dict) else range(len(place)))
        what = generator.randrange(8)
        if what == 0:
            del place[key]
        elif what == 1 and isinstance(place, dict):
            place[generator.choice(("new", "..", "a/b", "hint", "gpu", "machine", "memory", "pa", "state"))] = place.pop(key)
        elif what == 2:
            short = [item for item in _tables_and_lists(document) if len(str(item)) < 90]  # C++ shows the start of longer ones
            place[key] = copy.deepcopy(generator.choice(short))
        else:
            place[key] = copy.deepcopy(generator.choice(VALUES))
    return json.dumps(document)


def _tables_and_lists(value: Any) -> Any:
    if isinstance(value, dict | list) and value:
        yield value
        for item in value.values() if isinstance(value, dict) else value:
            yield from _tables_and_lists(item)


@dataclass(frozen=True, kw_only=True)
class Situation:
    """A bundle and a machine, and what Python chooses."""

    request: dict[str, Any]
    choice: dict[str, Any] | None
    message: str | None
    some_fit: bool
    """Whether the bundle has an engine of the target and precision."""


def python_choice(original: dict[str, Any], generator: Random, bundle: Path, patch: pytest.MonkeyPatch) -> Situation:
    """Write a random manifest into `bundle`, and choose from it in Python on a random machine."""

    def some(share: float) -> bool:
        return generator.random() < share

    files = original["artefacts"][0]["files"]
    pairs = [(target, precision) for target in TARGETS for precision in PRECISIONS if some(0.35)]
    generator.shuffle(pairs)
    timed = generator.choice((0.3, 0.95))
    artefacts = [
        {
            "target": target,
            "precision": precision,
            "files": files,
            "status": generator.choice(("verified", "built, not compared", "built, not run here")),
            "figures": {"latency_ms_p50": generator.randrange(1, 9) / 2, "machine": generator.choice(("here", "here", "there"))}
            if some(timed)
            else {},
        }
        for target, precision in pairs
    ]
    trials = [
        {"target": target, "precision": precision, "machine": generator.choice(("here", "there")), "recommended": some(0.3)}
        for target, precision in pairs
    ]
    document = {**original, "artefacts": artefacts, "trials": trials if some(0.5) else []}
    (bundle / "manifest.json").write_text(json.dumps(document), encoding="utf-8")
    target, precision = generator.choice((None, None, *TARGETS)), generator.choice((None, None, *PRECISIONS))
    # A target of CPUs is there or not, whatever the engine; one of GPUs refuses single engines.
    gone = {name: f"no {name} here" for name, library in TARGETS.items() if some(0.75 if library.gpu_to_run else 0.3)}
    reasons = {
        f"{name} {kind}": gone.get(name, f"another GPU than the {kind} one's")
        for name, library in TARGETS.items()
        for kind in PRECISIONS
        if name in gone or (library.gpu_to_run and some(0.3))
    }
    computes = {f"openvino {kind}": "fp32" for kind in ("bf16", "fp16") if some(0.5)}
    patch.setattr(loading, "why_not", lambda name, item=None: reasons.get(f"{name} {item.precision}") if item else gone.get(name))
    patch.setattr(loading, "machine_name", lambda: "here")
    patch.setattr(loading, "computed_precision", lambda item, _: (computes.get(f"{item.target} {item.precision}", item.precision), ""))
    request = {"target": target or "", "precision": precision or "", "machine": "here", "reasons": reasons, "computes": computes}
    some_fit = any(target in {None, one} and precision in {None, other} for one, other in pairs)
    manifest = read_manifest(bundle)
    try:
        artefact, why = loading.choose(manifest, target, precision)
    except FlowlessError as error:
        return Situation(request=request, choice=None, message=str(error), some_fit=some_fit)
    choice = {"engine": [item is artefact for item in manifest.artefacts].index(True), "why": why}
    return Situation(request=request, choice=choice, message=None, some_fit=some_fit)
