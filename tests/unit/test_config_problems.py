"""TOML in, the exact list of problems out: `file:line: key: what is wrong (remedy)`."""

# ruff: noqa: E501  (messages stand in one piece)

from __future__ import annotations

from pathlib import Path

import pytest

from sagectl.config.load import load
from sagectl.errors import InvalidConfig
from tests.unit.sample_kinds import KINDS

MAIN = Path("/c/sagectl.toml")
DROP_INS = Path("/c/engines.d")


def problems(text: str, **drop_ins: str) -> list[str]:
    """The errors in a configuration; files are named without their directories."""
    texts = {MAIN: text, **{DROP_INS / f"{name}.toml": more for name, more in drop_ins.items()}}
    try:
        load(MAIN, DROP_INS, KINDS, texts=texts)
    except InvalidConfig as error:
        wrong = [str(problem) for problem in error.problems if problem.severity == "error"]
        return [line.replace("/c/", "") for line in wrong]
    return []


def expect(text: str, expected: str, **drop_ins: str) -> None:
    assert "\n".join(problems(text, **drop_ins)) == expected.strip()


ENGINE = '[engines.a]\nkind = "exec"\ncommand = ["x"]\n'
"""Three lines of a right engine: what follows stands on line 4."""

SIZE = '(write a size such as "20GiB" or "500MB", or a number of bytes'
TIME = '(write a duration such as "90s", "5min" or "1h", or a number of seconds)'


