"""Suppress what ModelOpt prints and logs (each node that it visits, and progress bars), and report its errors as ours."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout

from flowless.console import log
from flowless.errors import FlowlessError


@contextmanager
def without_modelopt_output(what: str) -> Iterator[None]:
    """Run ModelOpt without its output; its exceptions become a `FlowlessError`.

    Output of flowless itself, such as the progress bar and the videos that calibration skips, is still shown.

    Args:
        what: The precision, for the error message.
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
    except ModuleNotFoundError as error:
        raise FlowlessError(f"ModelOpt needs {error.name} for the {what} graph. Add it with: pip install 'flowless[export]'") from error
    except Exception as error:  # ModelOpt and ONNX Runtime raise types of their own, and plain RuntimeError
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise FlowlessError(f"ModelOpt could not make the {what} graph: {first} Build another precision, such as fp32.") from error
    finally:
        log.file = None  # type: ignore[assignment] - standard error again, whatever that is
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
