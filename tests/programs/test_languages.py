"""Every language through its real compiler: a greeting, an error of the compiler, an exit code, a limit."""

import os
from pathlib import Path

import pytest
from tests.programs.conftest import SMALL, Trial

from unspool.programs import LanguageMissing, Limits, Program, Status, languages

HELLO = {
    "python": "print('hello')",
    "shell": "echo hello",
    "c": '#include <stdio.h>\nint main(void) { puts("hello"); return 0; }',
    "rust": 'fn main() { println!("hello"); }',
    "javascript": "console.log('hello')",
    "verilog": 'module main; initial begin $display("hello"); $finish; end endmodule',
}
BROKEN = {
    "python": "def (",
    "shell": "if then",
    "c": "int main(void) { return x; }",
    "rust": 'fn main() { let x: i32 = ""; }',
    "javascript": "let let = ;",
    "verilog": "module main; initial begin endmodule",
}
EXIT_3 = {
    "python": "import sys; sys.exit(3)",
    "shell": "exit 3",
    "c": "int main(void) { return 3; }",
    "rust": "fn main() { std::process::exit(3); }",
    "javascript": "process.exit(3)",
    "verilog": "module main; initial $fatal(1); endmodule",
}
FOREVER = {
    "python": "while True: pass",
    "shell": "while :; do :; done",
    "c": "int main(void) { for (volatile int x = 0;; x++); }",
    "rust": "fn main() { let mut x = 0u64; loop { x = std::hint::black_box(x.wrapping_add(1)); } }",
    "javascript": "for (;;) {}",
    "verilog": "module main; reg x; initial begin x = 0; forever #1 x = ~x; end endmodule",
}
MEMORY = {
    "python": "x = []\nwhile True: x.append(bytes(10**6))",
    "c": "#include <stdlib.h>\n#include <string.h>\n"
    "int main(void) { for (;;) { char *p = malloc(1 << 20); if (!p) abort(); memset(p, 1, 1 << 20); } }",
    "rust": "fn main() { let mut v = vec![]; loop { v.push(vec![1u8; 1 << 20]); } }",
    "javascript": "const x = []; for (;;) x.push(new Array(100000).fill(Math.random()))",
}
OUTSIDE = {
    "shell": "cat {path}",
    "c": '#include <stdio.h>\nint main(void) {{ FILE *f = fopen("{path}", "r"); if (!f) {{ perror("x"); return 1; }} '
    "putchar(fgetc(f)); return 0; }}",
    "rust": 'fn main() {{ print!("{{}}", std::fs::read_to_string("{path}").unwrap()); }}',
    "javascript": "console.log(require('fs').readFileSync('{path}', 'utf8'))",
}
COMPILED = {"c", "rust", "verilog"}


def needs(language: str) -> None:
    found = languages()[language]
    if not found:
        pytest.skip(f"{language} is not here; install {found.install}")


@pytest.mark.parametrize("language", HELLO)
def test_hello(whole: Trial, language: str) -> None:
    needs(language)
    outcome = whole.sandbox.run(Program(HELLO[language], language), Limits())
    assert (outcome.status, outcome.stdout, outcome.exit_code) == (Status.PASSED, "hello\n", 0), outcome
    assert (outcome.compile_seconds > 0) == (language in COMPILED)
    assert outcome.phase == "run"


@pytest.mark.parametrize("language", BROKEN)
def test_error_of_the_compiler(whole: Trial, language: str) -> None:
    needs(language)
    outcome = whole.sandbox.run(Program(BROKEN[language], language), Limits())
    assert outcome.status is Status.FAILED
    assert outcome.exit_code != 0
    assert "main." in outcome.stderr
    if language in COMPILED:
        assert (outcome.phase, outcome.reason) == ("compile", "it does not compile")


@pytest.mark.parametrize("language", EXIT_3)
def test_exit_code(whole: Trial, language: str) -> None:
    needs(language)
    outcome = whole.sandbox.run(Program(EXIT_3[language], language), Limits())
    assert outcome.status is Status.FAILED
    assert outcome.exit_code == (1 if language == "verilog" else 3)


@pytest.mark.parametrize("language", FOREVER)
def test_forever(whole: Trial, language: str) -> None:
    needs(language)
    outcome = whole.sandbox.run(Program(FOREVER[language], language), Limits(wall_seconds=0.5))
    assert (outcome.status, outcome.phase) == (Status.TIMEOUT, "run")


@pytest.mark.parametrize("language", MEMORY)
def test_memory(whole: Trial, language: str) -> None:
    needs(language)
    outcome = whole.sandbox.run(Program(MEMORY[language], language), Limits(memory_bytes=256 << 20))
    assert outcome.status is Status.OUT_OF_MEMORY, outcome


@pytest.mark.parametrize("language", OUTSIDE)
def test_reading_outside(whole: Trial, language: str, outside: Path) -> None:
    needs(language)
    source = OUTSIDE[language].format(path=outside / "secret.txt")
    outcome = whole.sandbox.run(Program(source, language), Limits())
    assert outcome.stdout == ""
    assert outcome.status in (Status.FAILED, Status.BLOCKED)


def test_compiler_reads_nothing_outside(whole: Trial, outside: Path) -> None:
    needs("c")
    source = f'#include "{outside}/secret.txt"\nint main(void) {{ return 0; }}'
    outcome = whole.sandbox.run(Program(source, "c"))
    assert outcome.phase == "compile"
    assert "secret of" not in outcome.stderr


def test_compiler_is_limited(whole: Trial) -> None:
    needs("c")
    from unspool.programs import Sandbox

    source = '#define A(x) x x x x x x x x x x\n#define B(x) A(A(A(x)))\nchar *s = B(B(B("a"))); int main(void) {}'
    with Sandbox(compiling=Limits(wall_seconds=0.5)) as sandbox:
        outcome = sandbox.run(Program(source, "c"))
    assert (outcome.status, outcome.phase, outcome.exit_code) == (Status.TIMEOUT, "compile", None)
    assert "the compiler ran for more than 0.5 s" in outcome.reason


@pytest.mark.parametrize("language", ["c", "shell", "rust"])
def test_without_namespaces(without_namespaces: Trial, language: str) -> None:
    needs(language)
    tool = Path(os.path.realpath(languages()[language].commands[0]))
    if Path.home() in tool.parents:
        pytest.skip(f"{tool} lies where an unprivileged user cannot read")
    outcome = without_namespaces.sandbox.run(Program(HELLO[language], language), Limits())
    assert outcome.stdout == "hello\n", outcome


def test_success_marker_in_other_languages(whole: Trial) -> None:
    passing = whole.sandbox.run(Program("echo x; echo ok-1", "shell", success_marker="ok-1"), SMALL)
    assert (passing.status, passing.stdout) == (Status.PASSED, "x\n")
    assert not whole.sandbox.run(Program("exit 0", "shell", success_marker="ok-1"), SMALL).passed


def test_what_is_missing_is_named(whole: Trial, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not languages()["verilog"]
    assert languages()["python"]
    with pytest.raises(LanguageMissing, match=r"need iverilog and vvp, not found here: install .*apt install iverilog"):
        whole.sandbox.run(Program(HELLO["verilog"], "verilog"))
