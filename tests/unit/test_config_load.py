"""What a configuration comes to: specs, settings, origins, warnings."""

# ruff: noqa: E501  (messages stand in one piece)

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from sagectl.config.load import Config, Origin, engine_from_body, load
from sagectl.config.settings import DaemonSettings, GpuSettings
from sagectl.core.engine import (
    EngineSpec,
    OnExceed,
    Priority,
    ProbePolicy,
    RestartPolicy,
    RestartWhen,
    StopPolicy,
)
from sagectl.errors import InvalidConfig
from sagectl.plugin import ExecProbe, HttpProbe, Mode, NotifyProbe, Probe, TcpProbe
from tests.unit.sample_kinds import KINDS, ExecOptions, LlmOptions, SampleKind

MAIN = Path("/c/sagectl.toml")
ENGINE = '[engines.a]\nkind = "exec"\ncommand = ["x"]\n'


def read(text: str, **more: Any) -> Config:
    return load(MAIN, None, KINDS, texts={MAIN: text}, **more)


def one(text: str) -> EngineSpec:
    (spec,) = read(text).specs
    return spec


def test_an_empty_configuration_is_all_defaults() -> None:
    assert read("") == Config(files=(str(MAIN),))


def test_the_least_engine_has_every_default_filled_in() -> None:
    assert one(ENGINE) == EngineSpec(
        "a", "exec", options=ExecOptions(("x",)), python=sys.executable, default_port=8100
    )


def test_every_key_arrives_where_it_belongs() -> None:
    text = """
[engines.chat]
kind = "llm"
model = "Qwen/Qwen2.5-7B-Instruct"
autostart = true
gpu_memory = "20GiB"
on_exceed = "stop"
gpu_ids = [0, 1]
port = 8001
priority = "high"
preemptible = false
idle_stop = "30min"
start_on_demand = true
depends_on = ["embed", "embed"]
env = { HF_HOME = "/models", N = 3 }
env_file = "secrets.env"
user = "nobody"
labels = { team = "x" }
python = "../venv/bin/python"
restart = { policy = "always", delay = "1s", max_delay = "5min", limit = 0, window = "10min" }
probe = { startup_timeout = "10min", interval = 10, timeout = "5s", failures = 2, http = "/health" }
stop = { drain = 0, timeout = "20s", signal = "INT" }
max_model_len = 8192
tensor_parallel_size = "auto"
extra_args = ["--x"]
[engines.embed]
kind = "exec"
command = ["embed"]
"""
    chat = read(text).specs[0]
    assert chat == EngineSpec(
        name="chat",
        kind="llm",
        model="Qwen/Qwen2.5-7B-Instruct",
        options=LlmOptions(max_model_len=8192, tensor_parallel_size="auto", extra_args=("--x",)),
        python="/venv/bin/python",
        port=8001,
        default_port=8001,
        gpus=2,
        gpu_ids=(0, 1),
        gpu_memory=20 * 2**30,
        on_exceed=OnExceed.STOP,
        user="nobody",
        autostart=True,
        priority=Priority.HIGH,
        depends_on=("embed",),
        labels={"team": "x"},
        env={"HF_HOME": "/models", "N": "3"},
        env_file="/c/secrets.env",
        probe_choice=HttpProbe("/health"),
        restart=RestartPolicy(RestartWhen.ALWAYS, 1.0, 300.0, 0, 600.0),
        probe=ProbePolicy(600.0, 10.0, 5.0, 2),
        stop=StopPolicy(0.0, 20.0, 2),
        declared={
            "preemptible": False,
            "idle_stop": 1800.0,
            "start_on_demand": True,
        },
    )


@pytest.mark.parametrize(
    ("text", "probe"),
    [
        ("", None),
        ("probe = { interval = 1 }", None),
        ('probe.http = "/x?y=1"', HttpProbe("/x?y=1")),
        ("probe.tcp = true", TcpProbe()),
        ("probe.tcp = false", None),
        ('probe.exec = ["a", "b"]', ExecProbe(("a", "b"))),
        ("probe = { notify = true, tcp = false }", NotifyProbe()),
    ],
)
def test_the_probe_that_was_chosen(text: str, probe: Probe | None) -> None:
    assert one(ENGINE + text).probe_choice == probe


