"""The real vLLM, on the CPU, under a real sagectld: it serves, it is killed in every way, it stops.

A start takes most of a minute, so one daemon and two engines carry all scenarios of this module, in
their order.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sagectl.shim import tree
from tests.acceptance.harness import Daemon, await_end, free_port, is_alive, kill

pytestmark = [pytest.mark.heavy, pytest.mark.vllm]

START = 300.0
"""Seconds for a start of vLLM, several at once on two cores."""
SECRET = "k3y-of-the-acceptance-test"


class Vllm(Daemon):
    """A daemon with the engines `chat` (behind an API key) and `second`, and engines that cannot start."""

    def __init__(self, python: str, model: Path) -> None:
        super().__init__()
        self.ports = {name: free_port() for name in ("chat", "second")}
        (self.home / "models").mkdir()
        (self.home / "models" / "starter").symlink_to(model)
        secrets = self.etc / "secrets.env"
        secrets.write_text(f"VLLM_API_KEY={SECRET}\n")
        secrets.chmod(0o600)
        self.configure(
            f"""
            [defaults.llm]
            python = "{python}"
            model = "starter"
            use_gpu = false
            enforce_eager = true
            kv_cache_memory = "256MiB"
            restart = {{ delay = 0, limit = 0 }}
            probe = {{ interval = 5 }}
            env = {{ HF_HUB_OFFLINE = "1", HF_HOME = "{self.home}/hf" }}
            [engines.chat]
            kind = "llm"
            port = {self.ports["chat"]}
            served_model_name = "tiny"
            env_file = "secrets.env"
            shutdown_timeout = 2
            stop = {{ drain = 1, timeout = 5 }}
            [engines.second]
            kind = "llm"
            backend = "vllm"
            port = {self.ports["second"]}
            stop = {{ drain = 0, timeout = 10 }}
            """
        )

    def ask(self, name: str, path: str, body: Any = None) -> http.client.HTTPResponse:
        """Ask an engine, with its key."""
        connection = http.client.HTTPConnection("127.0.0.1", self.ports[name], timeout=60)
        head = {"Content-Type": "application/json", "Authorization": f"Bearer {SECRET}"}
        connection.request("GET" if body is None else "POST", path, json.dumps(body), head)
        return connection.getresponse()

    def chat(self, name: str, model: str, **more: Any) -> Any:
        messages = [{"role": "user", "content": "Hello"}]
        answer = self.ask(name, "/v1/chat/completions", {"model": model, "messages": messages, **more})
        text = answer.read()
        assert answer.status == 200, text
        return json.loads(text)

    def tree(self, name: str) -> list[int]:
        """The living processes below the engine's shim: vLLM's write their titles over their environment."""
        return list(tree.living(tree.children(self.shim(name))))

    def part(self, name: str, words: str) -> int:
        """The process of an engine's tree with these words in its command line."""
        found = [pid for pid in self.tree(name) if words.encode() in _command(pid)]
        assert len(found) == 1, [_command(pid) for pid in self.tree(name)]
        return found[0]

    def segments(self, name: str) -> set[str]:
        """What the engine's tree has in /dev/shm."""
        found = set()
        for pid in self.tree(name):
            maps = Path(f"/proc/{pid}/maps").read_text()
            found |= {
                path for path in re.findall(r"/dev/shm/\S+(?! \(deleted\))", maps) if os.path.exists(path)
            }
        return found

    def again(self, name: str, pid: int | None) -> Any:
        """Wait until the engine is ready with another process."""
        return self.until(name, lambda e: e["substate"] == "ready" and e["pid"] != pid, "ready again", START)


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


@pytest.fixture(scope="module")
def vllm(vllm_python: str, starter_model: Path) -> Iterator[Vllm]:
    daemon = Vllm(vllm_python, starter_model)
    daemon.start()
    for name in ("chat", "second"):
        daemon.client.start(name)
    for name in ("chat", "second"):
        daemon.until_state(name, "ready", timeout=START)
    yield daemon
    daemon.terminate()  # which stops them; killed with their shims they would leave shared memory behind
    daemon.close()


def test_two_engines_answer_side_by_side(vllm: Vllm) -> None:
    """Two engines with the same model, one behind an API key, another under the directory's name.

    Result: each is ready and completes chats under its own name; automatic choice took vLLM.
    """
    answers = [vllm.chat("chat", "tiny", max_tokens=8), vllm.chat("second", "starter", max_tokens=8)]
    assert [answer["usage"]["completion_tokens"] for answer in answers] == [8, 8]
    assert vllm.part("chat", "vllm.entrypoints.openai.api_server") == vllm.show("chat")["pid"]
    refused = vllm.ask("second", "/v1/chat/completions", {"model": "other", "messages": []})
    assert refused.status in (400, 404)


def test_a_chat_streams(vllm: Vllm) -> None:
    """A chat with `stream`.

    Result: server-sent events, one a token, and the final `[DONE]`.
    """
    messages = [{"role": "user", "content": "Hello"}]
    body = {"model": "tiny", "messages": messages, "stream": True, "max_tokens": 16, "ignore_eos": True}
    answer = vllm.ask("chat", "/v1/chat/completions", body)
    lines = [line for line in answer.read().decode().splitlines() if line.startswith("data: ")]
    assert answer.status == 200
    assert lines[-1] == "data: [DONE]"
    assert len(lines) >= 16


