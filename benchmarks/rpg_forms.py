"""What should RPG multiply? Its forms side by side, on prompts that no other experiment uses.

    python benchmarks/rpg_forms.py --prompts 16 --new-tokens 160

The forms of the setting ``factors`` and, as a yardstick, raw logits as in the published code: no candidate, because
what they do depends on where a model's logits have their zero, which its distribution does not tell. The prompts are of
the same three kinds as those of ``unspool reproduce rpg-repetition`` and share none with them, so that what is chosen
here is not what is tested there. The default is, of the forms that let at least as many texts parse as greedy decoding
does, the one with the least repeated structure (TR-S).
Greedy, in batches. ``--forms`` runs some of them only.
"""

from __future__ import annotations

import argparse
import json
import sys
import sysconfig
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from unspool.constraints.rpg_repetition import RPG, RPGSettings, Shapes
from unspool.core.compose import compose
from unspool.core.errors import InvalidInput, UnspoolError
from unspool.core.sockets import Part
from unspool.engine import load
from unspool.evaluation.metrics import perplexity
from unspool.evaluation.reproductions._common import Lab
from unspool.evaluation.reproductions.rpg_repetition import Size, continued, made_prompts, reported

THINGS = (
    *("river", "button", "ticket", "sensor", "currency", "muscle"),
    *("verb", "flag", "vessel", "herb", "metal", "badge"),
)
INVITING = (
    "def {0}_price(kind):\n"
    + "".join(f"    {'el' * (n > 1)}if kind == 'k{n}':\n        price = {n * 7}\n" for n in range(1, 6)),
    "{1}_ROWS = [\n" + "".join(f"    ('{{0}}{n}', {n * 3}, True),\n" for n in range(1, 7)),
    "class {2}:\n    def __init__(self, data):\n"
    + "".join(f"        self.value{n} = data['value{n}']\n" for n in range(1, 6)),
    "".join(f"print('{{0}} {n}:', {{0}}s[{n - 1}])\n" for n in range(1, 6)),
    "class Test{2}(unittest.TestCase):\n"
    + "".join(f"    def test_{{0}}_{n}(self):\n        self.assertEqual({{0}}({n}), {n + 1})\n\n" for n in range(1, 4)),
)
DESCRIBED = (
    'def merge_{0}s(left, right):\n    """Merge two sorted lists of {0}s into one."""\n',
    'def validate_{0}({0}):\n    """Check the fields of a {0} and return a list of error messages."""\n',
    'def format_{0}({0}, style):\n    """Return the {0} as text in one of the styles short, long and full."""\n',
    'def group_{0}s({0}s):\n    """Group {0}s by the first letter of their name."""\n',
    'class {2}Menu:\n    """A text menu to add, remove, list and rename {0}s."""\n',
)


class Published(RPG):
    """The released code: a logit is multiplied as it is, so that a negative one rises."""

    def _factor(self, logits: Tensor, found: Tensor, tokens: list[int], log: float) -> None:
        found[tokens] = logits[tokens] * torch.tensor(log).exp()


def forms() -> dict[str, list[Part]]:
    """What is compared."""
    return {
        "greedy": [],
        "logit": [RPG(RPGSettings(factors="logit"))],
        "probability": [RPG(RPGSettings(factors="probability"))],
        "raw logit": [Published()],
    }


def packages(count: int, lines: int = 24) -> list[str]:
    """Beginnings of files in the packages of the standard library, from their first definition on."""
    root = Path(sysconfig.get_paths()["stdlib"])
    found = []
    for path in sorted(root.glob("*/*.py")):
        if path.parent.name in ("site-packages", "dist-packages", "test", "idlelib", "lib2to3"):
            continue
        source = path.read_text(encoding="utf-8").splitlines(keepends=True)
        first = next((n for n, line in enumerate(source) if line.startswith(("def ", "class "))), None)
        if first is not None and len(source) > first + 2 * lines:
            found.append("".join(source[first : first + lines]))
    return found[:: max(len(found) // count, 1)][:count]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--forms", default=",".join(forms()), help="by commas")
    parser.add_argument("--prompts", type=int, default=16, help="of each of the three kinds")
    parser.add_argument("--new-tokens", type=int, default=160)
    parser.add_argument("--batch", type=int, default=12)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    try:
        return _run(options)
    except UnspoolError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _run(options: argparse.Namespace) -> int:
    known = forms()
    chosen = options.forms.split(",")
    if unknown := [name for name in chosen if name not in known]:
        raise InvalidInput(f"there is no form {unknown[0]!r}; there are {', '.join(known)}")
    if min(options.prompts, options.new_tokens, options.batch) < 1:
        raise InvalidInput("--prompts, --new-tokens and --batch must be at least 1")
    lab = Lab(load(options.model, dtype="float32", progress=False), "rpg-repetition")
    texts = {
        "inviting": made_prompts(INVITING, options.prompts, THINGS),
        "described": made_prompts(DESCRIBED, options.prompts, THINGS),
        "library": packages(options.prompts),
    }
    every = [text for group in texts.values() for text in group]
    prompts = [list(lab.model.tokenizer.encode(text)) for text in every]
    shapes = Shapes("python")
    size = Size(options.prompts, options.new_tokens, options.batch, penalties=False, quality=False, tasks=0)
    results = {}
    for name in chosen:
        began = time.perf_counter()
        with torch.no_grad():
            runs = continued(compose(lab.model, known[name]), prompts, size)
            likely = perplexity(lab.model, [(run.prompt, run.tokens) for run in runs if run.tokens])
        row = asdict(reported(lab, shapes, every, runs)) | {"perplexity": likely}
        place = 0
        for kind, group in texts.items():
            part = slice(place, place + len(group))
            row[kind] = asdict(reported(lab, shapes, every[part], runs[part]))
            place += len(group)
        results[name] = row | {"seconds": round(time.perf_counter() - began, 1)}
        if not options.json:
            shown = "  ".join(f"{key} {value:.3f}" for key, value in row.items() if isinstance(value, float))
            print(f"{name:12}  {shown}", flush=True)
    if options.json:
        print(json.dumps({"prompts": len(every), "new_tokens": options.new_tokens, "forms": results}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