@pytest.mark.parametrize(
    ("text", "gpu_ids"),
    [
        ("", None),
        ("gpus = 2", None),
        ("use_gpu = true", None),
        ("use_gpu = false", ()),
        ("gpu_ids = [3]", (3,)),
    ],
)
def test_the_gpus_that_were_chosen(text: str, gpu_ids: tuple[int, ...] | None) -> None:
    assert one(ENGINE + text).gpu_ids == gpu_ids


@pytest.mark.parametrize(
    ("default", "text", "gpus"),
    [
        (0, "", 0),
        (0, "use_gpu = true", None),
        (0, 'gpu_memory = "2GiB"', None),
        (0, "gpus = 2", 2),
        (0, "use_gpu = true\ngpu_ids = [3]", 1),
        (0, 'use_gpu = false\ngpu_memory = "2GiB"', 0),
        (1, "", None),
        (1, "gpus = 2", 2),
        (1, "gpu_ids = [3, 0]", 2),
        (1, "use_gpu = false", 0),
    ],
)
def test_how_many_gpus_are_to_be_reserved(default: int, text: str, gpus: int | None) -> None:
    kind = SampleKind("small", LlmOptions, 8090)
    kind.default_gpus = default
    config = load(MAIN, None, {"small": kind}, texts={MAIN: f'[engines.a]\nkind = "small"\n{text}'})
    assert config.specs[0].gpus == gpus


@pytest.mark.parametrize(
    ("written", "model"),
    [
        ("Qwen/Qwen2.5", "Qwen/Qwen2.5"),
        ("models/x", "models/x"),
        ("/m/x.gguf", "/m/x.gguf"),
        ("./m/x.gguf", "/c/m/x.gguf"),
        ("../x", "/x"),
        ("~/x", os.path.expanduser("~/x")),
    ],
)
def test_a_model_that_can_only_be_a_path_is_made_absolute(written: str, model: str) -> None:
    assert one(ENGINE + f'model = "{written}"').model == model


def test_a_python_without_a_slash_is_looked_up() -> None:
    python = one(ENGINE + 'python = "python3"').python
    assert os.path.isabs(python)


def test_a_long_delay_raises_the_cap_that_nobody_wrote() -> None:
    assert one(ENGINE + 'restart.delay = "10min"').restart == RestartPolicy(delay=600.0, max_delay=600.0)


def test_replicas_become_engines_with_consecutive_ports() -> None:
    specs = read(ENGINE + "replicas = 3\nport = 9000").specs
    assert [(s.name, s.group, s.port) for s in specs] == [
        ("a@1", "a", 9000),
        ("a@2", "a", 9001),
        ("a@3", "a", 9002),
    ]
    assert [s.port for s in read(ENGINE + "replicas = 2").specs] == [None, None]


def test_one_replica_is_the_engine_itself() -> None:
    assert one(ENGINE + "replicas = 1").name == "a"


def test_defaults_lie_below_the_engines_own_keys_table_by_table() -> None:
    config = read(
        """
[defaults.exec]
autostart = true
serves = ["x"]
env = { A = "1", B = "1" }
restart = { delay = "2s", limit = 7 }
probe = { http = "/health", interval = "3s" }
gpus = 2
[engines.a]
kind = "exec"
command = ["x"]
autostart = false
env = { B = "2", C = "2" }
restart.limit = 0
probe.tcp = true
use_gpu = false
[engines.j]
kind = "job"
command = ["x"]
"""
    )
    a, j = config.specs
    assert a.autostart is False
    assert a.options == ExecOptions(("x",), ("x",))
    assert a.env == {"A": "1", "B": "2", "C": "2"}
    assert (a.restart.delay, a.restart.limit) == (2.0, 0)
    assert (a.probe_choice, a.probe.interval) == (TcpProbe(), 3.0)
    assert (a.gpu_ids, a.declared) == ((), {})
    assert j.mode is Mode.RUN
    assert j.restart == RestartPolicy()


