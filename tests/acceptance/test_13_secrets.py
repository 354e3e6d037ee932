"""Scenario 13: a secret reaches its engine and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

from tests.acceptance.harness import Daemon, all_pids, free_port, kill

TOKEN = "hush-4f1c9e-token"  # the value of a variable whose name gives it away
PLAIN = "hush-7b20d3-plain"  # the value of one whose name does not
HIDDEN = "hush-99aa01-inline"  # written into the TOML itself, which is warned of


def test_values_of_an_env_file_are_nowhere_but_in_the_engine(daemon: Daemon) -> None:
    """Scenario 13.1: two engines get secrets, by env_file and by env; one crashes; the daemon gets SIGKILL
    and adopts; the configuration is reloaded.

    Result: the engine's environment holds them. No file below the daemon's directories does, nor its log,
    nor any answer of the API, nor an event, nor the command line or environment of any other process.
    """
    secrets = daemon.etc / "secrets.env"
    secrets.write_text(f"API_TOKEN={TOKEN}\nexport SETTING='{PLAIN}'\n")
    secrets.chmod(0o600)
    daemon.configure(
        daemon.web_engine("web", free_port(), env_file='"secrets.env"', env={"DB_PASSWORD": HIDDEN})
        + daemon.engine(
            "crash",
            "crash.py",
            "3",
            "sorry",
            env_file='"secrets.env"',
            probe="{ tcp = true }",
            restart="{ delay = 0, limit = 2 }",
            port=free_port(),
        )
    )
    daemon.start()
    [engine] = daemon.until_ready("web")
    daemon.until_state("crash", "failed")
    kill(engine["pid"] or 0)
    daemon.until("web", lambda e: e["substate"] == "ready" and e["restart_count"] == 1)
    _look_everywhere(daemon)
    daemon.kill()
    _look_everywhere(daemon, asking=False)
    daemon.start()
    before = daemon.show("web")
    kill(before["pid"] or 0)
    daemon.until("web", lambda e: e["substate"] == "ready" and e["pid"] != before["pid"])
    plan = daemon.client.reload()
    assert not plan["restarts"]
    assert not plan["needs_restart"]
    _look_everywhere(daemon)
    assert daemon.terminate() == 0
    _look_everywhere(daemon, asking=False)


def _look_everywhere(daemon: Daemon, *, asking: bool = True) -> None:
    main = daemon.tree("web")
    for pid in main:
        variables = Path(f"/proc/{pid}/environ").read_bytes()
        assert all(secret.encode() in variables for secret in (TOKEN, PLAIN, HIDDEN))
    for file in daemon.home.rglob("*"):
        if file.is_file() and file.parent != daemon.etc:
            _assert_clean(str(file), file.read_bytes())
    for pid in all_pids():
        names = ("cmdline",) if pid in main else ("cmdline", "environ")
        for name in names:
            try:
                _assert_clean(f"{pid} {name}", Path(f"/proc/{pid}/{name}").read_bytes())
            except OSError:
                continue
    if asking:
        _ask_everything(daemon)


def _ask_everything(daemon: Daemon) -> None:
    client = daemon.client
    answers = [client.status(), client.engines(), list(client.events()), client.kinds()]
    for name in ("web", "crash"):
        answers += [client.explain(name), client.definition(name), client.engine(name)]
    answers.append([b"".join(client.logs(name)).decode() for name in ("web", "crash")])
    _assert_clean("the API", json.dumps(answers).encode())
    for verb in ("show", "cat", "status", "explain"):
        shown = daemon.cli(verb, "web")
        _assert_clean(f"sagectl {verb}", (shown.stdout + shown.stderr).encode())
    checked = daemon.cli("check")
    _assert_clean("sagectl check", (checked.stdout + checked.stderr).encode())
    assert "DB_PASSWORD" in checked.stdout  # a secret in the TOML is warned of, by name


def _assert_clean(where: str, data: bytes) -> None:
    for secret in (TOKEN, PLAIN, HIDDEN):
        assert secret.encode() not in data, f"{secret} is in {where}"