def test_all_errors_of_all_files_are_reported_at_once_in_their_order() -> None:
    expect(
        """\
[daemon]
grup = "x"
[gpu.budgets]
llm = "170%"
[engines.chat]
kind = "llm"
port = "8001"
[engines.web]
kind = "exec"
command = ["x"]
port = 8005
depends_on = ["mail"]
""",
        """
sagectl.toml:2: daemon.grup: unknown key (did you mean "group"?)
sagectl.toml:4: gpu.budgets.llm: 170% is more than the whole card (write at most 100%)
sagectl.toml:7: engines.chat.port: must be a whole number, not "8001" (write 8001 without quotes)
sagectl.toml:12: engines.web.depends_on: engines wait for each other in a circle: web → mail → web \
(remove one of these dependencies)
engines.d/10.toml:4: engines.mail.port: 8005 is already the port of engine "web" (sagectl.toml:11) \
(choose another one, or leave it out for a free one)
engines.d/20.toml:1: engines.web: engine "web" is already in sagectl.toml:8 (keep it in one file)
""",
        **{
            "10": '[engines.mail]\nkind = "exec"\ncommand = ["x"]\nport = 8005\ndepends_on = ["web"]\n',
            "20": '[engines.web]\nkind = "exec"\ncommand = ["y"]\n',
        },
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("gate = 1", "sagectl.toml:1: gate: unknown key (known are [daemon], [gpu], [defaults], [engines])"),
        ("[engine.a]", 'sagectl.toml:1: engine: unknown table (did you mean "engines"?)'),
        ('\n[a]\nkind = "exec"', "sagectl.toml:2: a: unknown table (write [engines.a])"),
        ("[gateway]", "sagectl.toml:1: gateway: this version has no gateway yet (remove the table)"),
        (
            '[[gateway.upstreams]]\nname = "x"',
            "sagectl.toml:1: gateway: this version has no gateway yet (remove the table)",
        ),
        ("[presets.x]", "sagectl.toml:1: presets: this version has no presets yet (remove the table)"),
        ("engines = 5", "sagectl.toml:1: engines: must be a table, not 5 (write [engines])"),
        ("[engines]\na = 5", "sagectl.toml:2: engines.a: must be a table, not 5 (write [engines.a])"),
        (
            '[[engines.a]]\nkind = "exec"',
            "sagectl.toml:1: engines.a: must be a table, not an array (write [engines.a])",
        ),
        (
            "[defaults]\nllm = 1",
            "sagectl.toml:2: defaults.llm: must be a table, not 1 (write [defaults.llm])",
        ),
        ("[defaults.lmm]", 'sagectl.toml:1: defaults.lmm: no kind is called "lmm" (did you mean "llm"?)'),
        (
            '[defaults.llm]\nkind = "llm"',
            "sagectl.toml:2: defaults.llm.kind: cannot be a default (remove it)",
        ),
        (
            "[daemon]\nlog_keep = -1\nlog_max_size = \"1KiB\"\ngroup = ''",
            """
sagectl.toml:2: daemon.log_keep: must be at least 0, not -1
sagectl.toml:3: daemon.log_max_size: a log that small would be rotated all the time (write at least 64KiB)
sagectl.toml:4: daemon.group: is empty (write a value, or remove the key)""",
        ),
    ],
)
def test_tables(text: str, expected: str) -> None:
    expect(text, expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "prority = 'high'",
            'sagectl.toml:4: engines.a.prority: unknown key for kind "exec" (did you mean "priority"?)',
        ),
        (
            "serve = []",
            'sagectl.toml:4: engines.a.serve: unknown key for kind "exec" (did you mean "serves"?)',
        ),
        (
            "xyzzy = 1",
            'sagectl.toml:4: engines.a.xyzzy: unknown key for kind "exec" (`sagectl kinds` lists the keys)',
        ),
        (
            "max_model_len = 1",
            'sagectl.toml:4: engines.a.max_model_len: unknown key for kind "exec" (`sagectl kinds` lists the keys)',
        ),
        (
            "restart = { delya = 1 }",
            'sagectl.toml:4: engines.a.restart.delya: unknown key (did you mean "delay"?)',
        ),
        (
            "stop = { x = 1 }",
            "sagectl.toml:4: engines.a.stop.x: unknown key (known are drain, timeout, signal)",
        ),
        (
            "probe.intervall = 1\nprobe.tmeout = 1",
            """
sagectl.toml:4: engines.a.probe.intervall: unknown key (did you mean "interval"?)
sagectl.toml:5: engines.a.probe.tmeout: unknown key (did you mean "timeout"?)""",
        ),
    ],
)
def test_unknown_keys_of_an_engine(text: str, expected: str) -> None:
    expect(ENGINE + text, expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('port = "8001"', 'port: must be a whole number, not "8001" (write 8001 without quotes)'),
        ("port = 8001.0", "port: must be a whole number, not 8001.0"),
        ("port = true", "port: must be a whole number, not true"),
        ("port = 0", "port: 0 is not a port (leave it out for a free one)"),
        ("port = 65536", "port: 65536 is not a port (choose one from 1 to 65535)"),
        ("port = -1", "port: -1 is not a port (choose one from 1 to 65535)"),
        (f"port = {10**40}", "port: a number of 41 digits is not a port (choose one from 1 to 65535)"),
        ('autostart = "yes"', 'autostart: must be true or false, not "yes" (write true without quotes)'),
        ("autostart = 1", "autostart: must be true or false, not 1"),
        ('model = ""', "model: is empty (write a value, or remove the key)"),
        ("model = 7", 'model: must be a string, not 7 (put it in quotes: "7")'),
        ("model = 1979-05-27", "model: must be a string, not a date or time"),
        (
            'model = "a\\u0000b"',
            "model: contains a NUL character, which no argument or variable can (remove it)",
        ),
        (
            'priority = "hihg"',
            'priority: must be "critical", "high", "normal", "low" or "background", not "hihg" (did you mean "high"?)',
        ),
        ('depends_on = "b"', 'depends_on: must be an array, not "b" (write ["b"])'),
        ('depends_on = ["b c"]', 'depends_on: "b c" cannot be an engine\'s name (name an engine or a group)'),
        ("replicas = 0", "replicas: must be at least 1, not 0"),
        ("replicas = 65", "replicas: must be at most 64, not 65"),
        (
            "port = 65535\nreplicas = 2",
            "port: leaves no room for 2 replicas below 65536 (choose a lower one)",
        ),
        (
            'host = "0.0.0.0"',
            'host: "0.0.0.0" is not a loopback address, and engines listen on nothing else '
            "(remove it, and put a gateway or proxy in front of the engine)",
        ),
        (
            'host = "127.example.com"',
            'host: "127.example.com" is not a loopback address, and engines listen on nothing else '
            "(remove it, and put a gateway or proxy in front of the engine)",
        ),
        ("labels = { a = 1.5 }", 'labels.a: must be a string, not 1.5 (put it in quotes: "1.5")'),
        ('env = ["A=1"]', "env: must be a table, not an array"),
        ("env = { A = true }", 'env.A: must be a string, not true (put it in quotes: "true")'),
        ("env = { A = [] }", "env.A: must be a string, not an empty array"),
        (
            'env = { "A=B" = "x" }',
            'env."A=B": "A=B" cannot be a variable\'s name (use letters, digits and _)',
        ),
        (
            'env = { NOTIFY_SOCKET = "x" }',
            "env.NOTIFY_SOCKET: NOTIFY_SOCKET is set by sagectl itself (remove it)",
        ),
        (
            "use_gpu = false\ngpu_ids = [0]",
            "gpu_ids: contradicts use_gpu (keep one of gpus, gpu_ids, use_gpu)",
        ),
        ("gpu_ids = []", "gpu_ids: is empty (write use_gpu = false for an engine without a GPU)"),
        ("gpu_ids = [0, 0]", "gpu_ids: names a GPU twice (name each once)"),
        ("gpu_ids = [-1]", "gpu_ids: has a number that is no GPU's (GPUs are counted from 0)"),
        ("gpus = 0", "gpus: 0 is not a number of GPUs (write use_gpu = false for an engine without one)"),
        ('gpu_memory = "120%"', "gpu_memory: 120% is more than the whole card (write at most 100%)"),
        ('gpu_memory = "20"', f'gpu_memory: "20" has no unit {SIZE})'),
        (
            "gpu_memory = 0",
            "gpu_memory: 0 is no memory at all (write use_gpu = false for an engine without a GPU)",
        ),
        ("gpu_memory = -5", f"gpu_memory: -5 is negative {SIZE})"),
        ("gpu_memory = nan", f'gpu_memory: nan is neither a size nor a share {SIZE}, or "40%")'),
        ("idle_stop = 0", "idle_stop: 0 leaves no time at all (write a longer duration)"),
        ('on_exceed = "kill"', 'on_exceed: must be "warn", "restart" or "stop", not "kill"'),
        (
            'python = "no-such-python"',
            'python: there is no "no-such-python" on the PATH (write its whole path)',
        ),
        ('command = "x"', "command: is set twice, first on line 3 (remove one of them)"),
    ],
)
def test_single_values(text: str, expected: str) -> None:
    line = 3 + len(text.splitlines()) if not text.startswith("port = 65535") else 4
    expect(ENGINE + text, f"sagectl.toml:{line}: engines.a.{expected}")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            'restart = "always"',
            'restart: must be a table, not "always" (write restart = { policy = "always" })',
        ),
        ("restart = false", 'restart: must be a table, not false (write restart = { policy = "no" })'),
        (
            'restart = { policy = "alway" }',
            'restart.policy: must be "no", "on-failure" or "always", not "alway" (did you mean "always"?)',
        ),
        ("restart = { delay = nan }", f"restart.delay: nan is not a duration {TIME}"),
        ("restart = { delay = inf }", f"restart.delay: inf is not a duration {TIME}"),
        ("restart = { delay = -1 }", f"restart.delay: -1 is negative {TIME}"),
        ('restart = { delay = "soon" }', f'restart.delay: "soon" is not a duration {TIME}'),
        ("restart = { limit = -1 }", "restart.limit: must be at least 0, not -1"),
        ("restart = { window = 0 }", "restart.window: 0 leaves no time at all (write a longer duration)"),
        (
            'restart = { delay = "2min", max_delay = "1min" }',
            "restart.max_delay: is less than the delay of 120 s (raise it, or lower restart.delay)",
        ),
        ("probe = 5", "probe: must be a table, not 5"),
        (
            'probe = { http = "health" }',
            'probe.http: "health" is not a path on the engine (write a path such as "/health")',
        ),
        (
            'probe = { http = "/a b" }',
            'probe.http: "/a b" is not a path on the engine (write a path such as "/health")',
        ),
        (
            'probe = { http = "/x", tcp = true }',
            "probe.tcp: is a second probe beside http (keep one of them)",
        ),
        (
            'probe = { exec = "curl x" }',
            'probe.exec: is a string, and commands are given to no shell (write an array: ["prog", "arg"])',
        ),
        ("probe = { exec = [] }", 'probe.exec: names no program (write an array: ["prog", "arg"])'),
        ('probe = { exec = [""] }', 'probe.exec: names no program (write an array: ["prog", "arg"])'),
        ("probe = { failures = 0 }", "probe.failures: must be at least 1, not 0"),
        ("probe = { interval = 0 }", "probe.interval: 0 leaves no time at all (write a longer duration)"),
        (
            'stop = { signal = "SIGNOPE" }',
            'stop.signal: "SIGNOPE" is not a signal (write a signal such as "SIGINT", or its number)',
        ),
        (
            "stop = { signal = 1000 }",
            'stop.signal: 1000 is not a signal (write a signal such as "SIGINT", or its number)',
        ),
        ("stop = { timeout = true }", f"stop.timeout: true is not a duration {TIME}"),
    ],
)
def test_values_in_the_tables_of_an_engine(text: str, expected: str) -> None:
    expect(ENGINE + text, f"sagectl.toml:4: engines.a.{expected}")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('kind = "exec"', "1: engines.a.command: is required (add command = …: program and arguments)"),
        (
            'kind = "exec"\ncommand = []',
            '3: engines.a.command: names no program (write a list such as ["serve", "--port", "1"])',
        ),
        ('kind = "exec"\ncommand = "x"', '3: engines.a.command: must be an array, not "x" (write ["x"])'),
        (
            'kind = "exec"\ncommand = ["x",\n 1]',
            '4: engines.a.command: must be a string, not 1 (put it in quotes: "1")',
        ),
        ("autostart = true", '1: engines.a.kind: is required (add kind = "…"; kinds are exec, job, llm)'),
        ("kind = 5", "2: engines.a.kind: must be a string, not 5 (kinds are exec, job, llm)"),
        ('kind = "exce"', '2: engines.a.kind: no kind is called "exce" (did you mean "exec"?)'),
        ('kind = "vllm"', '2: engines.a.kind: no kind is called "vllm" (did you mean "llm"?)'),
        ('kind = "zzz"', '2: engines.a.kind: no kind is called "zzz" (kinds are exec, job, llm)'),
        (
            'kind = "llm"\nmodel = "x"\nmodel_id = "y"',
            '4: engines.a.model_id: says the same as "model" (remove one of them)',
        ),
        (
            'kind = "llm"\nmax_seq_length = "8k"',
            '3: engines.a.max_seq_length: must be a whole number, not "8k"',
        ),
        (
            'kind = "llm"\nrequired_memory_gb = "x"',
            f'3: engines.a.required_memory_gb: "x" is not a size {SIZE})',
        ),
        (
            'kind = "llm"\nbackend = "vlm"',
            '3: engines.a.backend: must be "auto" or "vllm", not "vlm" (did you mean "vllm"?)',
        ),
        (
            'kind = "llm"\ntensor_parallel_size = "two"',
            '3: engines.a.tensor_parallel_size: must be a whole number or "auto", not "two"',
        ),
        (
            'kind = "llm"\ntemperature = nan',
            "3: engines.a.temperature: nan is not a finite number (write one)",
        ),
        (
            'kind = "llm"\ntemperature = 12:00:00',
            "3: engines.a.temperature: is a date or time, which no key takes (put it in quotes)",
        ),
        ('kind = "llm"\nquotas = { a = "b" }', '3: engines.a.quotas.a: must be a whole number, not "b"'),
        (
            'kind = "llm"\nquotas = ' + "[" * 40 + "]" * 40,
            "3: engines.a.quotas: is nested too deeply (flatten it)",
        ),
        (
            'kind = "job"\ncommand = ["x"]\nrestart.policy = "always"',
            "4: engines.a.restart.policy: is wrong for a job: what is completed does not run again by itself "
            '(write "on-failure" or "no")',
        ),
        (
            'kind = "job"\ncommand = ["x"]\nprobe.http = "/"',
            "4: engines.a.probe.http: needs a port, and this engine has none (add port = …)",
        ),
    ],
)
def test_kinds_and_their_options(text: str, expected: str) -> None:
    expect(f"[engines.a]\n{text}", f"sagectl.toml:{expected}")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "Chat",
            '"Chat" is not a name for an engine (use a-z, 0-9, _ and -, beginning with a letter or digit, such as "chat")',
        ),
        (
            '"my chat"',
            '"my chat" is not a name for an engine (use a-z, 0-9, _ and -, beginning with a letter or digit, such as "my-chat")',
        ),
        (
            '"chat@1"',
            '"chat@1" is not a name for an engine (use a-z, 0-9, _ and -, beginning with a letter or digit, such as "chat-1")',
        ),
        (
            '"../x"',
            '"../x" is not a name for an engine (use a-z, 0-9, _ and -, beginning with a letter or digit, such as "x")',
        ),
        ('""', '"" is not a name for an engine (use a-z, 0-9, _ and -, beginning with a letter or digit)'),
        (
            "_x",
            '"_x" is not a name for an engine (use a-z, 0-9, _ and -, beginning with a letter or digit, such as "x")',
        ),
        ("a" * 49, "the name is 49 characters long (use at most 48)"),
        ("engine-0123abcd", '"engine-0123abcd" looks like an engine\'s id (choose a name of another form)'),
    ],
)
def test_names(name: str, message: str) -> None:
    expect(f'[engines.{name}]\nkind = "exec"\ncommand = ["x"]', f"sagectl.toml:1: engines.{name}: {message}")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "[engines.a]\n{}port = 80\n[engines.b]\n{}port = 80",
            '8: engines.b.port: 80 is already the port of engine "a" (sagectl.toml:4) '
            "(choose another one, or leave it out for a free one)",
        ),
        (
            "[engines.a]\n{}port = 80\nreplicas = 3\n[engines.b]\n{}port = 82",
            '9: engines.b.port: 82 is already the port of engine "a" (sagectl.toml:4) '
            "(choose another one, or leave it out for a free one)",
        ),
        (
            "[engines.a]\n{}port = 82\n[engines.b]\n{}port = 80\nreplicas = 3",
            '8: engines.b.port: 82, which its replicas reach, is already the port of engine "a" (sagectl.toml:4) '
            "(choose another one, or leave it out for a free one)",
        ),
        (
            "[engines.a]\n{}depends_on = ['a']",
            "4: engines.a.depends_on: an engine cannot wait for itself (remove it)",
        ),
        (
            "[engines.a]\n{}replicas = 2\ndepends_on = ['a@2']",
            "5: engines.a.depends_on: an engine cannot wait for itself (remove it)",
        ),
        (
            "[engines.a]\n{}depends_on = [\n 'embed',\n 'emebd']\n[engines.embed]\n{}",
            '6: engines.a.depends_on: there is no engine "emebd" (did you mean "embed"?)',
        ),
        (
            "[engines.a]\n{}depends_on = ['b@3']\n[engines.b]\n{}replicas = 2",
            '4: engines.a.depends_on: there is no engine "b@3" (did you mean "b@2"?)',
        ),
        (
            "[engines.a]\n{}depends_on = ['b']\n[engines.b]\n{}depends_on = ['c']\nreplicas = 2\n"
            "[engines.c]\n{}depends_on = ['b@2']",
            "8: engines.b.depends_on: engines wait for each other in a circle: b → c → b "
            "(remove one of these dependencies)",
        ),
    ],
)
def test_engines_between_each_other(text: str, expected: str) -> None:
    expect(text.replace("{}", 'kind = "exec"\ncommand = ["x"]\n'), f"sagectl.toml:{expected}")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('backend = "cuda"', '2: gpu.backend: must be "auto", "nvml", "simulated" or "none", not "cuda"'),
        ("reserve = -1", f"2: gpu.reserve: -1 is negative {SIZE})"),
        ("reserve = inf", f"2: gpu.reserve: inf is not a size {SIZE})"),
        ("simulated.count = 65", "2: gpu.simulated.count: must be at most 64, not 65"),
        (
            "simulated = { count = 2, nvlink = [[0, 2]] }",
            "2: gpu.simulated.nvlink: there is no simulated GPU 2 (there are 2, counted from 0)",
        ),
        (
            "simulated = { count = 2, nvlink = [[1]] }",
            "2: gpu.simulated.nvlink: does not link different GPUs (write groups such as [0, 1])",
        ),
        (
            "simulated = { count = 2, numa = [0] }",
            "2: gpu.simulated.numa: is 1 long, and there are 2 simulated GPUs "
            "(write one node for each, counted from 0)",
        ),
        ("simulated.memroy = 1", '2: gpu.simulated.memroy: unknown key (did you mean "memory"?)'),
        ('budgets.llm = "101%"', "2: gpu.budgets.llm: 101% is more than the whole card (write at most 100%)"),
        ('budgets.llm = "0%"', '2: gpu.budgets.llm: 0% leaves nothing (write a share such as "40%")'),
        ("budgets.llm = 0.7", f'2: gpu.budgets.llm: 0.7 is neither a size nor a share {SIZE}, or "40%")'),
        ('budgets.lmm = "10%"', '2: gpu.budgets.lmm: no kind is called "lmm" (did you mean "llm"?)'),
        ("budgets = []", "2: gpu.budgets: must be a table, not an empty array"),
    ],
)
def test_the_gpu_table(text: str, expected: str) -> None:
    expect(f"[gpu]\n{text}", f"sagectl.toml:{expected}")


