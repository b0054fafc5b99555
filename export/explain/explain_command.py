"""`flowless explain`: what a model saw in a video, as a page or as a film; what it makes of a data set, as a page."""

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
from flowless.pipeline.dataset.index import DatasetIndex
from flowless.pipeline.dataset.refused_table import refused_table

if TYPE_CHECKING:
    from flowless.export.explain.explain_data_set import DataSetExplanation
    from flowless.export.explain.explain_video import Explanation

#: Suffix -> what is written.
FORMS = {".html": "a page", ".mp4": "a film"}
#: Classes that the table has from each end.
_SHOWN = 10


@dataclass(frozen=True, kw_only=True)
class ExplainArgs:
    """Show what a model saw in a video, or what it makes of a whole data set (--data).

    Of a video: its own motion cue over the frames, and what it made of it. The cue is Persistence of Appearance (pan-...), the
    displacement map (disentangling-...), dynamic appearance (da-...) or channel-wise motion (stm-...). TSN, TSM and PAN's RGB branch
    see single frames and have none; nor have disentangling-... without displacement maps and da-... with another da_input. Beside it
    Grad-CAM (of a checkpoint: it needs gradients), every segment's own scores, every branch's, and VAP's weights of the timescales.
    The film lays the cue beside every frame of the whole video.

    Of a data set: each class's accuracy and, with --against, its gain over another model; a map of the videos by their features
    (t-SNE); VAP's weights, class by class.

    A checkpoint runs in PyTorch; of a bundle the float32 graph runs in ONNX Runtime, with the same numbers.
    """

    model: tyro.conf.Positional[Path]
    """A checkpoint (a .safetensors file of `flowless train`) or a bundle (a folder of `flowless export`)."""
    video: tyro.conf.Positional[Path | None] = None
    """The video file; or leave it out and give --data."""
    out: Path | None = None
    """The file to write: a page (.html) or, of a video, a film (.mp4); by default a page named by the video's or the index's path,
    such as runs/explain/videos/up/1.mp4.html."""
    top: int = 5
    """Of a video: classes to name."""
    label: str | None = None
    """Of a video: class to show Grad-CAM for; by default the answer."""
    data: Path | None = None
    """Index of the videos, from `flowless scan`; its labels must be among the model's."""
    against: Path | None = None
    """With --data: another checkpoint or bundle, to show what each class gains over it."""
    most: int = 2000
    """With --data: videos on the map, at most; of more, as many of each class as there are."""
    threads: int | None = None
    """With --data: threads that decode; by default one a processor core."""
    json: bool = False
    """Print one JSON document with all numbers instead of a table."""


def main(words: Sequence[str]) -> int:
    """Run `flowless explain`."""
    ask = tyro.cli(ExplainArgs, args=list(words), prog="flowless explain", description=inspect.getdoc(ExplainArgs))
    _refuse_misfits(ask)
    seen = ask.data or ask.video
    assert seen is not None
    out = ask.out or page_of(seen)
    forms = {suffix: what for suffix, what in FORMS.items() if suffix == ".html" or ask.data is None}
    if out.suffix.lower() not in forms:
        allowed = ", ".join(f"{suffix} ({what})" for suffix, what in forms.items())
        raise FlowlessError(f"--out is {out}; its suffix chooses what is written and must be one of {allowed}.")
    if out.resolve() == seen.resolve():
        raise FlowlessError(f"--out is {out}, {'the index' if ask.data else 'the video'} itself. Name another file.")
    refuse_unwritable(out)
    return _explain_video(ask, seen, out) if ask.data is None else _explain_data(ask, seen, out)


