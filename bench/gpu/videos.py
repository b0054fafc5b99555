"""The part `videos` of the GPU suite: the videos that decoding is measured on, their index, and a loader over them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from flowless.bench.gpu.ledger import Ledger, NotHere, Settings, error_text
from flowless.files import whole_folder


def videos(ledger: Ledger) -> None:
    """Make the videos: H.264 as a data set has it; for the CPU, whose DALI has no H.264, numbered VP9."""
    settings = ledger.settings
    started = time.monotonic()
    with whole_folder(_folder(settings)) as draft:
        if settings.rehearsal:
            from flowless.bench.gpu.decode import film

            film(draft / "one", "vp9", count=40)
        else:
            from flowless.bench.lib.sample_videos import sample_videos

            sample_videos(draft / "one", count=2 if settings.quick else 4, frames=100 if settings.quick else 250)
    files = [path for path in _folder(settings).rglob("*") if path.is_file()]
    seconds = time.monotonic() - started
    ledger.row(videos=len(files), mb=round(sum(path.stat().st_size for path in files) / 1e6, 1), seconds=round(seconds, 1))


def made_videos(settings: Settings) -> Any:
    """Return the index of what `videos` made; raise NotHere where it could not."""
    if not _folder(settings).is_dir():
        raise NotHere("the part videos did not make the videos; see there")
    return index_of(_folder(settings), settings, "made")


def index_of(root: Path, settings: Settings, name: str) -> Any:
    """Scan a folder, its sub-folders as labels; films that lie in the folder itself get one label."""
    from flowless.errors import FlowlessError
    from flowless.pipeline.dataset.scan import scan

    try:
        if not any(path.is_dir() for path in root.iterdir()):
            link = settings.folder / name / "all"
            link.parent.mkdir(exist_ok=True)
            if not link.is_symlink():
                link.symlink_to(root.resolve(), target_is_directory=True)
            root = link.parent
        return scan(root, out=settings.folder / f"{name}.index.jsonl")
    except (FlowlessError, OSError) as error:
        raise NotHere(f"{root}: {error_text(error)}") from error


def clip_loader(index: Any, settings: Settings, *, device: str, decoder: str) -> Any:
    """Return a loader of batches of eight clips, as the network takes them; raise NotHere where DALI has no NVDEC to decode on."""
    from flowless.bench.gpu.network import spec_of
    from flowless.pipeline.loading import nvdec
    from flowless.pipeline.loading.augment import LoaderOptions
    from flowless.pipeline.loading.loader import ClipLoader

    if (device, decoder) == ("gpu", "dali") and (reason := nvdec.why_no_nvdec()):
        raise NotHere(reason)
    options = LoaderOptions(device=device, decoder=decoder, max_bad_share=1.0)  # type: ignore[arg-type]
    return ClipLoader(index, spec_of(settings), rule="centre", batch_size=8, options=options)


def _folder(settings: Settings) -> Path:
    return settings.folder / "videos"