def test_defaults_are_checked_once_however_many_engines_use_them() -> None:
    expect(
        '[defaults.llm]\nmax_model_len = "8k"\npythn = "x"\nprobe = { interval = -1 }\n'
        '[engines.a]\nkind = "llm"\n[engines.b]\nkind = "llm"\n',
        f"""
sagectl.toml:2: defaults.llm.max_model_len: must be a whole number, not "8k"
sagectl.toml:3: defaults.llm.pythn: unknown key for kind "llm" (did you mean "python"?)
sagectl.toml:4: defaults.llm.probe.interval: -1 is negative {TIME}""",
    )


def test_defaults_without_engines_are_checked_too() -> None:
    expect("[defaults.exec]\nserves = 5", "sagectl.toml:2: defaults.exec.serves: must be an array, not 5")


def test_in_engines_d_only_engines_are_taken() -> None:
    expect(
        "",
        """
engines.d/a.toml:1: daemon: only engines can stand in engines.d (move it to sagectl.toml)
engines.d/a.toml:3: defaults: only engines can stand in engines.d (move it to sagectl.toml)
engines.d/a.toml:4: gateway: this version has no gateway yet (remove the table)""",
        a="[daemon]\nlog_keep = 1\n[defaults.llm]\n[gateway]\n",
    )


