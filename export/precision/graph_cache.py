"""The graph of a bundle in a precision, from a cache whose key is everything that decides the graph."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

import onnx

from flowless.console import log
from flowless.engines.bundle.manifest import Manifest
from flowless.errors import FlowlessError
from flowless.export.cache import cache_folder, cache_limit, mark_used, shrink
from flowless.export.precision.calibration import Calibration
from flowless.export.precision.precisions import with_precision
from flowless.files import whole_file, write_json
from flowless.machine import installed_versions

#: Version of the code that makes graphs: raise it whenever the same inputs give another graph.
_MAKER = 6


@dataclass(frozen=True, kw_only=True)
class PreciseGraph:
    """A graph in its precision."""

    proto: onnx.ModelProto
    """The graph."""
    key: str
    """SHA-256 over everything that decides it."""
    calibration: dict[str, Any] | None = field(default=None)
    """int8: the record of its calibration."""


def graph_key(manifest: Manifest, precision: str, calibration: Calibration | None) -> str:
    """Return the key of the graph that `precise_graph` would return, without loading the graph."""
    libraries = ("nvidia-modelopt", "onnx", "onnxruntime-gpu", "onnxruntime") if precision != "fp32" else ()
    return digest(
        {
            "maker": _MAKER,
            "graph": manifest.files[manifest.graph].sha256,
            "precision": precision,
            "calibration": calibration.key if calibration and precision == "int8" else None,
            "versions": installed_versions(libraries),
        }
    )


def precise_graph(manifest: Manifest, precision: str, calibration: Calibration | None = None) -> PreciseGraph:
    """Return a bundle's graph in a precision, from the cache if it is there.

    Raises:
        FlowlessError: The bundle is damaged, int8 has no videos to calibrate on, or ModelOpt refuses the graph.
    """
    from flowless.export.graph.export_graph import read_graph
    from flowless.export.precision.int8 import scales_hash
    from flowless.export.verify.reference import Reference

    if precision == "int8" and calibration is None:
        with_precision(onnx.ModelProto(), precision)  # raises: calibration is missing
    key = graph_key(manifest, precision, calibration)
    if precision == "fp32":
        return PreciseGraph(proto=read_graph(manifest.path_of(manifest.graph)), key=key)
    kept = cache_folder() / "graphs" / f"{key}.onnx"
    record = kept.with_suffix(".json")
    if kept.is_file() and record.is_file():
        try:
            document = json.loads(record.read_text(encoding="utf-8"))
            found = PreciseGraph(proto=read_graph(kept), key=key, calibration=document["calibration"])
            mark_used(kept)
            return found
        except (FlowlessError, ValueError, KeyError):
            log.print(f"{kept}: damaged; it is made again", style="yellow", markup=False, soft_wrap=True)
    limit = cache_limit()
    clips = Reference.load(manifest.path_of(manifest.reference), manifest.spec).clips
    proto = with_precision(read_graph(manifest.path_of(manifest.graph)), precision, clips=clips, calibration=calibration)
    made = PreciseGraph(
        proto=proto,
        key=key,
        calibration={**calibration.record(), "scales": scales_hash(proto)} if calibration and precision == "int8" else None,
    )
    with whole_file(kept) as draft:
        draft.write_bytes(proto.SerializeToString())
    write_json(record, {"model": manifest.model, "precision": precision, "calibration": made.calibration})
    shrink(limit)
    return made


def digest(document: Any) -> str:
    """Return the SHA-256 of a JSON document, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(document, sort_keys=True, default=str).encode()).hexdigest()