def _refuse_misfits(ask: ExplainArgs) -> None:
    """Refuse options that do not go together."""
    if (ask.video is None) == (ask.data is None):
        given = "neither a video nor --data" if ask.video is None else f"both a video, {ask.video}, and --data {ask.data}"
        raise FlowlessError(
            f"explain: {given} was given; give one of them: flowless explain MODEL VIDEO, or flowless explain MODEL --data INDEX."
        )
    if ask.against is not None and ask.data is None:
        raise FlowlessError(f"--against is {ask.against}; it compares two models over a data set. Give --data INDEX instead of a video.")
    if ask.label is not None and ask.data is not None:
        raise FlowlessError(f"--label is {ask.label!r}; Grad-CAM is shown of one video. Give a video instead of --data, or leave it out.")


def _explain_video(ask: ExplainArgs, video: Path, out: Path) -> int:
    from flowless.export.explain.explain_video import explain
    from flowless.export.explain.introspection import open_looker

    looker = open_looker(ask.model)
    explanation = explain(looker, video, top=ask.top, label=ask.label)
    form = FORMS[out.suffix.lower()]
    if form == "a film":
        from flowless.export.explain.film import write_film

        write_film(out, explanation, looker)
    else:
        from flowless.export.explain.video_page import write_page

        write_page(out, explanation)
    if explanation.info.gaps:
        log.print(f"flowless: {video}: {explanation.info.gaps}.", style="yellow", markup=False, soft_wrap=True)
    if explanation.cue is None:
        log.print(f"{explanation.model}: this model has no motion cue. Scores alone are shown.", markup=False, soft_wrap=True)
    emit({**explanation.to_dict(), "out": str(out)}, _table(explanation), escape(f"{form}: {out}"), as_json=ask.json)
    return 0


def _explain_data(ask: ExplainArgs, data: Path, out: Path) -> int:
    from flowless.export.explain.data_set_page import write_page
    from flowless.export.explain.explain_data_set import explain_data_set
    from flowless.export.explain.introspection import open_looker

    index = DatasetIndex.load(data)
    looker = open_looker(ask.model)
    against = None if ask.against is None else open_looker(ask.against)
    explanation = explain_data_set(looker, index, against=against, most=ask.most, threads=ask.threads)
    write_page(out, explanation)
    tables = [_class_table(explanation), *refused_table(explanation.bad_videos, title="could not be read")]
    emit({**explanation.to_dict(), "out": str(out)}, *tables, escape(f"a page: {out}"), as_json=ask.json)
    return 0


def _class_table(explanation: DataSetExplanation) -> Table:
    """Return the classes with the largest gains and the largest losses; the page has them all."""
    models = [seen.model for seen in explanation.models]
    gain = ["gain"] if len(models) > 1 else []
    table = Table("class", "videos", *gain, *models, title=escape(" beside ".join(models)))
    rows = explanation.classes
    shown = [*rows[:_SHOWN], None, *rows[-_SHOWN:]] if len(rows) > 2 * _SHOWN else rows
    for item in shown:
        if item is None:
            table.add_row("…")
            continue
        gain = [] if item.gain is None else [f"{100 * item.gain:+.1f}"]
        shares = [f"{100 * share:.1f} %" for share in (item.accuracy, item.other) if share is not None]
        table.add_row(escape(item.label), str(item.videos), *gain, *shares)
    return table


def page_of(video: Path) -> Path:
    """Return the page of a video or an index: its path from here below runs/explain/, so that one name in two folders is two pages."""
    whole = Path(os.path.normpath(video.absolute()))
    if whole.is_relative_to(Path.cwd()):
        inside = whole.relative_to(Path.cwd())
    else:
        inside = Path("elsewhere", *(part.strip(":\\/") for part in whole.parts))
    return Path("runs", "explain", *inside.parts[:-1], f"{inside.name or 'here'}.html")


def _table(explanation: Explanation) -> Table:
    cue = "no motion cue" if explanation.cue is None else explanation.cue.name
    table = Table("what happens", "score", title=escape(f"{Path(explanation.video).name}, {explanation.model}: {cue}"))
    for answer in explanation.top:
        table.add_row(escape(answer.label), f"{answer.score:.3f}")
    return table