def test_every_given_value_has_its_origin() -> None:
    config = read(
        """[defaults.exec]
serves = ["x"]
restart = { delay = "2s", limit = 7 }
env = { A = "1" }
[engines.a]
kind = "exec"
command = ["x"]
restart.limit = 0
model_id = "m"
use_gpu = false
env.B = "2"
"""
    )
    file = str(MAIN)
    origins = config.origins["a"]
    assert origins["kind"] == Origin("file", file, 6, "engines.a.kind")
    assert origins["serves"] == Origin("defaults", file, 2, "defaults.exec.serves")
    assert origins["restart.limit"] == Origin("file", file, 8, "engines.a.restart.limit")
    assert origins["restart.delay"] == Origin("defaults", file, 3, "defaults.exec.restart.delay")
    assert origins["env.A"] == Origin("defaults", file, 4, "defaults.exec.env.A")
    assert origins["env.B"] == Origin("file", file, 11, "engines.a.env.B")
    assert origins["model"] == Origin("file", file, 9, "engines.a.model_id")
    assert origins["gpu_ids"] == origins["use_gpu"]
    assert "autostart" not in origins


def test_origins_name_what_was_replaced_nowhere() -> None:
    config = read(
        "[defaults.exec]\nprobe = { http = '/x', interval = 1 }\nlabels = { a = 'b' }\n"
        + ENGINE
        + "probe = { tcp = true }"
    )
    origins = config.origins["a"]
    assert "probe.http" not in origins
    assert origins["probe.interval"].source == "defaults"
    assert origins["probe.tcp"].source == "file"
    assert origins["labels.a"].source == "defaults"


def test_settings_of_the_daemon_and_the_gpus() -> None:
    config = read(
        """
[daemon]
group = "ai"
log_max_size = "1MiB"
log_keep = 0
[gpu]
backend = "simulated"
reserve = "2GiB"
[gpu.simulated]
count = 4
memory = "24GB"
nvlink = [[0, 1], [2, 3]]
process_ids = false
numa = [0, 0, 1, 1]
[gpu.budgets]
llm = "70%"
embedding = "4GiB"
"""
    )
    assert config.daemon == DaemonSettings("ai", 2**20, 0)
    assert config.gpu == GpuSettings(
        backend="simulated",
        reserve=2 * 2**30,
        simulated_count=4,
        simulated_memory=24_000_000_000,
        nvlink=((0, 1), (2, 3)),
        simulated_process_ids=False,
        simulated_numa=(0, 0, 1, 1),
        budgets={"llm": "70%", "embedding": 4 * 2**30},
    )


@pytest.mark.parametrize(
    ("text", "warnings"),
    [
        (ENGINE, []),
        ("[gpu]\nbackend = 'none'", []),
        (
            ENGINE + "idle_stop = 2\n[engines.b]\nkind = 'llm'\nidle_stop = 1\npreemptible = true",
            [
                "/c/sagectl.toml:4: engines.a.idle_stop: accepted, not acted on by this version "
                "(also in 1 more)",
                "/c/sagectl.toml:8: engines.b.preemptible: accepted, not acted on by this version",
            ],
        ),
        (
            ENGINE + "env = { HF_TOKEN = 'x', MAX_TOKENS = '5' }",
            [
                "/c/sagectl.toml:4: engines.a.env.HF_TOKEN: looks like a secret in a file that others may read "
                "(use env_file)"
            ],
        ),
        (
            ENGINE + "env = { CUDA_VISIBLE_DEVICES = '0' }",
            [
                "/c/sagectl.toml:4: engines.a.env.CUDA_VISIBLE_DEVICES: hides GPUs from the engine behind "
                "sagectl's back (use gpu_ids = […], or use_gpu = false)"
            ],
        ),
        (
            "[defaults.finetune]",
            ['/c/sagectl.toml:1: defaults.finetune: no kind called "finetune" is installed'],
        ),
    ],
)
def test_warnings(text: str, warnings: list[str]) -> None:
    config = read(text)
    assert [str(warning) for warning in config.warnings] == warnings
    assert {warning.severity for warning in config.warnings} <= {"warning"}


# --- Broken plugins ------------------------------------------------------------------------------


