"""Results as a run would have written them, made from a seed: rows by hand, the rest by the code that a run uses."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from unspool.evaluation import results
from unspool.evaluation.suites import Item, Suite

CATEGORIES = ("writing", "coding", "translation")

ARMS: Mapping[str, dict[str, Any]] = {
    "auto": {"kind": "method", "version": "0.1.0", "threads": 2, "lossless": True, "settings": {"arms": 4}},
    "token-recycling": {"kind": "method", "version": "0.1.0", "threads": 2, "lossless": True},
    "plain": {"kind": "method", "version": "0.1.0", "threads": 2, "lossless": True, "plain": True, "greedy": True},
    "llama.cpp": {"kind": "peer", "package": "llama-cpp-python", "version": "0.3.16", "threads": 2},
    "transformers-prompt-lookup": {"kind": "peer", "package": "transformers", "version": "5.23.0", "threads": 2},
}

SPEEDS = {"auto": 41.0, "token-recycling": 36.0, "plain": 18.0, "llama.cpp": 66.0, "transformers-prompt-lookup": 15.0}


class Made(Suite):
    """A suite with one score."""

    name = "made"
    metrics = ("rouge-1",)


def items(count: int = 24) -> list[Item]:
    return [Item(f"q{n}", CATEGORIES[n % len(CATEGORIES)], (f"question {n}",)) for n in range(count)]


def turn(arm: str, speed: float, rng: random.Random, *, tokens: int, prompt: int, text: str) -> dict[str, Any]:
    seconds = tokens / speed
    statistics: dict[str, Any] = {}
    if ARMS.get(arm, {}).get("kind", "method") == "method":
        drafts = arm != "plain"
        accepted = {str(d): max(1, round(tokens / 3 * 0.5**d)) for d in range(6)} if drafts else {"0": tokens}
        steps = sum(accepted.values())
        stood = sum(int(d) * n for d, n in accepted.items())
        statistics = {
            "tokens": tokens,
            "steps": steps,
            "target_forwards": steps,
            "accepted_by_depth": accepted,
            "drafted_by_depth": {"5": steps} if drafts else {"0": steps},
            "accepted_tokens": stood,
            "mean_accepted_length": (stood + steps) / steps,
            "acceptance_rate": stood / (5 * steps) if drafts else None,
            "prefill_seconds": 0.05 * seconds,
            "draft_seconds": 0.06 * seconds if drafts else 0.0,
            "score_seconds": 0.7 * seconds,
            "verify_seconds": 0.04 * seconds,
            "peak_cache_bytes": 46_080 * (prompt + tokens),
        }
    return {
        "text": text,
        "tokens": tokens,
        "prompt_tokens": prompt,
        "finish_reason": "length",
        "seconds": seconds,
        "first_token_seconds": 0.08 + prompt / 4000 + rng.uniform(0, 0.02),
        "statistics": statistics,
        "token_ids": [],
    }


def rows(
    asked: Sequence[Item], speeds: Mapping[str, float] = SPEEDS, *, seed: int = 0, noise: float = 0.05, text: str = ""
) -> list[dict[str, Any]]:
    """Every arm answers every item; a prompt has its own speed, and every answer some noise of its own."""
    rng = random.Random(seed)
    found = []
    for place, item in enumerate(asked):
        ease = random.Random(item.id).uniform(0.7, 1.4)
        prompt = 40 + 37 * (place % 11)
        for arm, speed in speeds.items():
            now = speed * ease * (1 + rng.uniform(-noise, noise))
            said = text or f"The answer of {arm} to {item.id}."
            equal = {"equals_plain": 1.0} if ARMS.get(arm, {}).get("lossless") and arm != "plain" else {}
            found.append(
                {
                    "suite": Made.name,
                    "item": item.id,
                    "category": item.category,
                    "arm": arm,
                    "kind": ARMS.get(arm, {}).get("kind", "method"),
                    "sample": 0,
                    "turns": [turn(arm, now, rng, tokens=48, prompt=prompt, text=said)],
                    "scores": {"rouge-1": 0.3 + 0.01 * (place % 7) + rng.uniform(0, 0.02), **equal},
                    "peak_rss_bytes": 1_200_000_000 + 10_000_000 * len(arm),
                }
            )
    return found


def made(
    speeds: Mapping[str, float] = SPEEDS, *, count: int = 24, seed: int = 0, noise: float = 0.05, text: str = ""
) -> dict[str, Any]:
    """A whole results file."""
    asked = items(count)
    found = rows(asked, speeds, seed=seed, noise=noise, text=text)
    return {
        "schema": 1,
        "command": ["unspool", "bench", "made", "--methods", "auto,token-recycling,plain", "--peers", "--limit", "24"],
        "unspool": "0.1.0",
        "machine": {"cpu": "Made Processor", "cores": 2, "memory": 24 * 2**30, "os": "Linux", "threads": 2},
        "suite": "made",
        "model": "smollm2-135m",
        "started": "2026-11-23T10:00:00+0000",
        "arms": {arm: ARMS.get(arm, {"kind": "method"}) for arm in speeds},
        "limit": {"items": count, "samples": 1, "seed": 0, "max_new_tokens": 48, "exact": True},
        "notes": [],
        "summary": results.summarise(Made(), asked, found),
        "paired": results.compare_arms(Made(), found, "plain") if "plain" in speeds else [],
        "roofline": {
            "bandwidth": 2.1e10,
            "threads": 2,
            "context": 180.0,
            "forms": [
                {
                    "weights": "as stored (Q4_1)",
                    "weight_bytes": 98_000_000,
                    "kv_bytes": 4_147_200,
                    "bytes": 102_147_200,
                    "tokens_per_second": 205.6,
                },
                {
                    "weights": "as loaded (float32)",
                    "weight_bytes": 538_060_032,
                    "kv_bytes": 8_294_400,
                    "bytes": 546_354_432,
                    "tokens_per_second": 38.4,
                },
            ],
        },
        "absent": [
            {
                "peer": "openvino",
                "install": 'pip install "unspool[openvino]"',
                "reason": "the package openvino-genai is not installed",
            }
        ],
        "rows": found,
    }
