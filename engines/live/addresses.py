"""Addresses of sources: files, cameras and network streams; what is shown of one never has its user or password."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal
from urllib.parse import urlsplit

from flowless.errors import FlowlessError
from flowless.files import printable

#: A file is read once. A camera or network stream that is lost is opened again.
Kind = Literal["file", "rtsp", "http", "camera"]

_SCHEMES: dict[str, Kind] = {"rtsp": "rtsp", "rtsps": "rtsp", "http": "http", "https": "http"}
_NAMED = re.compile(r"([\w. -]{1,40})=(.+)", re.DOTALL)
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):(?=//|[^\\/]*$)")
_DEVICE = re.compile(r"/dev/(?:video\d+|v4l/.+)")
#: Parameters of an address in which cameras and services take a user, a password or a key.
_SECRET = re.compile(r"((?:^|&)[^=&]*(?:user|usr|login|pass|pwd|token|key|auth|secret|sig)[^=&]*=)[^&#]*", re.IGNORECASE)
_ALLOWED = "a video file, an address that begins with rtsp://, rtsps://, http:// or https:// (HLS), or a camera: /dev/video0 or its number"


@dataclass(frozen=True, kw_only=True)
class Address:
    """Where a source's frames come from."""

    name: str
    """Unique among the watched."""
    kind: Kind
    """How it is opened."""
    url: str = field(repr=False)
    """What is opened, with user and password."""
    shown: str
    """The same without them."""

    @property
    def live(self) -> bool:
        """Whether it is opened again where it is lost or ends."""
        return self.kind != "file"

    @property
    def host(self) -> str:
        """The network stream's host; empty for others."""
        try:
            return urlsplit(self.url).hostname or "" if self.kind in {"rtsp", "http"} else ""
        except ValueError:  # brackets that are no IPv6 address
            return ""

    @property
    def has_user(self) -> bool:
        """Whether it names a user."""
        return bool(self.host) and "@" in urlsplit(self.url).netloc


def parse_addresses(sources: Sequence[str | os.PathLike[str]]) -> tuple[Address, ...]:
    """Read addresses, each `ADDRESS` or `NAME=ADDRESS`; names that occur several times are numbered.

    Args:
        sources: Files, `rtsp://` and `http://` addresses, `/dev/video0` or a camera's number.

    Raises:
        FlowlessError: There are none, or one is none of these.
    """
    if isinstance(sources, str | os.PathLike):
        raise FlowlessError(f"sources is {hide_secrets(os.fspath(sources))!r}; it must be a list of sources, also for a single one.")
    if not sources:
        raise FlowlessError(f"there are no sources to watch; name at least one: {_ALLOWED}.")
    found = [_parse(os.fspath(source)) for source in sources]
    names: set[str] = set()
    unique = []
    for item in found:
        name, number = item.name, 1
        while name in names:
            number += 1
            name = f"{item.name} ({number})"
        names.add(name)
        unique.append(replace(item, name=name))
    return tuple(unique)


def _parse(source: str) -> Address:
    name, address = "", source
    if (match := _NAMED.fullmatch(source)) and not os.path.exists(source):  # noqa: PTH110  pathlib raises where a name is too long
        name, address = match[1].strip(), match[2].strip()
    shown = printable(hide_secrets(address))
    kind: Kind = "file"
    url = address
    if match := _SCHEME.match(address):
        if match[1].lower() not in _SCHEMES or not address[match.end() :].startswith("//"):
            raise FlowlessError(f"{shown}: it cannot be watched. A source is {_ALLOWED}.")
        kind = _SCHEMES[match[1].lower()]
    elif _DEVICE.fullmatch(address):
        kind = "camera"
    elif re.fullmatch(r"\d{1,3}", address) and not os.path.exists(address):  # noqa: PTH110
        kind, url = "camera", f"/dev/video{int(address)}"
        shown = url
    elif not address.strip():
        raise FlowlessError(f"a source is {source!r}; it must be {_ALLOWED}.")
    return Address(name=name or shown, kind=kind, url=url, shown=shown)


def hide_secrets(address: str) -> str:
    """Return an address without user and password, and with `***` for the values of parameters that hold them."""
    # The scheme may stand behind a name, or be mistyped: such an address is refused or is no file, and shown in the message.
    match = re.fullmatch(r"(.*?[A-Za-z][A-Za-z0-9+.-]+:/+)([^?#]*)([^#]*)(.*)", address, re.DOTALL)
    if match is None:
        return address
    scheme, rest, query, fragment = match.groups()
    host, slash, path = rest.partition("/")
    if "@" in host:
        host = host.rpartition("@")[2]
    elif "@" in path and not re.fullmatch(r"[^:]*|\[.*\](?::\d*)?|[^:]*:\d*", host):
        # A password with a slash in it, which should have been written %2F.
        host, slash, path = "", "", path.rpartition("@")[2]
    return scheme + host + slash + path + (query[:1] + _SECRET.sub(r"\1***", query[1:])) + fragment