def test_an_engine_of_a_broken_plugin_is_left_out_and_the_others_are_not() -> None:
    text = ENGINE + "depends_on = ['b']\n[engines.b]\nkind = 'diffusion'\nsteps = 4\nreplicas = 2"
    config = read(text, broken={"diffusion": "ImportError: no module named x"})
    assert [spec.name for spec in config.specs] == ["a"]
    assert config.left_out_names == {"b", "b@1", "b@2"}
    assert [(str(p), p.severity) for p in config.left_out] == [
        (
            '/c/sagectl.toml:6: engines.b.kind: no kind is called "diffusion", and the plugin diffusion is broken: '
            "ImportError: no module named x (see `sagectl kinds`)",
            "error",
        )
    ]


def test_a_kind_that_a_broken_plugin_may_bring_is_no_typing_error() -> None:
    config = read("[engines.b]\nkind = 'diffusion'\n[defaults.diffusion]\nx = 1", broken={"acme": "boom"})
    assert config.specs == ()
    assert "the plugin acme is broken" in str(config.left_out[0])


# --- Files ---------------------------------------------------------------------------------------


def test_files_are_read_in_the_order_of_their_names(tmp_path: Path) -> None:
    engines_d = tmp_path / "engines.d"
    engines_d.mkdir()
    (tmp_path / "sagectl.toml").write_text("\ufeff" + ENGINE)
    for name in ("20-c", "10-b"):
        (engines_d / f"{name}.toml").write_text(ENGINE.replace(".a]", f".{name[-1]}]"))
    for ignored in ("x.toml~", ".x.toml", "readme.txt"):
        (engines_d / ignored).write_text("not TOML")
    config = load(tmp_path / "sagectl.toml", engines_d, KINDS)
    assert [spec.name for spec in config.specs] == ["a", "b", "c"]
    assert [Path(file).name for file in config.files] == ["sagectl.toml", "10-b.toml", "20-c.toml"]


def test_a_missing_configuration_is_empty_unless_it_was_named(tmp_path: Path) -> None:
    assert load(tmp_path / "no.toml", tmp_path / "no.d", KINDS) == Config()
    with pytest.raises(InvalidConfig, match=r"no\.toml: cannot be read: No such file"):
        load(tmp_path / "no.toml", None, KINDS, explicit=True)


def only_problem(file: Path, engines_d: Path | None = None) -> str:
    with pytest.raises(InvalidConfig) as caught:
        load(file, engines_d, KINDS)
    (problem,) = caught.value.problems
    return str(problem).replace(str(file.parent), "DIR")


def test_a_file_that_is_not_utf8_is_refused_with_the_line(tmp_path: Path) -> None:
    file = tmp_path / "sagectl.toml"
    file.write_bytes(b"# one\n# two \xff\n")
    assert only_problem(file) == "DIR/sagectl.toml:2: byte 0xff is not UTF-8 (save the file as UTF-8)"


def test_a_directory_in_the_place_of_the_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "sagectl.toml"
    file.mkdir()
    assert only_problem(file) == "DIR/sagectl.toml: is a directory (name a file)"


def test_a_link_to_nothing_is_not_an_empty_configuration(tmp_path: Path) -> None:
    file = tmp_path / "sagectl.toml"
    file.symlink_to(tmp_path / "gone")
    assert "cannot be read: No such file" in only_problem(file)


