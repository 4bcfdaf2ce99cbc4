"""``unspool sandbox``."""

import json
from pathlib import Path
from typing import Any

from unspool.programs import Facility, Mechanism, languages


def test_description(run: Any) -> None:
    text = run("sandbox").stdout
    assert all(str(facility) in text for facility in Facility)
    assert all(name in text for name in languages())
    data = json.loads(run("sandbox", "--json").stdout)
    assert set(data["facilities"]) == set(map(str, Facility))
    assert set(data["mechanisms"]) | set(data["absent"]) == set(map(str, Mechanism))
    assert set(data["languages"]) == set(languages())


def test_help(run: Any) -> None:
    text = run("sandbox", "--help").output
    assert "Examples" in text
    assert "sandbox" in run("--help").output


def test_a_file(run: Any, tmp_path: Path) -> None:
    file = tmp_path / "program.py"
    file.write_text("import sys\nprint(input())\nprint('e', file=sys.stderr)")
    result = run("sandbox", file, "--input", "-", input="through\n")
    assert result.stdout == "through\n"
    assert "e\n" in result.stderr
    assert "passed" in result.stderr
    file.write_text("raise SystemExit(3)")
    assert "failed: it ended with exit code 3" in run("sandbox", file, code=1).stderr
    data = json.loads(run("sandbox", file, "--json", code=1).stdout)
    assert (data["status"], data["exit_code"], data["refused"]) == ("failed", 3, [])


def test_standard_input_and_limits(run: Any) -> None:
    assert run("sandbox", "-", "--language", "shell", input="echo $((6 * 7))").stdout == "42\n"
    slow = run("sandbox", "-", "--language", "shell", "--seconds", "0.3", input="sleep 100", code=1)
    assert "timeout: it ran for more than 0.3 s" in slow.stderr


def test_wrong_input(run: Any, tmp_path: Path) -> None:
    (tmp_path / "x").write_text("")
    assert "does not tell the language" in run("sandbox", tmp_path / "x", code=2).stderr
    assert "cannot be read" in run("sandbox", tmp_path / "none.py", code=2).stderr
    assert "no language 'cobol'" in run("sandbox", tmp_path / "x", "--language", "cobol", code=2).stderr
    assert "there is no such facility" in run("sandbox", "--require", "peace", code=2).stderr
    assert "need a program" in run("sandbox", "--language", "python", code=2).stderr
    assert "memory_bytes" in run("sandbox", "--memory", "0", code=2).stderr
