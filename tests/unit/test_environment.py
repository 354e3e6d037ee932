from __future__ import annotations

from sagectl.daemon.environment import DEFAULT_PATH, base, compose, visible


def test_an_engine_inherits_nothing_that_is_the_daemons_own() -> None:
    daemon = {
        "PATH": "/bin",
        "HF_HOME": "/models",
        "LC_ALL": "C",
        "NOTIFY_SOCKET": "/run/systemd/notify",
        "WATCHDOG_USEC": "1",
        "LISTEN_FDS": "1",
        "AWS_SECRET_ACCESS_KEY": "s3cret",
        "SAGECTL_HOME": "/home",
    }
    assert base(daemon) == {"PATH": "/bin", "HF_HOME": "/models", "LC_ALL": "C"}


def test_without_a_path_there_is_the_usual_one() -> None:
    assert base({}) == {"PATH": DEFAULT_PATH}


def test_later_sources_win_and_the_gpus_win_over_all() -> None:
    merged = compose(
        {"PATH": "/bin", "HOME": "/root", "CUDA_VISIBLE_DEVICES": "7"},
        user={"HOME": "/var/lib/sagectl"},
        plan={"A": "plan", "B": "plan", "C": "plan"},
        env={"B": "env", "C": "env", "CUDA_VISIBLE_DEVICES": "6"},
        env_file={"C": "file"},
        gpus=visible(["0", "MIG-7"]),
    )
    assert merged == {
        "PATH": "/bin",
        "HOME": "/var/lib/sagectl",
        "PYTHONUNBUFFERED": "1",
        "A": "plan",
        "B": "env",
        "C": "file",
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "CUDA_VISIBLE_DEVICES": "0,MIG-7",
    }


def test_no_gpu_hides_them_all_and_unmanaged_gpus_are_left_alone() -> None:
    nothing: dict[str, str] = {}
    none = compose(nothing, user=nothing, plan=nothing, env=nothing, env_file=nothing, gpus=visible(()))
    unmanaged = compose(
        nothing, user=nothing, plan=nothing, env=nothing, env_file=nothing, gpus=visible(None)
    )
    assert none["CUDA_VISIBLE_DEVICES"] == ""
    assert "CUDA_VISIBLE_DEVICES" not in unmanaged
