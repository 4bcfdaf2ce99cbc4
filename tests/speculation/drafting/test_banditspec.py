"""Bandits alone, and the drafter that lets one choose."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.toys import TableModel

from unspool.core.compose import Composition, compose
from unspool.core.errors import Incompatible, InvalidInput
from unspool.core.events import Finished, Stepped
from unspool.core.texts import Stop
from unspool.models.costs import PassCosts
from unspool.speculation.drafting._bandits import UCB, Bandit, Exp3
from unspool.speculation.drafting.banditspec import BanditSpec

TARGET = TableModel(12, seed=1, scale=1.5)


def pull(bandit: Bandit, worth: Callable[[int, int], float], rounds: int, seed: int = 0) -> list[int]:
    """Pull arms that give 1 with probability ``worth(arm, round)``, else 0."""
    rng = torch.Generator().manual_seed(seed)
    pulled = []
    for t in range(rounds):
        arm = bandit.choose(rng)
        bandit.learn(arm, float(torch.rand((), generator=rng) < worth(arm, t)))
        pulled.append(arm)
    return pulled


def regret(pulled: list[int], means: list[float]) -> float:
    return sum(max(means) - means[arm] for arm in pulled)


def test_ucb_regret_grows_like_a_logarithm() -> None:
    means = [0.2, 0.5, 0.35, 0.3]
    ratios = []
    for seed in range(6):
        pulled = pull(UCB(4, 0.25), lambda arm, t: means[arm], 6000, seed)
        ratios.append(regret(pulled, means) / regret(pulled[:1500], means))
        assert pulled[-1000:].count(1) > 800
    assert sum(ratios) / len(ratios) < 2.5


def test_ucb_follows_its_formula() -> None:
    bandit = UCB(2, 0.5)
    rng = torch.Generator()
    assert [bandit.choose(rng), (bandit.learn(0, 0.9), bandit.choose(rng))[1]] == [0, 1]
    bandit.learn(1, 0.1)
    for _ in range(5):
        bandit.learn(0, 0.5)

    def bound(mean: float, n: int) -> float:
        return mean + 0.5 * math.sqrt((1 + n) / n**2 * (1 + 2 * math.log(2 * 8**2 * math.sqrt(1 + n))))

    assert (bound(bandit.means[0], 6) > bound(0.1, 1)) == (bandit.choose(rng) == 0)
    assert bandit.means[0] == pytest.approx((0.9 + 5 * 0.5) / 6)


def test_exp3_withstands_an_adversary_that_fools_ucb() -> None:
    """Rewards are fixed beforehand: 0 for the arm that UCB is going to pull, which follows from its rule, else 1."""
    rng = torch.Generator().manual_seed(0)
    bandit, traps = UCB(2, 0.5), []
    for _ in range(3000):
        traps.append(bandit.choose(rng))
        bandit.learn(traps[-1], 0.0)
    fixed = max(traps.count(0), traps.count(1)) / 3000
    assert fixed >= 0.5, "one of the arms is good half of the time"
    for seed in range(5):
        exp3, rng = Exp3(2), torch.Generator().manual_seed(seed)
        gained = 0.0
        for trap in traps:
            arm = exp3.choose(rng)
            exp3.learn(arm, float(arm != trap))
            gained += arm != trap
        assert gained / 3000 > 0.9 * fixed


def test_exp3_estimates_are_unbiased() -> None:
    rng = torch.Generator().manual_seed(3)
    losses = torch.zeros(3)
    for _ in range(4000):
        bandit = Exp3(3)
        bandit.losses = [1.0, 0.0, 3.0]
        bandit.learn(arm := bandit.choose(rng), [0.3, 0.6, 0.9][arm])
        losses += torch.tensor(bandit.losses) - torch.tensor([1.0, 0.0, 3.0])
    assert torch.allclose(losses / 4000, torch.tensor([0.7, 0.4, 0.1]), atol=0.05)
    assert sum(bandit.chances()) == pytest.approx(1.0)


# -- the drafter --------------------------------------------------------------------------------------------------


def made(**settings: Any) -> tuple[BanditSpec, Composition]:
    composition = compose(TARGET, "banditspec", settings=settings)
    assert isinstance(composition.drafter, BanditSpec)
    return composition.drafter, composition


def text(composition: Composition, prompts: list[list[int]], count: int = 80) -> tuple[list[tuple[int, ...]], int]:
    events = list(composition.decode(prompts, stop=Stop(max_new_tokens=count)))
    return [e.tokens for e in events if isinstance(e, Finished)], sum(isinstance(e, Stepped) for e in events)


@pytest.mark.parametrize("bandit", ["ucb", "exp3"])
@pytest.mark.parametrize("scope", ["text", "model"])
def test_the_text_is_the_plain_one_and_useful_arms_win(bandit: str, scope: str) -> None:
    prompts = [[1, 2, 3], [4, 5]]
    plain, steps = text(compose(TARGET), prompts)
    drafter, composition = made(bandit=bandit, scope=scope, arms=("plain", "token-recycling:nodes=16"), scale=0.1)
    for _ in range(2):
        found, taken = text(composition, prompts)
        assert sorted(found) == sorted(plain)
    assert taken < 0.75 * steps
    assert drafter.record.pulls[1] > drafter.record.pulls[0] > 0


def test_every_step_is_one_pull() -> None:
    drafter, composition = made()
    _, steps = text(composition, [[1, 2, 3]])
    assert sum(drafter.record.pulls) in (steps, steps - 1), "the last step may have no room for a draft"
    assert all(pulls > 0 for pulls in drafter.record.pulls), "every arm is pulled at least once"


def test_costly_arms_are_worth_less() -> None:
    drafter, _ = made(reward="speed")
    drafter._costs = PassCosts((1, 2, 4, 16), (1.0, 1.0, 1.0, 4.0))
    assert drafter._worth(2, 3) == pytest.approx(2 / 11)
    assert drafter._worth(2, 15) == pytest.approx(2 / 11 / 4)
    free, _ = made()
    assert free._worth(2, 15) == pytest.approx(2 / 11)
    assert free._worth(11, 10) == 1.0


def test_earlier_texts_count_if_they_should(tmp_path: Path) -> None:
    drafter, composition = made(scope="model", arms=("plain", "token-recycling"))
    text(composition, [[1, 2, 3]])
    drafter.record.save(tmp_path / "record")
    other, again = made(scope="model", arms=("plain", "token-recycling"))
    other.record.load(tmp_path / "record")
    assert other.record.pulls == pytest.approx(drafter.record.pulls)
    before = list(other.record.pulls)
    text(again, [[1, 2, 3]], 3)
    assert sum(other.record.pulls) > sum(before)


@pytest.mark.parametrize(
    ("settings", "error", "match"),
    [
        ({"arms": ()}, InvalidInput, "no arms"),
        ({"arms": ("banditspec",)}, InvalidInput, "not a drafter of its own"),
        ({"arms": ("draft-model",)}, Incompatible, "needs a draft model"),
        ({"bandit": "thompson"}, InvalidInput, "banditspec cannot use"),
        ({"scale": 0}, InvalidInput, "banditspec cannot use"),
    ],
)
def test_settings_that_cannot_be_used(settings: dict[str, Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        made(**settings)


def test_arms_of_one_rule() -> None:
    draft = TableModel(12, seed=2, mix=TARGET)
    arms = ("prompt-lookup", "draft-model", "draft-model:tokens=2")
    composition = compose(TARGET, "banditspec", settings={"arms": arms}, models={"draft": draft})
    found, _ = text(composition, [[1, 2, 3]])
    assert found == text(compose(TARGET), [[1, 2, 3]])[0]
    with pytest.raises(Incompatible, match="one rule"):
        made(arms=("draft-model", "draft-model:branching=2"))
