"""`flowless explain`: what a model saw in a video, as a page or as a film."""

from __future__ import annotations

import inspect
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tyro
from rich.markup import escape
from rich.table import Table

from flowless.console import emit, log
from flowless.errors import FlowlessError
from flowless.files import refuse_unwritable

if TYPE_CHECKING:
    from flowless.bench.explain import Explanation

#: Suffix -> what is written.
FORMS = {".html": "a page", ".mp4": "a film"}


@dataclass(frozen=True, kw_only=True)
class ExplainWords:
    """Show what a model saw in a video: its own motion cue over the frames, and what it made of it.

    The cue is Persistence of Appearance (pan-...), the displacement map (disentangling-...), dynamic appearance (da-...) or
    channel-wise motion (stm-...). TSN, TSM and PAN's RGB branch see single frames and have none; nor have disentangling-... without
    displacement maps and da-... with another da_input. The page also shows every segment's own scores, every branch's, and VAP's
    weights of the timescales. The film lays the cue beside every frame of the whole video.

    A checkpoint runs in PyTorch; of a bundle the float32 graph runs in ONNX Runtime, with the same numbers.
    """

    model: tyro.conf.Positional[Path]
    """A checkpoint (a .safetensors file of `flowless train`) or a bundle (a folder of `flowless export`)."""
    video: tyro.conf.Positional[Path]
    """The video file."""
    out: Path | None = None
    """The file to write: a page (.html) or a film (.mp4); by default a page named by the video's path, such as
    runs/explain/videos/up/1.mp4.html."""
    top: int = 5
    """Classes to name."""
    json: bool = False
    """Print one JSON document with all numbers instead of a table."""


def main(words: Sequence[str]) -> int:
    """Run `flowless explain`."""
    ask = tyro.cli(ExplainWords, args=list(words), prog="flowless explain", description=inspect.getdoc(ExplainWords))
    out = ask.out or page_of(ask.video)
    form = FORMS.get(out.suffix.lower())
    if form is None:
        told = ", ".join(f"{suffix} ({what})" for suffix, what in FORMS.items())
        raise FlowlessError(f"--out is {out}; its suffix chooses what is written and must be one of {told}.")
    if out.resolve() == ask.video.resolve():
        raise FlowlessError(f"--out is {out}, the video itself. Name another file.")
    refuse_unwritable(out)
    from flowless.bench.explain import explain
    from flowless.bench.looking import open_looker

    looker = open_looker(ask.model)
    explanation = explain(looker, ask.video, top=ask.top)
    if form == "a film":
        from flowless.bench.explain_film import write_film

        write_film(out, explanation, looker)
    else:
        from flowless.bench.explain_page import write_page

        write_page(out, explanation)
    if explanation.info.gaps:
        log.print(f"flowless: {ask.video}: {explanation.info.gaps}.", style="yellow", markup=False, soft_wrap=True)
    if explanation.cue is None:
        log.print(f"{explanation.model}: this model has no motion cue. Scores alone are shown.", markup=False, soft_wrap=True)
    emit({**explanation.to_dict(), "out": str(out)}, _table(explanation), escape(f"{form}: {out}"), as_json=ask.json)
    return 0


def page_of(video: Path) -> Path:
    """Return the page of a video: its path from here below runs/explain/, so that videos of one name in two folders have two pages."""
    whole = Path(os.path.normpath(video.absolute()))
    if whole.is_relative_to(Path.cwd()):
        inside = whole.relative_to(Path.cwd())
    else:
        inside = Path("elsewhere", *(part.strip(":\\/") for part in whole.parts))
    return Path("runs", "explain", *inside.parts[:-1], f"{inside.name or 'here'}.html")


def _table(explanation: Explanation) -> Table:
    from rich.markup import escape

    cue = "no motion cue" if explanation.cue is None else explanation.cue.name
    table = Table("what happens", "score", title=escape(f"{Path(explanation.video).name}, {explanation.model}: {cue}"))
    for answer in explanation.top:
        table.add_row(escape(answer.label), f"{answer.score:.3f}")
    return table