# --- Files that are no TOML ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            '[engines.a]\nkind = "exec\nport = 1',
            "2: is not valid TOML: Illegal character '\\n' (close the quotes on the line where they open)",
        ),
        (
            "[engines.a]\nkind = exec",
            "2: is not valid TOML: Invalid value (strings need quotes; true and false are in lower case)",
        ),
        ("[engines.a\nport = 1", "1: is not valid TOML: Expected ']' at the end of a table declaration"),
        (
            "[engines.a]\nport: 1",
            "2: is not valid TOML: Expected '=' after a key in a key/value pair (write key = value)",
        ),
        (
            "[engines.a]\nport = 1 gpus = 2",
            "2: is not valid TOML: Expected newline or end of document after a statement (write one key a line)",
        ),
        (
            '[engines.a]\ncommand = ["a",\n "b"\nport = 3',
            "2: engines.a.command: is not valid TOML: Unclosed array, noticed on line 4 (close it with ])",
        ),
        (
            '[engines.a]\nmodel = """x\nport = 1\n',
            "2: engines.a.model: is not valid TOML: Unterminated string, noticed on line 4 "
            "(close it with the quotes that open it)",
        ),
        (
            "[engines.a]\nport = 1\nport = 2",
            "3: engines.a.port: is set twice, first on line 2 (remove one of them)",
        ),
        (
            "[engines.a]\nport = 1\n\n[engines.a]\ngpus = 2",
            "4: the table [engines.a] is declared twice, first on line 1 (remove one of them)",
        ),
        ("a = " + "9" * 5000, "1: a number with thousands of digits (write a smaller one)"),
        ('a = "\x00"', "1: is not valid TOML: Illegal character '\\x00'"),
    ],
)
def test_a_syntax_error_is_placed_where_it_can_be_mended(text: str, expected: str) -> None:
    expect(text, f"sagectl.toml:{expected}")


