"""Types of a manifest's fields, as far as loading and building read them; `engines/cpp/src/manifest.cpp` checks the same."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

#: Largest integer of a field: 64 bits with a sign, which every runtime has.
_LARGEST = 2**63 - 1
#: Most elements of one tensor of the state, and so its largest size.
MOST_ELEMENTS = 2**31 - 1
#: Characters of a wrong value that a message shows.
_SHOWN = 100


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What a field may be."""

    name: str
    """For messages."""
    fits: Callable[[Any], bool]
    """Whether a value is of this kind, its items aside."""
    items: Kind | None = None
    """What the items of a list, or the values of a table, may be; None: anything, or there are none."""


def _optional(kind: Kind) -> Kind:
    return Kind(name=f"{kind.name} or null", fits=lambda value: value is None or kind.fits(value))


def _list_of(kind: Kind, plural: str) -> Kind:
    return Kind(name=f"a list of {plural}", fits=lambda value: isinstance(value, list), items=kind)


def _table_of(kind: Kind, plural: str) -> Kind:
    return Kind(name=f"a table of {plural}", fits=lambda value: isinstance(value, dict), items=kind)


def _one_of(*allowed: str) -> Kind:
    return Kind(name=f"one of {', '.join(allowed)}", fits=lambda value: value in allowed)


_TEXT = Kind(name="text", fits=lambda value: isinstance(value, str))
_COUNT = Kind(name="an integer from 0 to 2^63 - 1", fits=lambda value: type(value) is int and 0 <= value <= _LARGEST)
_NUMBER = Kind(name="a number", fits=lambda value: type(value) in {int, float})
_FLAG = Kind(name="true or false", fits=lambda value: isinstance(value, bool))
_TABLE = Kind(name="a table", fits=lambda value: isinstance(value, dict))

_STATE_NAME = Kind(
    name="at most 40 characters of a-z, 0-9 and _, without next_ at the beginning, and not frame or scores",
    fits=lambda value: isinstance(value, str) and bool(re.fullmatch(r"(?!next_|(?:frame|scores)\Z)[a-z0-9_]{1,40}", value)),
)
_SIZE = Kind(name="an integer from 1 to 2^31 - 1", fits=lambda value: type(value) is int and 1 <= value <= MOST_ELEMENTS)
_SHAPE = Kind(name="a list of at least one integer", fits=lambda value: isinstance(value, list) and len(value) > 0, items=_SIZE)

_MANIFEST = {
    "model": _TEXT,
    "spec": _TABLE,
    "labels": _list_of(_TEXT, "texts"),
    "opset": _COUNT,
    "config": _TABLE,
    "memory": _COUNT,
    "state": _list_of(_TABLE, "tables"),
    "graph": _TEXT,
    "reference": _TEXT,
    "versions": _table_of(_TEXT, "texts"),
    "parity": _TABLE,
    "calibration": _optional(_TABLE),
    "trials": _list_of(_TABLE, "tables"),
    "files": _table_of(_TABLE, "tables"),
    "artefacts": _list_of(_TABLE, "tables"),
}
_STATE = {"name": _STATE_NAME, "shape": _SHAPE, "dtype": _one_of("float32", "uint8")}
_FILE = {"sha256": _TEXT, "bytes": _COUNT}
_TRIAL = {"target": _TEXT, "precision": _TEXT, "machine": _TEXT, "recommended": _FLAG}
_ARTEFACT = {
    "target": _TEXT,
    "precision": _one_of("fp32", "bf16", "fp16", "int8"),
    "status": _TEXT,
    "files": _list_of(_TEXT, "texts"),
    "max_abs_diff": _optional(_NUMBER),
    "versions": _table_of(_TEXT, "texts"),
    "options": _TABLE,
    "figures": _TABLE,
    "key": _TEXT,
}
_OPTIONS = {
    "hint": _one_of("f32", "bf16", "f16"),
    "platform": _TEXT,
    "gpu": _optional(_TEXT),
    "gpu_compute_capability": _optional(_COUNT),
    "compute_capabilities": _list_of(_COUNT, "integers from 0 to 2^63 - 1"),
    "portable": _FLAG,
    "stripped": _FLAG,
    "refit_from": _optional(_TEXT),
    "pa": _TEXT,
}
_FIGURES = {"latency_ms_p50": _NUMBER, "machine": _TEXT}


def parse_json(text: str) -> Any:
    """Return the document in a JSON text; raise ValueError for anything else, for NaN and infinity, and for nesting without end."""
    try:
        return json.loads(text, parse_float=_finite, parse_constant=_finite)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def check_fields(body: dict[str, Any]) -> None:
    """Check the names and types of all fields that are read.

    Args:
        body: The manifest without `format` and `version`, with defaults for fields that older bundles lack.

    Raises:
        ValueError: A field is missing, unknown or of another type.
    """
    _check("", body, _MANIFEST, required=_MANIFEST)
    for index, tensor in enumerate(body["state"]):
        _check(f"state[{index}]", tensor, _STATE, required=_STATE)
    for name, record in sorted(body["files"].items()):
        _check(f"files[{_shown(name)}]", record, _FILE, required=_FILE)
    for index, row in enumerate(body["trials"]):
        _check(f"trials[{index}]", row, _TRIAL, required=("target", "precision"), others=True)
    for index, artefact in enumerate(body["artefacts"]):
        place = f"artefacts[{index}]"
        _check(place, artefact, _ARTEFACT, required=("target", "precision", "status", "files"))
        _check(f"{place}.options", artefact.get("options", {}), _OPTIONS, required=(), others=True)
        _check(f"{place}.figures", artefact.get("figures", {}), _FIGURES, required=(), others=True)


def _check(place: str, table: dict[str, Any], kinds: dict[str, Kind], *, required: Any, others: bool = False) -> None:
    missing = sorted(set(required) - set(table))
    unknown = [] if others else sorted(set(table) - set(kinds))
    if missing or unknown:
        raise ValueError(f"{place}{': ' if place else ''}fields missing: {missing}; unknown: {unknown}")
    for name, kind in kinds.items():
        if name in table:
            _check_value(f"{place}{'.' if place else ''}{name}", table[name], kind)


def _check_value(place: str, value: Any, kind: Kind) -> None:
    if not kind.fits(value):
        raise ValueError(f"{place} is {_shown(value)}; it must be {kind.name}")
    if kind.items is not None:
        for key, item in sorted(value.items()) if isinstance(value, dict) else enumerate(value):
            _check_value(f"{place}[{_shown(key)}]", item, kind.items)


def _shown(value: Any) -> str:
    if isinstance(value, dict | list):
        return "a table" if isinstance(value, dict) else "a list"
    return repr(value)[:_SHOWN]


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:_SHOWN]} is not a finite number")
    return value