def test_the_key_is_asked_for_and_kept_nowhere(vllm: Vllm) -> None:
    """The key comes from an env_file; the probes needed it too.

    Result: without it 401; it is in no command line, and in no file besides the env_file.
    """
    connection = http.client.HTTPConnection("127.0.0.1", vllm.ports["chat"], timeout=60)
    connection.request("GET", "/v1/models")
    assert connection.getresponse().status == 401
    assert not [pid for pid in vllm.tree("chat") if SECRET.encode() in _command(pid)]
    files = [path for path in vllm.home.rglob("*") if path.is_file() and not path.is_symlink()]
    holding = [path.name for path in files if SECRET.encode() in path.read_bytes()]
    assert holding == ["secrets.env"]
    assert SECRET not in vllm.cli("show", "chat").stdout + vllm.cli("cat", "chat").stdout


def test_a_killed_daemon_is_not_noticed(vllm: Vllm) -> None:
    """SIGKILL of the daemon while both engines serve; then a new daemon.

    Result: they answer throughout, and are adopted with their processes, none doubled.
    """
    before = {name: vllm.show(name) for name in vllm.ports}
    vllm.kill()
    assert vllm.chat("chat", "tiny", max_tokens=2)["choices"]
    vllm.start()
    for name, engine in before.items():
        after = vllm.until_state(name, "ready")
        same = ("engine_id", "pid", "port", "restart_count")
        assert [after[key] for key in same] == [engine[key] for key in same]  # type: ignore[literal-required]
        assert len([pid for pid in vllm.tree(name) if b"EngineCore" in _command(pid)]) == 1


def test_whatever_part_of_it_is_killed_the_whole_comes_back(vllm: Vllm) -> None:
    """EngineCore of one engine gets SIGKILL (the server then exits with 0), the API server of the other.

    Result: nothing of either old tree is left, in /dev/shm neither; each is ready again with the same
    id, name and port; the reason is told in words.
    """
    before = {name: vllm.show(name) for name in vllm.ports}
    trees = {name: vllm.tree(name) for name in vllm.ports}
    segments = {name: vllm.segments(name) for name in vllm.ports}
    assert all(segments.values())
    kill(vllm.part("chat", "EngineCore"))
    kill(before["second"]["pid"] or 0)
    for name in ("chat", "second"):
        for pid in trees[name]:
            await_end(pid)
    for name in ("chat", "second"):
        after = vllm.again(name, before[name]["pid"])
        same = ("engine_id", "name", "port")
        assert [after[key] for key in same] == [before[name][key] for key in same]  # type: ignore[literal-required]
        assert after["restart_count"] == before[name]["restart_count"] + 1
        assert not [path for path in segments[name] if os.path.exists(path)]
    assert vllm.show("chat")["last_exit"]["code"] == 0  # type: ignore[index]
    assert vllm.show("second")["last_exit"]["signal"] == signal.SIGKILL  # type: ignore[index]
    told = [event["text"] for event in vllm.events if event["engine"] == "chat"]
    assert any("EngineCore" in text and "died" in text for text in told), told
    assert vllm.chat("chat", "tiny", max_tokens=2)["choices"]
    assert vllm.chat("second", "starter", max_tokens=2)["choices"]


def test_a_stop_under_a_live_stream_ends_within_its_deadline(vllm: Vllm) -> None:
    """An endless stream; drain 1 s, vLLM's own 2 s, timeout 5 s. vLLM's expired drain hangs for ever.

    Result: it is stopped by then, with its whole tree and what that had in /dev/shm.
    """
    before, segments = vllm.tree("chat"), vllm.segments("chat")
    body = {"model": "tiny", "prompt": "Hi", "stream": True, "max_tokens": 2000, "ignore_eos": True, "n": 16}
    stream = vllm.ask("chat", "/v1/completions", body)
    assert stream.readline().startswith(b"data:")
    begun = time.monotonic()
    vllm.client.stop("chat")
    engine = vllm.until_state("chat", "stopped")
    took = time.monotonic() - begun
    assert took < 1 + 5 + 4, took
    assert engine["state"] == "inactive"
    assert not [pid for pid in before if is_alive(pid)]
    assert not [path for path in segments if os.path.exists(path)]
    stream.close()


def test_a_stop_during_the_start_is_obeyed(vllm: Vllm) -> None:
    """A stop while vLLM loads, when it does not act on SIGTERM.

    Result: it is stopped within its deadline, with its whole tree.
    """
    vllm.client.start("chat")
    vllm.until("chat", lambda e: e["pid"] is not None, "a process")
    deadline = time.monotonic() + START
    while len(before := vllm.tree("chat")) < 4:  # server, tracker, EngineCore, Worker
        assert time.monotonic() < deadline
        time.sleep(0.1)  # nothing tells when it has come so far
    begun = time.monotonic()
    vllm.client.stop("chat")
    vllm.until_state("chat", "stopped")
    assert time.monotonic() - begun < 5 + 4
    assert not [pid for pid in before if is_alive(pid)]
