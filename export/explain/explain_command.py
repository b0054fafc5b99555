"""`flowless explain`: what a model's prediction for a video rests on (page or film), or its accuracy by class on a data set (page)."""

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
    from flowless.export.explain.explain_video import VideoExplanation

#: Suffix of --out -> what is written.
FORMS = {".html": "a page", ".mp4": "a film"}
#: Classes that the table lists from each end.
_SHOWN = 10


@dataclass(frozen=True, kw_only=True)
class ExplainArgs:
    """Show what a model's prediction for a video rests on, or how the model does on a data set (--data).

    For a video: its predicted classes, the model's motion cue, Grad-CAM, the prediction from each segment and each branch alone, and
    VAP's weights of the timescales. The motion cue is Persistence of Appearance (pan-...), the displacement map (disentangling-...),
    dynamic appearance (da-...) or channel-wise motion (stm-...). TSN, TSM and PAN's RGB branch process single frames and have none; nor
    have disentangling-... without displacement maps and da-... with another da_input. Grad-CAM needs gradients, so a checkpoint. A film
    shows every frame of the video with the cue beside it.

    For a data set: each class's accuracy and, with --against, the gain over another model; a map of the videos by their features
    (t-SNE); VAP's mean weights by class.

    A checkpoint runs in PyTorch. Of a bundle the float32 graph runs in ONNX Runtime, with the same numbers.
    """

    model: tyro.conf.Positional[Path]
    """A checkpoint (a .safetensors file of `flowless train`) or a bundle (a folder of `flowless export`)."""
    video: tyro.conf.Positional[Path | None] = None
    """The video file; or leave it out and give --data."""
    out: Path | None = None
    """The file to write: a page (.html) or, for a video, a film (.mp4). Default: a page named after the path of the video or index,
    such as runs/explain/videos/up/1.mp4.html."""
    top: int = 5
    """For a video: number of classes to list."""
    label: str | None = None
    """For a video: class of Grad-CAM; by default the predicted one."""
    data: Path | None = None
    """Index of the videos, from `flowless scan`; its labels must be among the model's."""
    against: Path | None = None
    """With --data: another checkpoint or bundle to compare with."""
    most: int = 2000
    """With --data: videos on the map, at most; of more, equally many of each class are chosen as far as there are."""
    threads: int | None = None
    """With --data: decoding threads; by default one per processor core."""
    json: bool = False
    """Print one JSON document with all numbers instead of a table."""


def main(args: Sequence[str]) -> int:
    """Run `flowless explain`."""
    parsed = tyro.cli(ExplainArgs, args=list(args), prog="flowless explain", description=inspect.getdoc(ExplainArgs))
    source = _source(parsed)
    out = parsed.out or default_page(source)
    forms = {suffix: form for suffix, form in FORMS.items() if suffix == ".html" or parsed.data is None}
    if out.suffix.lower() not in forms:
        allowed = ", ".join(f"{suffix} ({form})" for suffix, form in forms.items())
        raise FlowlessError(f"--out is {out}; its suffix chooses what is written and must be one of {allowed}.")
    if out.resolve() == source.resolve():
        raise FlowlessError(f"--out is {out}, {'the index' if parsed.data else 'the video'} itself. Name another file.")
    refuse_unwritable(out)
    return _explain_video(parsed, source, out) if parsed.data is None else _explain_data_set(parsed, source, out)


def _source(args: ExplainArgs) -> Path:
    """Return the video or the index, whichever is given; refuse options that do not go with it."""
    source = args.video or args.data
    if source is None or (args.video is not None and args.data is not None):
        given = "neither a video nor --data" if source is None else f"both a video, {args.video}, and --data {args.data}"
        raise FlowlessError(
            f"explain: {given} was given; give one of them: flowless explain MODEL VIDEO, or flowless explain MODEL --data INDEX."
        )
    if args.against is not None and args.data is None:
        raise FlowlessError(f"--against is {args.against}; it compares two models over a data set. Give --data INDEX instead of a video.")
    if args.label is not None and args.data is not None:
        raise FlowlessError(
            f"--label is {args.label!r}, the class of Grad-CAM, which is for one video. Give a video instead of --data, or leave it out."
        )
    return source


def _explain_video(args: ExplainArgs, video: Path, out: Path) -> int:
    from flowless.export.explain.explain_video import explain_video
    from flowless.export.explain.introspection import open_model

    model = open_model(args.model)
    explanation = explain_video(model, video, top=args.top, label=args.label)
    form = FORMS[out.suffix.lower()]
    if form == "a film":
        from flowless.export.explain.film import write_film

        write_film(out, explanation, model)
    else:
        from flowless.export.explain.video_page import render
        from flowless.html_pages import write_text

        write_text(out, render(explanation))
    if explanation.info.gaps:
        log.print(f"flowless: {video}: {explanation.info.gaps}.", style="yellow", markup=False, soft_wrap=True)
    if explanation.cue is None:
        log.print(
            f"{explanation.model.name}: this model has no motion cue; the output shows its scores alone.", markup=False, soft_wrap=True
        )
    emit({**explanation.to_dict(), "out": str(out)}, _prediction_table(explanation), escape(f"{form}: {out}"), as_json=args.json)
    return 0


def _explain_data_set(args: ExplainArgs, data: Path, out: Path) -> int:
    from flowless.export.explain.data_set_page import render
    from flowless.export.explain.explain_data_set import explain_data_set
    from flowless.export.explain.introspection import open_model
    from flowless.html_pages import write_text

    index = DatasetIndex.load(data)
    against = None if args.against is None else open_model(args.against)
    explanation = explain_data_set(open_model(args.model), index, against=against, most=args.most, threads=args.threads)
    write_text(out, render(explanation))
    tables = [class_table(explanation), *refused_table(explanation.bad_videos, title="could not be read")]
    emit({**explanation.to_dict(), "out": str(out)}, *tables, escape(f"a page: {out}"), as_json=args.json)
    return 0


def default_page(source: Path) -> Path:
    """Return the default page of a video or an index: its path from the current folder, below runs/explain/.

    So files of one name in two folders have different pages.
    """
    path = Path(os.path.normpath(source.absolute()))
    if path.is_relative_to(Path.cwd()):
        below = path.relative_to(Path.cwd())
    else:
        below = Path("elsewhere", *(part.strip(":\\/") for part in path.parts))
    return Path("runs", "explain", *below.parts[:-1], f"{below.name or 'here'}.html")


def _prediction_table(explanation: VideoExplanation) -> Table:
    cue = "no motion cue" if explanation.cue is None else explanation.cue.name
    table = Table("class", "score", title=escape(f"{Path(explanation.video).name}, {explanation.model.name}: {cue}"))
    for item in explanation.top:
        table.add_row(escape(item.label), f"{item.score:.3f}")
    return table


def class_table(explanation: DataSetExplanation) -> Table:
    """Return the classes with the largest gains and the largest losses; the page has them all."""
    models = [escape(heading) for heading in explanation.headings]
    table = Table("class", "videos", *(["gain"] if len(models) > 1 else []), *models, title=" and ".join(models))
    rows = [
        [
            escape(item.label),
            str(item.videos),
            *([] if item.gain is None else [f"{100 * item.gain:+.1f}"]),
            *(f"{100 * share:.1f} %" for share in (item.accuracy, item.other) if share is not None),
        ]
        for item in explanation.classes
    ]
    for row in [*rows[:_SHOWN], ["…"], *rows[-_SHOWN:]] if len(rows) > 2 * _SHOWN else rows:
        table.add_row(*row)
    return table
