from __future__ import annotations

import errno
import os
import signal

import pytest

from sagectl.system import requirements


def test_this_machine_can_host_the_daemon() -> None:
    assert requirements.check() == []


def test_another_system_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "darwin")
    assert requirements.check() == ["sagectld runs on Linux only, this is darwin"]


@pytest.mark.parametrize(("module", "call"), [(os, "pidfd_open"), (signal, "pidfd_send_signal")])
def test_a_kernel_without_pidfds_is_refused(
    monkeypatch: pytest.MonkeyPatch, module: object, call: str
) -> None:
    def missing(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(module, call, missing)
    (reason,) = requirements.check()
    assert reason.startswith(f"{call} does not work")
