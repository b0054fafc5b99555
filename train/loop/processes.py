"""Agreement between the processes of a distributed training: an error or a stop request in one reaches all."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from flowless.errors import FlowlessError


class Processes:
    """The processes that train together; nothing is sent where there is only one.

    If one process exited on its own, the others would wait for it in their next exchange of gradients. So a failure that only one
    process sees (a loader that cannot read enough videos, a loss of NaN, a full disk) goes through `agree`, which stops all of them.
    """

    def __init__(self) -> None:
        self._group: Any = None

    @property
    def alone(self) -> bool:
        """Whether this is the only process."""
        return not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1)

    def agree(self, error: Exception | None = None, *, request: int = 0) -> int:
        """Wait until every process has called this; return the largest request.

        Args:
            error: The error of this process, if any.
            request: What this process requests of all, such as stopping; 0 is nothing.

        Raises:
            FlowlessError: Another process has an error. Where `error` is given, it is raised unchanged.
        """
        if self.alone:
            if error is not None:
                raise error
            return request
        report = torch.tensor([int(error is not None), request])
        dist.all_reduce(report, op=dist.ReduceOp.MAX, group=self._cpu_group())
        failed, request = report.tolist()
        if not failed:
            return request
        reasons: list[str | None] = [None] * dist.get_world_size()
        dist.all_gather_object(reasons, None if error is None else _reason(error), group=self._cpu_group())
        if error is not None:
            raise error
        rank, reason = next((rank, reason) for rank, reason in enumerate(reasons) if reason is not None)
        raise FlowlessError(f"process {rank} of {len(reasons)}, counted from 0, failed: {reason}")

    def _cpu_group(self) -> Any:
        # A gloo group beside NCCL's, so that agreeing does not wait for the GPU. Creating one needs all processes, and all call `agree`.
        if self._group is None:
            self._group = dist.group.WORLD if dist.get_backend() == "gloo" else dist.new_group(backend="gloo")
        return self._group


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, FlowlessError) else f"{type(error).__name__}: {error}"
