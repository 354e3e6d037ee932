from __future__ import annotations

import sys
from pathlib import Path

import pytest

from sagectl.plugin import FileFacts, FileQuery, InterpreterQuery, ProgramFacts, ProgramQuery
from sagectl.system import facts as facts_module
from sagectl.system.facts import FactSource, gather


async def test_modules_of_an_interpreter_are_found_with_their_versions() -> None:
    query = InterpreterQuery(
        sys.executable, ("pytest", "no_such_module", "json", "asyncio.events", "json.nope")
    )
    facts = (await gather([query], {})).interpreter(query)
    assert facts.error is None
    assert facts.modules["pytest"] == pytest.__version__
    assert facts.modules["no_such_module"] is None
    assert facts.modules["json"] == ""
    assert facts.modules["asyncio.events"] == ""
    assert facts.modules["json.nope"] is None
    assert facts.version.startswith("3.")


@pytest.mark.parametrize(
    ("python", "why"),
    [
        ("/no/such/python", "No such file"),
        ("/bin/false", "not a working Python 3"),
        ("/etc/passwd", "denied"),
    ],
)
async def test_an_interpreter_that_does_not_run_is_a_value(python: str, why: str) -> None:
    query = InterpreterQuery(python, ("json",))
    facts = (await gather([query], {})).interpreter(query)
    assert why in (facts.error or "")
    assert facts.modules == {"json": None}


async def test_a_hanging_interpreter_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facts_module, "INTERPRETER_TIMEOUT", 0.2)
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nsleep 60\n")
    python.chmod(0o755)
    query = InterpreterQuery(str(python), ())
    assert "did not answer" in ((await gather([query], {})).interpreter(query).error or "")


async def test_an_interpreter_is_asked_once_until_its_packages_change(tmp_path: Path) -> None:
    asked = tmp_path / "asked"
    site = tmp_path / "site"
    site.mkdir()
    python = tmp_path / "python"
    answer = f'{{"modules": {{}}, "version": "3.11.0", "paths": ["{site}"]}}'
    python.write_text(f"#!/bin/sh\necho x >> {asked}\necho '{answer}'\n")
    python.chmod(0o755)
    source = FactSource()
    query = InterpreterQuery(str(python), ())
    await source.gather([query, query], {})
    await source.gather([query], {})
    assert asked.read_text() == "x\n"
    (site / "new_package").mkdir()
    await source.gather([query], {})
    assert asked.read_text() == "x\nx\n"


async def test_files_and_programs_are_looked_at(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_bytes(b"{\xff}" + b"x" * 100)
    program = tmp_path / "tool"
    program.write_text("")
    program.chmod(0o755)
    queries = [
        FileQuery(str(file), read=3),
        FileQuery(str(tmp_path)),
        FileQuery(str(tmp_path / "missing")),
        FileQuery("/dev/null"),
    ]
    found = ProgramQuery("tool")
    missing = ProgramQuery("no-such-tool")
    facts = await gather([*queries, found, missing], {"PATH": str(tmp_path)})
    assert [facts.file(query) for query in queries] == [
        FileFacts("file", size=103, text="{\ufffd}"),
        FileFacts("directory"),
        FileFacts("missing"),
        FileFacts("other"),
    ]
    assert facts.program(found) == ProgramFacts(str(program))
    assert facts.program(missing) == ProgramFacts(None)
