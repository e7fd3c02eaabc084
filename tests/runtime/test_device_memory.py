"""Memory of a rank as measured."""

from __future__ import annotations

import psutil
import pytest
import torch

from megatron_kd.runtime.device_memory import measured_device_memory


def test_ranks_of_a_machine_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    whole = measured_device_memory(1)
    assert 0 < whole <= psutil.virtual_memory().total
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert measured_device_memory() == pytest.approx(whole / 4, rel=0.2)  # others use the machine meanwhile


def test_ranks_of_one_gpu_share_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (1000, 1200))
    assert measured_device_memory(2) == 1000
    assert measured_device_memory(4) == 500
