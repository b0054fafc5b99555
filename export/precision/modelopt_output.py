"""ModelOpt without its chatter: it logs every node that it looks at, and prints progress bars of its own."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout

from flowless.console import log
from flowless.errors import FlowlessError


@contextmanager
def modelopt_quiet(what: str) -> Iterator[None]:
    """Run ModelOpt with nothing of its own printed; what it says when it fails goes into the error's one paragraph.

    What flowless prints meanwhile, its progress bar and the videos that calibration leaves out, is shown as ever.
    """
    said = io.StringIO()
    names = ("modelopt", "modelopt.onnx", "modelopt.onnx.autocast", "onnxruntime", "root")
    levels = {name: logging.getLogger(name).level for name in names}
    try:
        log.file = log.file  # standard error as it is now, not what it is redirected to
        with warnings.catch_warnings(), redirect_stdout(said), redirect_stderr(said):
            warnings.simplefilter("ignore")
            for name in names:
                logging.getLogger(name).setLevel(logging.CRITICAL)
            yield
    except (FlowlessError, KeyboardInterrupt, MemoryError):
        raise
    except Exception as error:  # ModelOpt and ONNX Runtime raise types of their own, and plain RuntimeError
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise FlowlessError(f"ModelOpt could not make the {what} graph: {first} Build another precision, such as fp32.") from error
    finally:
        log.file = None  # type: ignore[assignment] - standard error again, whatever that is
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
