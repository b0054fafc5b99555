"""The `flowless` command: one subcommand per stage, each a call into its package.

Only the chosen subcommand's package is imported, so that `flowless --help` is fast and an install without PyTorch has every command
that it can run.
"""

from __future__ import annotations

import importlib
import io
import sys
from collections.abc import Callable, Sequence

from flowless.console import log
from flowless.errors import FlowlessError
from flowless.interrupts import note_ctrl_c, raise_lost_ctrl_c
from flowless.thread_waiting import let_waiting_threads_sleep

#: Subcommand -> the function that runs it (module:function, called with the remaining arguments), and what it does.
COMMANDS: dict[str, tuple[str, str]] = {
    "demo": ("flowless.bench.commands:demo", "every stage on generated videos, into runs/demo/"),
    "doctor": ("flowless.doctor:main", "what this machine can decode, train, build and run, and what is missing for the rest"),
    "scan": ("flowless.pipeline.commands:scan", "index a data set: frames, fps, rotation, label; every refused file with its reason"),
    "shapes": ("flowless.pipeline.commands:shapes", "generate Moving Shapes, the benchmark that needs no download"),
    "train": ("flowless.train.commands.train:train", "train a recipe, such as pan-lite-r50/something-v1"),
    "models": ("flowless.train.commands.models:models", "every model: its size, and what its paper says of it"),
    "import": ("flowless.train.commands.import_official:import_official", "read a checkpoint of the official PAN code"),
    "fuse": ("flowless.train.commands.fuse:fuse", "put separately trained branches into one PAN-Full or PAN-En"),
    "evaluate": ("flowless.train.commands.evaluate:main", "top-1, top-5, mean class accuracy, confusion matrix of a checkpoint or bundle"),
    "export": ("flowless.export.export_command:export", "a bundle with model.onnx, checked against PyTorch"),
    "build": ("flowless.export.build_command:main", "build an engine into a bundle; verified before it is kept"),
    "cache": ("flowless.export.cache:main", "the graphs and timings that builds keep in the user's cache folder; --clear empties it"),
    "pack": ("flowless.engines.pack_command:main", "a copy of a bundle with the one engine that ships, and a note on licences"),
    "predict": ("flowless.engines.predict_command:predict", "recognise the action in each video"),
    "watch": (
        "flowless.engines.watch_command:watch",
        "recognise actions in cameras, RTSP and HLS streams and files, live: events, page, metrics",
    ),
    "timeline": (
        "flowless.engines.timeline.timeline_command:main",
        "what happens when in long videos: segments with start, end, label and score, as a table, JSON and a page",
    ),
    "explain": ("flowless.export.explain.explain_command:main", "what a prediction rests on (page or film), or accuracy by class (--data)"),
    "bench": ("flowless.bench.commands:bench", "measure: speed, motion cues, the systems side by side; see flowless bench"),
}

#: Import name -> the extra of flowless that installs it, for the message where a package is missing; the targets' are in their table.
_EXTRAS = {
    "torch": "train",
    "lightning": "train",
    "timm": "train",
    "safetensors": "train",
    "torchvision": "train",
    "matplotlib": "train",
    "jinja2": "train",
    "sklearn": "train",
    "onnx": "export",
    "onnxscript": "export",
    "nvidia": "dali",
    "prometheus_client": "live",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand; return the exit code: 0 done, 1 the user's input, 2 usage, 3 a failed check, 130 Ctrl-C."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # print also names that the terminal's encoding lacks
    if not arguments or arguments[0] in {"-h", "--help"}:
        print(usage())
        return 0 if arguments else 2
    if arguments[0] == "--version":
        from flowless import __version__

        print(f"flowless {__version__}")
        return 0
    name, rest = arguments[0], arguments[1:]
    if name not in COMMANDS:
        log.print(f"flowless: no command {name!r}. The commands are: {', '.join(COMMANDS)}.", style="red", markup=False, soft_wrap=True)
        return 2
    return run_command(lambda: _function(name)(rest))


def usage() -> str:
    """Return the text of `flowless --help`."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {summary}" for name, (_, summary) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: flowless COMMAND [...]",
            "",
            "Fast video action recognition without optical flow, from video file to embedded engine.",
            "",
            *lines,
            "",
            "`flowless COMMAND --help` describes one command. Exit codes: 0 done, 1 the input, 2 usage, 3 a failed check, 130 Ctrl-C.",
        ]
    )


def run_command(command: Callable[[], int | None]) -> int:
    """Run `command` and return its exit code; print errors that the user can cause as one paragraph, without a traceback.

    PyTorch must not be imported before: how its threads wait is set here, and PyTorch reads it when it is imported.
    """
    let_waiting_threads_sleep()
    try:
        with note_ctrl_c(), raise_lost_ctrl_c():
            return command() or 0
    except FlowlessError as error:
        log.print(f"flowless: {error}", style="red", markup=False, soft_wrap=True)
        return error.exit_code
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        extra = _extra_of(missing)
        if not extra:
            raise
        log.print(
            f"flowless: this needs {missing}, which is not installed. Add it with: pip install 'flowless[{extra}]'",
            style="red",
            markup=False,
        )
        return 1
    except KeyboardInterrupt:
        log.print("flowless: stopped.", style="yellow")
        return 130
    except BrokenPipeError:
        return 0


def _extra_of(module: str) -> str:
    """Return the extra of flowless that installs a module; empty where none does."""
    from flowless.engines.targets import TARGETS

    return _EXTRAS.get(module) or next((library.extra for library in TARGETS.values() if library.module == module), "")


def _function(name: str) -> Callable[[Sequence[str]], int | None]:
    module, _, function = COMMANDS[name][0].partition(":")
    return getattr(importlib.import_module(module), function)


if __name__ == "__main__":
    sys.exit(main())
