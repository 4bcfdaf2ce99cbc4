"""The report page: what it says of a run, that text stays text, and that nothing is fetched."""

import html.parser
import itertools
import json
import re
from typing import Any

import pytest
from tests.evaluation.made_results import made

from unspool.evaluation import charts, pages, report, svg
from unspool.evaluation.charts import Bar, Point, Series, Stack
from unspool.evaluation.figures import Results, figures
from unspool.evaluation.measures import measure

HOSTILE = "</script><img src=x onerror=alert(1)><!-- \"'&amp;\u2028${x} {{ 7*7 }} \udc80"


class Reader(html.parser.HTMLParser):
    """Tags with their attributes, and the text outside of scripts and styles."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self._inside = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside not in ("script", "style"):
            self.text.append(data)

    def all_text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.text))


def data_of(page: str) -> Any:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    assert found is not None
    return json.loads(found.group(1))


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    return made()


@pytest.fixture(scope="module")
def page(results: dict[str, Any]) -> str:
    return report.html(results)


def test_it_says_what_the_results_say(results: dict[str, Any], page: str) -> None:
    text = Reader(page).all_text()
    for entry in results["summary"]:
        if entry["category"] is None and entry["metric"] == "tokens_per_second":
            assert svg.number(entry["value"]) in text
            assert f"{svg.number(entry['low'])} – {svg.number(entry['high'])}" in text
    for entry in results["paired"]:
        if entry["metric"] == "tokens_per_second":
            assert f"{entry['ratio']:.2f}× plain" in text
    for told in (
        "unspool bench made --methods auto,token-recycling,plain --peers --limit 24",
        'pip install "unspool[openvino]"',
        "the package openvino-genai is not installed",
        "Made Processor",
        "24.0 GiB",
        "llama-cpp-python 0.3.16",
        "21.0 GB/s with 2 threads",
        "205.6 tokens/s",
    ):
        assert told in text


def test_every_plot_is_there_and_has_its_numbers_as_text(results: dict[str, Any], page: str) -> None:
    titles = [figure.title for figure in figures(Results(results))]
    assert titles == [
        "Speed",
        "Against plain",
        "Speed by category",
        "Where the time goes",
        "Acceptance by depth",
        "Tokens a step",
        "Speed against quality",
        "Time to first token",
        "Scaling with context",
        "Largest cache",
        "Peak memory",
    ]
    pictures = [attributes for tag, attributes in Reader(page).tags if tag == "svg"]
    assert len(pictures) == len(titles)
    assert all(picture["role"] == "img" for picture in pictures)
    fastest = max(
        (e for e in results["summary"] if e["metric"] == "tokens_per_second" and e["category"] is None),
        key=lambda entry: entry["value"],
    )
    told = pictures[0]["aria-label"]
    assert told is not None
    assert f"{fastest['arm']} {svg.number(fastest['value'])} [{svg.number(fastest['low'])}" in told


def test_the_rows_are_all_there(results: dict[str, Any], page: str) -> None:
    data = data_of(page)
    assert len(data["rows"]) == len(results["rows"])
    assert data["left_out"] == 0
    assert not data["shortened"]
    names = [name for name, _ in data["columns"]]
    for row, cells, texts in zip(results["rows"], data["rows"], data["texts"], strict=True):
        told = dict(zip(names, cells, strict=True))
        turn = row["turns"][0]
        assert (told["item"], told["arm"], told["category"]) == (row["item"], row["arm"], row["category"])
        assert told["tokens/s"] == pytest.approx(turn["tokens"] / turn["seconds"], rel=1e-3)
        assert told["rouge-1"] == pytest.approx(row["scores"]["rouge-1"], rel=1e-3)
        assert texts == [turn["text"]]


def test_nothing_can_be_fetched_or_run(page: str) -> None:
    tags = Reader(page).tags
    assert not re.search(r"https?://", page)
    for tag, attributes in tags:
        assert not {"src", "href", "xlink:href", "action", "srcset", "style"} & attributes.keys(), tag
        assert not [name for name in attributes if name.startswith("on")], tag
        assert tag not in ("link", "iframe", "object", "embed", "img", "form", "base")
    policy = next(a["content"] for t, a in tags if t == "meta" and a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    style = re.search(r"<style>(.*?)</style>", page, re.S)
    script = re.search(r"<script>(.*?)</script>", page, re.S)
    assert style is not None
    assert script is not None
    assert f"style-src '{pages.content_hash(style.group(1))}'" in policy
    assert f"script-src '{pages.content_hash(script.group(1))}'" in policy


def test_hostile_text_stays_text(page: str) -> None:
    hostile = made({f"arm {HOSTILE}": 20.0, "plain": 18.0}, count=6, text=HOSTILE)
    hostile["model"] = hostile["suite"] = HOSTILE
    hostile["command"].append(HOSTILE)
    hostile["machine"]["cpu"] = HOSTILE
    hostile["absent"] = [{"peer": HOSTILE, "install": HOSTILE, "reason": HOSTILE}]
    hostile["rows"][0]["error"] = {"type": "InvalidInput", "message": HOSTILE}
    made_page = report.html(hostile)
    made_page.encode("utf-8")
    tags = {tag for tag, _ in Reader(made_page).tags}
    assert tags <= {tag for tag, _ in Reader(page).tags}
    assert "7*7" in made_page
    assert made_page.count("</script>") == page.count("</script>") == 2
    texts = data_of(made_page)["texts"]
    assert texts[1] == [HOSTILE]
    assert texts[0] == [f"InvalidInput: {HOSTILE}"]


def test_a_large_run_still_makes_a_small_page() -> None:
    large = made({"auto": 30.0, "plain": 18.0}, count=100, text="a long answer, " * 400)
    large_page = report.html(large)
    assert len(large_page.encode()) <= report.MOST_BYTES
    data = data_of(large_page)
    assert data["shortened"]
    assert data["left_out"] == 0
    assert len(data["rows"]) == 200
    huge = dict(large, rows=[dict(row, turns=row["turns"] * 3) for row in large["rows"]] * 40)
    data = data_of(report.html(huge))
    assert data["left_out"] > 0
    assert len(data["rows"]) + data["left_out"] == len(huge["rows"])


def test_results_with_almost_nothing_make_a_page() -> None:
    for speeds, count in (({"plain": 18.0}, 1), ({"llama.cpp": 60.0}, 2)):
        small = made(speeds, count=count)
        small |= {"roofline": None, "absent": [], "limit": {}, "machine": {}, "command": []}
        assert "Speed" in Reader(report.html(small)).all_text()
    failed = made({"plain": 18.0}, count=1)
    failed["rows"] = [dict(row, turns=[], error={"type": "E", "message": "m"}) for row in failed["rows"]]
    failed["summary"] = []
    assert data_of(report.html(failed))["rows"][0][9] == "error"


def test_batches_are_plotted_where_they_were_measured() -> None:
    data = made(count=12)
    assert "Scaling with batch" not in [figure.title for figure in figures(Results(data))]
    data["batches"] = [
        {"arm": "auto", "batch": size, "tokens": 10 * size, "seconds": 2.0} for size in (1, 2, 4) for _ in range(4)
    ]
    found = {figure.title: figure for figure in figures(Results(data))}
    assert "auto: 1 → 5; 2" in found["Scaling with batch"].svg
    assert "4 → 20" in found["Scaling with batch"].svg


# -- the plots themselves -----------------------------------------------------------------------------------------


def test_bars_are_as_long_as_their_values() -> None:
    picture = charts.bars("t", [Bar("a", 10, "c"), Bar("b", 5, "c", 4, 6)], "u")
    widths = [float(width) for width in re.findall(r'<rect class="c fill" x="4" y="[\d.]+" width="([\d.]+)"', picture)]
    assert widths[0] == pytest.approx(2 * widths[1], abs=0.2)
    assert 'aria-label="t, u. a 10.0. b 5.00 [4.00, 6.00]."' in picture


def test_a_limit_far_beyond_is_told_beside_the_axis() -> None:
    near = charts.bars("t", [Bar("a", 10, "c")], "u", limits=[("limit", 12.0)])
    far = charts.bars("t", [Bar("a", 10, "c")], "u", limits=[("limit", 100.0)])
    assert '<line class="limit"' in near
    assert '<line class="limit"' not in far
    assert "limit 100 →" in far


def test_parts_of_a_stack_follow_one_another() -> None:
    picture = charts.stacks("t", [Stack("a", (("x", 2.0), ("y", 6.0)))], "ms", [("x", "c0"), ("y", "c1")])
    x, y = (
        re.search(rf'<rect class="{kind} fill" x="([\d.]+)" y="[\d.]+" width="([\d.]+)"', picture)
        for kind in ("c0", "c1")
    )
    assert x is not None
    assert y is not None
    assert float(x[1]) + float(x[2]) == pytest.approx(float(y[1]), abs=0.2)
    assert 3 * float(x[2]) == pytest.approx(float(y[2]), abs=0.4)


def test_labels_of_lines_do_not_lie_upon_one_another() -> None:
    series = [Series(f"arm {n}", "c", (Point(0, 1), Point(1, 1 + n / 1000))) for n in range(8)]
    picture = charts.lines("t", series, "x", "y")
    heights = sorted(float(y) for y in re.findall(r'class="name small" x="[\d.]+" y="([\d.]+)"', picture))
    assert len(heights) == 8
    assert min(b - a for a, b in itertools.pairwise(heights)) >= 14.9


@pytest.mark.parametrize(("value", "told"), [(0, "0.00"), (3.14159, "3.14"), (41.26, "41.3"), (1234.5, "1,234")])
def test_numbers_have_three_digits(value: float, told: str) -> None:
    assert svg.number(value) == told


def test_round_ticks_hold_the_range() -> None:
    for high in (0.003, 0.7, 1, 9.99, 41, 1234):
        ticks = svg.round_ticks(0, high)
        assert ticks[0] == 0
        assert ticks[-1] >= high * (1 - 1e-9)
        assert 3 <= len(ticks) <= 12


def test_measures_tell_which_way_is_better() -> None:
    assert measure("tokens_per_second").better == "higher"
    assert measure("first_token_seconds").better == "lower"
    assert measure("perplexity").better == "lower"
    assert measure("rouge-1").of_text
    assert not measure("acceptance_at_3").of_text
    assert not measure("draft_ms_per_token").of_text