@pytest.mark.parametrize("depth", [100, 300, 600, 5000])
def test_deep_nesting_is_refused_rather_than_fatal(depth: int) -> None:
    text = f"[engines.a]\nkind = 'llm'\nquotas = {'[' * depth}{']' * depth}"
    assert len(problems(text)) == 1


def test_a_broken_file_does_not_make_its_engines_unknown_to_others() -> None:
    expect(
        ENGINE + "depends_on = ['b']",
        "engines.d/b.toml:2: is not valid TOML: Invalid value (strings need quotes; true and false are in lower case)",
        b="[engines.b]\nkind = exec\n",
    )


def test_errors_in_one_file_do_not_hide_those_in_another() -> None:
    expect(
        "x = ",
        """
sagectl.toml:1: is not valid TOML: Invalid value (strings need quotes; true and false are in lower case)
engines.d/b.toml:1: engines.b.kind: is required (add kind = "…"; kinds are exec, job, llm)
engines.d/b.toml:2: engines.b.port: 0 is not a port (leave it out for a free one)""",
        b="[engines.b]\nport = 0\n",
    )


def test_a_misspelt_kind_is_found_although_nothing_else_is_known_of_the_engine() -> None:
    with pytest.raises(InvalidConfig) as caught:
        load(Path("/c.toml"), None, KINDS, texts={Path("/c.toml"): '[engines.a]\nkidn = "exec"\n'})
    assert [str(problem) for problem in caught.value.problems] == [
        '/c.toml:2: engines.a.kidn: is an unknown key (did you mean "kind"? kinds are exec, job, llm)'
    ]
