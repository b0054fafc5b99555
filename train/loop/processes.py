"""What processes that train together let each other know, at places that all of them pass."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from flowless.errors import FlowlessError


class Processes:
    """The processes of one training, of which this is one; nothing is sent where it is the only one.

    A process that ends by itself leaves the others waiting in their next exchange of gradients. So what only one of them can see (a
    loader that gives up, a loss that is no number, a full disk) goes through `agree`, and ends all of them, each with the reason.
    """

    def __init__(self) -> None:
        self._group: Any = None

    @property
    def alone(self) -> bool:
        """Whether no other process takes part."""
        return not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1)

    def agree(self, error: Exception | None = None, *, wish: int = 0) -> int:
        """Wait until every process has come here; return the largest of their wishes.

        Args:
            error: What has gone wrong in this process.
            wish: What this process asks of all, 0 or more.

        Raises:
            FlowlessError: Something has gone wrong in another process. Where `error` is given, it is raised itself.
        """
        if self.alone:
            if error is not None:
                raise error
            return wish
        report = torch.tensor([int(error is not None), wish])
        dist.all_reduce(report, op=dist.ReduceOp.MAX, group=self._of_cpus())
        failed, wish = report.tolist()
        if not failed:
            return wish
        reasons: list[str | None] = [None] * dist.get_world_size()
        dist.all_gather_object(reasons, None if error is None else _reason(error), group=self._of_cpus())
        if error is not None:
            raise error
        rank, reason = next((rank, reason) for rank, reason in enumerate(reasons) if reason is not None)
        raise FlowlessError(f"process {rank} of {len(reasons)}, counted from 0, gave up: {reason}")

    def _of_cpus(self) -> Any:
        # A group of its own beside NCCL's, so that no step waits for the GPU. All processes come here together, which making one needs.
        if self._group is None:
            self._group = dist.group.WORLD if dist.get_backend() == "gloo" else dist.new_group(backend="gloo")
        return self._group


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, FlowlessError) else f"{type(error).__name__}: {error}"
