import ctypes
from types import SimpleNamespace

import torch

from overlays.data import memory


def test_only_a_worker_is_settled_and_only_once(monkeypatch):
    calls = []
    monkeypatch.setattr(ctypes, "CDLL", lambda _: SimpleNamespace(mallopt=lambda *words: calls.append(words)))
    memory._settle.cache_clear()
    memory.settle_worker()
    assert calls == []  # large tensors of training itself keep their reused pages
    monkeypatch.setattr(torch.utils.data, "get_worker_info", lambda: object())
    memory.settle_worker()
    memory.settle_worker()
    assert calls == [(-3, 1 << 20)]
    memory._settle.cache_clear()


def test_a_system_without_glibc_is_left_alone(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda _: SimpleNamespace())
    monkeypatch.setattr(torch.utils.data, "get_worker_info", lambda: object())
    memory._settle.cache_clear()
    memory.settle_worker()
    memory._settle.cache_clear()