def test_a_fifo_in_engines_d_is_refused_rather_than_waited_for(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    os.mkfifo(tmp_path / "d" / "x.toml")
    problem = only_problem(tmp_path / "sagectl.toml", tmp_path / "d")
    assert problem == "DIR/d/x.toml: is not a file (move it out of engines.d)"


def test_a_huge_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "sagectl.toml"
    file.write_bytes(b"#" * (9 * 2**20))
    assert only_problem(file).startswith("DIR/sagectl.toml: is larger than a configuration can be")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "sagectl.toml"
    file.write_text("")
    file.chmod(0)
    assert only_problem(file).startswith("DIR/sagectl.toml: cannot be read: permission denied (let user")


def test_an_unreadable_place_is_not_an_empty_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "sagectl.toml"
    file.write_text("")

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    assert "cannot be read: permission denied" in only_problem(file)
    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(InvalidConfig, match="cannot be read: Permission denied"):
        load(tmp_path / "no.toml", tmp_path, KINDS)


# --- Definitions over the API --------------------------------------------------------------------


def test_a_body_with_sages_names_is_understood() -> None:
    body = {
        "model_id": "org/m",
        "engine_kind": "llm",
        "required_memory_gb": 4.5,
        "engine_label": "mine",
        "tensor_parallel_size": 2,
        "port": None,
        "use_gpu": True,
        "extra_args": ["--x"],
    }
    spec = engine_from_body("engine-0123abcd", body, KINDS)
    assert spec.model == "org/m"
    assert spec.options == LlmOptions(tensor_parallel_size=2, extra_args=("--x",))
    assert spec.labels == {"label": "mine"}
    assert spec.gpu_memory == round(4.5 * 2**30)


def test_a_request_takes_the_defaults_of_its_kind_and_its_own_keys_before_them(tmp_path: Path) -> None:
    file = tmp_path / "sagectl.toml"
    text = """
        [defaults.llm]
        python = "venv/bin/python"
        env = { HF_HOME = "/models", HF_TOKEN = "in the file, so only worth a warning" }
        tensor_parallel_size = 2
        gpu_ids = [0, 1]
    """
    config = load(file, None, KINDS, texts={file: text})
    body = {"kind": "llm", "model": "m", "tensor_parallel_size": 1, "use_gpu": False, "env": {"A": "b"}}
    spec = engine_from_body("x", body, KINDS, config.defaults)
    assert spec.python == str(tmp_path / "venv/bin/python")
    assert spec.options == LlmOptions(tensor_parallel_size=1)
    assert spec.gpu_ids == ()
    assert spec.env["HF_HOME"] == "/models"
    assert spec.env["A"] == "b"
    with pytest.raises(InvalidConfig, match=r"env\.HF_TOKEN: looks like a secret"):
        engine_from_body("x", {**body, "env": {"HF_TOKEN": "mine"}}, KINDS, config.defaults)


@pytest.mark.parametrize(
    ("name", "body", "problems"),
    [
        ("x", {}, ['kind: is required (add kind = "…"; kinds are exec, job, llm)']),
        (
            "Bad Name",
            {"kind": "exec", "port": "a", "env": {"API_TOKEN": "x"}, "zz": 1},
            [
                'name: "Bad Name" is not a name for an engine '
                '(use a-z, 0-9, _ and -, beginning with a letter or digit, such as "bad-name")',
                'zz: unknown key for kind "exec" (`sagectl kinds` lists the keys)',
                'port: must be a whole number, not "a"',
                "command: is required (add command = …: program and arguments)",
            ],
        ),
        (
            "x",
            {"kind": "llm", "env": {"HF_TOKEN": "x"}},
            [
                "env.HF_TOKEN: looks like a secret, and this definition would be stored with it (write it into a "
                "file that only the engine's user can read, and name that as env_file)"
            ],
        ),
        (
            "x",
            {"kind": "llm", "python": "venv/bin/python", "env_file": "a.env", "model": "./m"},
            [
                'model: "./m" is relative to nothing here (write an absolute path)',
                'python: "venv/bin/python" is relative to nothing here (write an absolute path)',
                'env_file: "a.env" is relative to nothing here (write an absolute path)',
            ],
        ),
        (
            "x",
            {"kind": "llm", "replicas": 2},
            ["replicas: a request defines one engine (define each by itself)"],
        ),
        (
            "x",
            {"kind": "llm", "model": "\ud800"},
            ["model: holds half of a character (write it as one)"],
        ),
        (
            "x",
            {"kind": "llm", "extra_args": ["\ud800"]},
            ["extra_args: holds half of a character (write it as one)"],
        ),
        ("x", {"kind": ["llm"]}, ["kind: must be a string, not an array (kinds are exec, job, llm)"]),
    ],
)
def test_a_wrong_body_is_refused_with_every_field(
    name: str, body: dict[str, Any], problems: list[str]
) -> None:
    with pytest.raises(InvalidConfig) as caught:
        engine_from_body(name, body, KINDS)
    assert [str(problem) for problem in caught.value.problems] == problems
