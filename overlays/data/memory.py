"""Memory of data workers: what they free goes back to the system."""

import ctypes
import os
from functools import cache

import torch

LARGE = 1 << 20  # bytes
_MMAP_THRESHOLD = -3  # M_MMAP_THRESHOLD of glibc's malloc.h


def settle_worker() -> None:
    """In a worker process of a DataLoader, let arrays above LARGE have pages of their own, returned when freed.

    glibc raises that limit to 32 MB by itself as it sees larger blocks freed. Rasters of changing size then tear
    holes into its heap, and a worker grows by hundreds of MB over an epoch. Does nothing without glibc.
    """
    if torch.utils.data.get_worker_info() is not None:
        _settle(os.getpid())


@cache
def _settle(process: int) -> None:
    try:
        ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, LARGE)
    except (OSError, AttributeError):
        pass
