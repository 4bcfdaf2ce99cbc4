"""Write the tables of methods in README.md and docs/methods.md from the cards (`make tables`); --check only
compares."""

from __future__ import annotations

import sys
from pathlib import Path

from unspool.core.cards import setting_fields
from unspool.core.registry import Method, registry

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- methods: made by `make tables` from the cards -->", "<!-- /methods -->"


def overview() -> str:
    """One row a method."""
    rows = ["| slug | what it does | kind | lossless | paper |", "| --- | --- | --- | --- | --- |"]
    for method in registry:
        card = method.card
        rows.append(
            f"| `{card.slug}` | {card.summary} | {card.kind.value} | {'yes' if card.lossless else 'no'} | "
            f"{card.paper or '—'} |"
        )
    return "\n".join(rows)


def entry(method: Method) -> str:
    """A method's card with its settings."""
    card = method.card
    lines = [f"### {card.name} (`{card.slug}`)", "", card.summary, ""]
    needs = sorted([need.value for need in card.needs] + [f"a {role} model" for role in card.models])
    facts = {
        "Kind": card.kind.value,
        "Lossless": "yes" if card.lossless else "no",
        "Needs": ", ".join(needs),
        "Paper": card.paper,
        "Claim": card.claim,
    }
    lines += [f"- **{name}:** {value}" for name, value in facts.items() if value]
    fields = setting_fields(method.settings)
    if fields:
        lines += ["", "| setting | type | default | |", "| --- | --- | --- | --- |"]
        for field in fields:
            kind = field.type_name.replace("|", "\\|")
            lines.append(f"| `{field.name}` | {kind} | `{field.default!r}` | {field.help} |")
    return "\n".join(lines)


def page() -> str:
    """docs/methods.md."""
    parts = [
        "# Methods",
        "",
        "Made from the cards by `make tables`; `unspool methods` prints the same.",
        "",
        overview(),
    ]
    room = ""
    for method in registry:
        if method.room != room:
            room = method.room
            parts += ["", f"## {room}"]
        parts += ["", entry(method)]
    return "\n".join(parts) + "\n"


def readme() -> str:
    """README.md with its table renewed."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{overview()}\n{END}{after}"


def main() -> int:
    """Write, or with ``--check`` tell what is out of date."""
    stale = []
    for path, text in ((ROOT / "README.md", readme()), (ROOT / "docs" / "methods.md", page())):
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            stale.append(path.name)
            if "--check" not in sys.argv:
                path.write_text(text, encoding="utf-8")
    if stale and "--check" in sys.argv:
        sys.stderr.write(f"out of date: {', '.join(stale)}; run `make tables`\n")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
