"""To a device and back, without waiting for a GPU: it computes a batch while the next is made."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from udfs.forward.base import BatchOutput


def send(array: NDArray[Any], device: torch.device) -> torch.Tensor:
    """Return an array on the device; the copy to a GPU starts, and is not waited for."""
    tensor = torch.from_numpy(array)
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


def now(device: torch.device) -> torch.cuda.Event | None:
    """Return a mark in the work of a GPU; who waits for it leaves the core to others."""
    if device.type == "cpu":
        return None
    event = torch.cuda.Event(enable_timing=True, blocking=True)  # type: ignore[no-untyped-call]
    event.record()
    return event


def read(
    logits: torch.Tensor, padding: NDArray[np.int64], start: torch.cuda.Event | None
) -> BatchOutput:
    """Return logits [B] of any float type as a batch's output; those of a GPU when they are there.

    Its time is from `start` to the last logit.
    """
    if start is None:
        return BatchOutput(logits.float().numpy(), padding)
    host = torch.empty(len(logits), dtype=torch.float32, pin_memory=True)
    host.copy_(logits.float(), non_blocking=True)
    end = now(logits.device)
    assert end is not None

    def wait() -> float:
        end.synchronize()
        return float(start.elapsed_time(end))

    return BatchOutput(host.numpy(), padding, wait)
