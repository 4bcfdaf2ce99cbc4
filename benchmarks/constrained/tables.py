"""From rows to numbers, and tables of them in Markdown."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

Row = Mapping[str, Any]

TOKEN_TARGET = 1.03
"""Times the unconstrained time of a token that a constrained one may take."""
TOTAL_TARGET = 1.5
"""Times as fast as the best peer on the same backend that whole answers have to be."""
NATIVE_PEERS = ("llguidance", "xgrammar")


def _of(rows: Sequence[Row], section: str) -> dict[str, list[Row]]:
    """Rows of a section by side."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        where, _, side = row["arm"].partition("/")
        if where == section:
            found.setdefault(side, []).append(row)
    return found


def _quantile(values: Sequence[float], share: float) -> float | None:
    return float(np.quantile(np.array(values), share)) if values else None


def engines(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Coverage, times of compiling and of masks, and verdicts on texts, by side."""
    found = []
    for side, mine in _of(rows, "engines").items():
        taken = [row for row in mine if "compile" in row]
        seconds = [row["compile"] for row in taken]
        masks = [each for row in taken for each in row["masks"]]
        valid = [each for row in taken for each in row["valid"]]
        invalid = [each for row in taken for each in row["invalid"]]
        found.append(
            {
                "side": side,
                "schemas": len(mine),
                "accepted": len(taken),
                "refused": sum("refused" in row for row in mine),
                "timeouts": sum(row.get("error") == "time-out" for row in mine),
                "crashes": sum("error" in row and row["error"] != "time-out" for row in mine),
                "compile_ms": [_ms(_quantile(seconds, share)) for share in (0.5, 0.9, 0.99)],
                "first_mask_ms": _ms(_quantile([row["first_mask"] for row in taken], 0.5)),
                "masks": len(masks),
                "mask_us": [_quantile(masks, share) for share in (0.5, 0.99)],
                "token_us": _quantile([each for row in taken for each in row["steps"]], 0.5),
                "valid": len(valid),
                "right": sum(all(row["valid"]) and not any(row["invalid"]) for row in taken),
                "over": 1 - statistics.fmean(valid) if valid else None,
                "invalid": len(invalid),
                "under": statistics.fmean(invalid) if invalid else None,
            }
        )
    return found


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else 1e3 * seconds


def outputs(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Of what was written under each side, how much is finished and valid."""
    found = []
    for side, mine in _of(rows, "output").items():
        written = [row for row in mine if "tokens" in row]
        finished = [row for row in written if row["finished"] and "valid" in row]
        found.append(
            {
                "side": side,
                "schemas": len(mine),
                "written": len(written),
                "finished": sum(row["finished"] for row in written),
                "judged": len(finished),
                "valid": sum(row["valid"] == 1 for row in finished),
                "invalid": [row["item"] for row in finished if row["valid"] != 1],
            }
        )
    return found


def speeds(rows: Sequence[Row]) -> dict[str, Any]:
    """Whole answers by way, over the schemas that all ways of our runtime take; and the time of a token."""
    ways = _of(rows, "speed")
    both = ways.pop("pair", [])
    pairs = [statistics.median(c / f for f, c in row["token_seconds"]) for row in both]
    free = {row["item"]: statistics.median(f for f, _ in row["token_seconds"]) for row in both}
    defaults = [
        (row["seconds"] - row["first_seconds"]) / (len(row["tokens"]) - 1) / free[row["item"]]
        for row in ways.get("unspool", [])
        if row["item"] in free and len(row.get("tokens", ())) > 1
    ]
    reading = {row["item"]: row["prompt_seconds"] for row in both}
    of_item = {way: {row["item"]: row for row in mine if "tokens" in row} for way, mine in ways.items()}
    native = [way for way in of_item if way.startswith("unspool") or way in NATIVE_PEERS]
    common = set.intersection(*(set(of_item[way]) for way in native)) if native else set()
    best = _best([way for way in native if way in NATIVE_PEERS], of_item, common)
    listed = []
    for way, by_item in of_item.items():
        shared = sorted(common & set(by_item))
        total = [_total(by_item[item]) for item in shared]
        tokens = sum(len(by_item[item]["tokens"]) for item in shared)
        ours = [_total(of_item["unspool"][item]) for item in shared] if "unspool" in of_item else []
        told = [place for place, item in enumerate(shared) if item in reading] if ours and way in native else []
        prompt = sum(reading[shared[place]] for place in told)
        listed.append(
            {
                "way": way,
                "texts": len(shared),
                "seconds": sum(total),
                "median_seconds": statistics.median(total) if total else None,
                "compile_seconds": sum(by_item[item]["compile_seconds"] for item in shared),
                "tokens": tokens,
                "ms_per_token": 1e3 * sum(total) / tokens if tokens else None,
                "forced": sum(by_item[item]["forced"] for item in shared),
                "forwards": sum(by_item[item]["forwards"] for item in shared),
                "finished": sum(by_item[item]["finished"] for item in shared),
                "valid": sum(by_item[item]["finished"] and by_item[item].get("valid") == 1 for item in shared),
                "to_ours": sum(total) / sum(ours) if ours else None,
                "to_ours_behind_the_prompt": (sum(total[place] for place in told) - prompt)
                / (sum(ours[place] for place in told) - prompt)
                if told
                else None,
                "median_to_ours": statistics.median(t / o for t, o in zip(total, ours, strict=True)) if ours else None,
            }
        )
    return {
        "token_ratios": pairs,
        "default_ratios": defaults,
        "ways": listed,
        "best_peer": best,
        "schemas": len(common),
    }


def _total(row: Row) -> float:
    return float(row["compile_seconds"] + row["seconds"])


def _best(peers: Sequence[str], of_item: Mapping[str, Mapping[str, Row]], common: set[str]) -> str | None:
    """The peer with the least seconds."""
    if not peers or not common:
        return None
    return min(peers, key=lambda way: sum(_total(of_item[way][item]) for item in common))


def targets(told: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What was aimed at, what was measured, and whether it is met (``None``: it was not measured)."""
    found: list[dict[str, Any]] = []

    def note(target: str, measured: str, met: bool) -> None:
        found.append({"target": target, "measured": measured, "met": met})

    by_side = {row["side"]: row for row in told.get("engines", [])}
    others = [row for side, row in by_side.items() if side != "unspool"]
    if "unspool" in by_side and others:
        ours, best = by_side["unspool"]["accepted"], max(others, key=lambda row: row["accepted"])
        note(
            "the default takes at least the schemas that the best other side takes",
            f"{ours} against {best['accepted']} ({best['side']})",
            ours >= best["accepted"],
        )
        if any(row["valid"] for row in others):
            ours, best = by_side["unspool"]["right"], max(others, key=lambda row: row["right"])
            note(
                "the same of schemas that are accepted and right on all texts",
                f"{ours} against {best['right']} ({best['side']})",
                ours >= best["right"],
            )
    of_output = {row["side"]: row for row in told.get("outputs", [])}
    if "unspool" in of_output:
        mine = of_output["unspool"]
        note(
            "finished outputs of the default are all valid",
            f"{mine['valid']} of {mine['judged']}",
            mine["valid"] == mine["judged"] > 0,
        )
    speed = told.get("speed", {})
    for name, how in (("token_ratios", "without jumps and drafts"), ("default_ratios", "as the default writes it")):
        if speed.get(name):
            ratio = statistics.median(speed[name])
            note(
                f"a constrained token, {how}, takes at most {TOKEN_TARGET} times one of plain decoding",
                f"{ratio:.3f} (median over {len(speed[name])} schemas)",
                ratio <= TOKEN_TARGET,
            )
    peer = next((row for row in speed.get("ways", []) if row["way"] == speed.get("best_peer")), None)
    if peer is not None and peer["to_ours"] is not None:
        note(
            f"whole answers at least {TOTAL_TARGET} times as fast as the best peer on the same backend",
            f"{peer['to_ours']:.2f} ({peer['way']}; median of a schema {peer['median_to_ours']:.2f}; "
            f"behind the prompt {_number(peer['to_ours_behind_the_prompt'])})",
            peer["to_ours"] >= TOTAL_TARGET,
        )
    return found


def summary(told: Mapping[str, Any]) -> dict[str, Any]:
    """All numbers, without the rows."""
    rows = told["rows"]
    found: dict[str, Any] = {name: value for name, value in told.items() if name != "rows"}
    found |= {"engines": engines(rows), "outputs": outputs(rows), "speed": speeds(rows)}
    found["targets"] = targets(found)
    return found


def show(told: Mapping[str, Any], *, as_json: bool) -> None:
    """Print the numbers, as tables or as JSON."""
    found = summary(told)
    if as_json:
        print(json.dumps(found, indent=2))
        return
    sections = found["sections"]
    if found["engines"]:
        print(f"{found['schemas']} schemas of JSONSchemaBench, the vocabulary of {found['model']}\n")
    if "compile" in sections:
        _table(
            found["engines"],
            (
                ("engine", lambda row: row["side"]),
                ("schemas accepted", lambda row: f"{row['accepted']} ({100 * row['accepted'] / row['schemas']:.1f}%)"),
                ("refused", lambda row: str(row["refused"])),
                ("time-outs, crashes", lambda row: f"{row['timeouts']}, {row['crashes']}"),
                ("compile, ms: median, p90, p99", lambda row: ", ".join(map(_number, row["compile_ms"]))),
                ("to the first mask, ms", lambda row: _number(row["first_mask_ms"])),
            ),
        )
    if "mask" in sections:
        _table(
            found["engines"],
            (
                ("engine", lambda row: row["side"]),
                ("masks", lambda row: f"{row['masks']:,}"),
                ("mask, µs: median, p99", lambda row: ", ".join(map(_number, row["mask_us"]))),
                ("mask and token, µs", lambda row: _number(row["token_us"])),
            ),
        )
    if "instances" in sections:
        _table(
            found["engines"],
            (
                ("engine", lambda row: row["side"]),
                ("schemas accepted, and right on all texts", lambda row: str(row["right"])),
                ("valid texts refused", lambda row: _share(row["over"], row["valid"])),
                ("invalid texts taken", lambda row: _share(row["under"], row["invalid"])),
            ),
        )
    if found["outputs"]:
        _table(
            found["outputs"],
            (
                ("engine", lambda row: row["side"]),
                ("texts", lambda row: f"{row['written']} of {row['schemas']}"),
                ("finished", lambda row: str(row["finished"])),
                ("of these valid", lambda row: f"{row['valid']} of {row['judged']}"),
            ),
        )
    if found["speed"]["ways"]:
        _table(
            found["speed"]["ways"],
            (
                ("side", lambda row: row["way"]),
                ("texts", lambda row: str(row["texts"])),
                ("seconds in all", lambda row: _number(row["seconds"])),
                ("of them compiling", lambda row: _number(row["compile_seconds"])),
                ("tokens (forced)", lambda row: f"{row['tokens']} ({row['forced']})"),
                ("passes", lambda row: str(row["forwards"] or "")),
                ("ms a token", lambda row: _number(row["ms_per_token"])),
                ("finished, valid", lambda row: f"{row['finished']}, {row['valid']}"),
                ("times ours", lambda row: _number(row["to_ours"])),
                ("behind the prompt", lambda row: _number(row["to_ours_behind_the_prompt"])),
            ),
        )
    if found["targets"]:
        _table(
            found["targets"],
            (
                ("target", lambda row: row["target"]),
                ("measured", lambda row: row["measured"]),
                ("met", lambda row: "yes" if row["met"] else "no"),
            ),
        )
    for one in found["absent"]:
        print(f"{one['peer']} took no part: {one['reason']}: {one['install']}")
    if found["versions"]:
        print("Versions: " + ", ".join(f"{name} {told}" for name, told in found["versions"].items()))


def _table(rows: Sequence[Mapping[str, Any]], columns: Sequence[tuple[str, Callable[[Any], str]]]) -> None:
    print("| " + " | ".join(head for head, _ in columns) + " |")
    print("| --- |" + " --- |" * (len(columns) - 1))
    for row in rows:
        print("| " + " | ".join(cell(row) for _, cell in columns) + " |")
    print()


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _share(share: float | None, count: int) -> str:
    return "" if share is None else f"{100 * share:.1f}% of {count}"
