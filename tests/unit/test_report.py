"""Both pages: what they show, what they leave out, and that nothing of the data becomes markup."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import zipfile
from collections import Counter
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib
import pytest

from jobs.evaluation.report import formatting, render, render_tuning
from jobs.evaluation.report.figures import DARK, LIGHT
from jobs.evaluation.report.verdict import verdict
from tests.report_document import MEASURES, make_document, make_full, make_gate, make_tuning

JOBS = Path(formatting.__file__).parents[2]
HOSTILE = """<script>alert(1)</script>&"'><img src=x onerror=alert(1)>{{ 7 * 7 }}$x$"""
LONG = "x" * 400
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
VOID = {"meta", "link", "br", "img"}


class Page(HTMLParser):
    """The tags, attributes and texts of a page; fails where tags do not match."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: list[str] = []
        self.feed(html)
        self.close()
        assert not self.open
        self.text = plain(" ".join(self.texts))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.texts.append(data)

    def values(self, name: str) -> list[str]:
        return [value for _, key, value in self.attributes if key == name]


def plain(text: str) -> str:
    """One kind of white space, and none in front of punctuation."""
    return re.sub(r"\s+([.,])", r"\1", re.sub(r"\s+", " ", text))


def without_first_stage(**changes: Any) -> dict[str, Any]:
    keys = ("first_stage_order", "first_stage", "delta", "tests", "moved", "per_query")
    document = make_document() | dict.fromkeys(keys) | changes
    document["intervals"] |= {"first_stage": None, "delta": None}
    for row in document["slices"][0]["rows"]:
        row |= {"first_stage": None, "delta": None, "p_holm": None}
    return document


def unchanged() -> dict[str, Any]:
    same, zero = dict.fromkeys(MEASURES, 0.5), dict.fromkeys(MEASURES, 0.0)
    document = make_document(9, first_stage=same, reranked=same, delta=zero, ceiling=same)
    document["intervals"]["delta"] = {name: [0.0, 0.0] for name in MEASURES}
    for test in document["tests"].values():
        test |= {"p_holm": 1.0, "effect_size": 0.0, "helped": 0, "hurt": 0, "tied": 9}
    document["per_query"] |= {"differences": [0.0] * 9, "most_helped": [], "most_hurt": []}
    document["moved"]["truncation"] |= {"pairs": 0, "queries": 0, "queries_in_top": 0}
    return document


def unlabelled() -> dict[str, Any]:
    whole = make_document(gate=make_gate(passed=True))
    whole["operations"]["counts"] = {}
    keys = ("name", "moved", "lengths", "operations", "warnings", "gate")
    scores = whole["scores"] | {"relevant": [0] * 44, "not_relevant": [0] * 44, "ece": None,
                                "reliability": [], "judged_pairs": 0}  # fmt: skip
    return {key: whole[key] for key in keys} | {"scores": scores}


#: Document; texts of its page; texts that its page has not.
VARIATIONS = {
    "full": (
        make_full(),
        "Not passed: 2 of 3 rules failed. nDCG@10 >= 0.60 (is 0.5732); p95_ms_per_pair <= 12 "
        "(nothing was scored). | nDCG@10 rose from 0.506 to 0.573 (+0.067, | All scores are equal "
        "| The comparison with bge-reranker-base is over the 117 queries that both rank. | "
        "Against bge-reranker-base, over 117 queries | 3 only here, 2 only in the baseline | "
        "All systems | ms per pair | 7.2 | 12.35 | ▲ significantly better | "
        "Most hurt queries | session s0 | Truncation could "
        "have changed the order of 40 of 120 queries; 20 have a cut document among the first 10 | "
        "1.2% of the candidates have the score | nDCG@10 by language | missing_doc | 头孢-17",
        "",
    ),
    "no gate": (
        make_document(),
        "nDCG@10 rose from 0.506 to 0.573 (+0.067, 95% interval +0.020 to +0.114, p = 0.005). | "
        "is significant | 9.5 ms per pair | 25 / 10 / 8 queries | 1 query has no relevant | "
        "157 queries without judgement | 90.7% | 2026-11-22 01:00 UTC",
        "Gate | Not passed | All systems | Examples",
    ),
    "passed": (make_document(gate=make_gate(passed=True)), "Passed: all 3 rules hold.", "failed"),
    "no first stage": (
        without_first_stage(),
        "nDCG@10 is 0.573 (95% interval 0.520 to 0.626). | no first-stage order | ceiling",
        "first stage | Query by query | What moved | p (Holm) | rose",
    ),
    "no labels": (
        unlabelled(),
        "Passed: all 3 rules hold. | No query has a judgement | unjudged, 3,505 pairs | What moved",
        "Measures | probability given | Query by query | Slices | Before and after | Counts",
    ),
    "one query": (make_document(1), "One query says nothing of others.", "1 queries with"),
    "unchanged": (
        unchanged(),
        "nDCG@10 stayed at 0.500. | No query changed its nDCG@10. | No pair was cut",
        "NaN | nan | rose | fell",
    ),
    "nothing": ({}, "No query has a judgement", "None | Settings | Lengths | Time"),
}  # fmt: skip


@cache
def rendered(name: str) -> str:
    return render(VARIATIONS[name][0])[0]


@pytest.mark.parametrize("name", VARIATIONS)
def test_a_page_shows_what_there_is_and_leaves_out_the_rest(name: str) -> None:
    _, present, absent = VARIATIONS[name]
    page = Page(rendered(name))
    assert [text for text in present.split(" | ") if plain(text) not in page.text] == []
    assert [text for text in absent.split(" | ") if text and text in page.text] == []
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    assert set(page.values("aria-labelledby")) <= set(ids)
    assert page.tags["h1"] == 1
    assert page.values("role").count("img") == page.tags["figcaption"]


def test_any_block_may_be_missing() -> None:
    drawn = ("scores", "lengths", "moved", "per_query")
    without_plots = make_full() | dict.fromkeys(drawn)
    for key in without_plots.keys() - set(drawn):
        Page(render(without_plots | {key: None})[0])
    Page(render({key: value for key, value in make_full().items() if key in drawn})[0])


def test_the_tuning_page_has_the_settings_and_the_recommended_one() -> None:
    page = Page(render_tuning(make_tuning()))
    for text in (
        "bf16, max_length 256, max_tokens 16,384, 3.0 times as fast as fp32 at max_length 512.",
        "Kendall’s tau 0.980, nDCG@10 −0.0020", "1 h 27 min", "out of memory", "62.0", "26.0%",
        "throughput of one task slot [pairs/s]",
    ):  # fmt: skip
        assert text in page.text
    assert (
        "No setting can be recommended" in Page(render_tuning(make_tuning(recommended=False))).text
    )


def test_nothing_in_the_document_becomes_markup() -> None:
    text = json.dumps(make_full()).replace("nDCG@10", json.dumps(HOSTILE)[1:-1])
    for word in ("bge-reranker-base", "language", "missing_doc", "first stage", "d3", "q1", "en"):
        text = text.replace(f'"{word}"', json.dumps(HOSTILE))
    document = json.loads(text) | {"name": HOSTILE, "run_id": HOSTILE, "warnings": [HOSTILE]}
    document["examples"][0]["before"][0] |= {"text": HOSTILE}
    document["gate"]["rules"][0] |= {"rule": HOSTILE, "note": HOSTILE}
    document["per_query"]["most_helped"][0] |= {"query_id": HOSTILE}
    document["operations"]["model"] |= {"name": HOSTILE, "architecture": HOSTILE}
    document["config"][HOSTILE] = {HOSTILE: [HOSTILE]}
    tuning = json.loads(json.dumps(make_tuning()).replace('"bf16"', json.dumps(HOSTILE)))
    html, plots = render(document)
    for page in (Page(html), Page(render_tuning(tuning | {"device": HOSTILE}))):
        assert not page.tags["script"] and not page.tags["img"]
        assert not [name for _, name, _ in page.attributes if name.startswith("on")]
        assert page.text.count(HOSTILE) > 3
    assert all(ElementTree.fromstring(svg).tag.endswith("svg") for svg in plots.values())


def test_a_page_refers_to_nothing_outside_it() -> None:
    page = Page(rendered("full"))
    assert "@import" not in rendered("full")
    assert re.findall(r"url\((?!#)", rendered("full")) == []
    names = {"src", "srcset", "data", "poster", "action", "formaction", "ping", "background"}
    assert names.isdisjoint(name for _, name, _ in page.attributes)
    links = [*page.values("href"), *page.values("xlink:href")]
    assert {link for link in links if link[0] != "#"} == {"data:,"}
    assert {link[1:] for link in links if link[0] == "#"} <= set(page.values("id"))
    assert {"script", "iframe", "object", "embed", "base", "form"}.isdisjoint(page.tags)


def test_the_same_document_gives_the_same_page_whatever_matplotlib_is_set_to() -> None:
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red", "svg.fonttype": "path"}):
        assert render(make_full())[0] == rendered("full")
        assert matplotlib.rcParams["font.size"] == 30


def test_plots_follow_the_page_and_stand_alone() -> None:
    html, files = render(make_full())
    assert set(files) == {"win_loss", "flow", "rank_changes", "scores", "reliability", "lengths"}
    assert all("var(" not in svg and "<image" not in svg for svg in files.values())
    embedded = re.findall(r'<div class="plot".*?</div>', html, flags=re.DOTALL)
    assert len(embedded) == len(files)
    assert re.findall(r"#[0-9a-fA-F]{6}\b", "".join(embedded)) == []
    assert set(re.findall(r"var\(--(\w+)\)", html)) <= set(LIGHT)
    assert set(render(unlabelled())[1]) == {"flow", "rank_changes", "scores", "lengths"}
    assert render({})[1] == {}


@pytest.mark.parametrize("colours", [LIGHT, DARK])
def test_contrast_meets_wcag_aa(colours: dict[str, str]) -> None:
    def light(colour: str) -> float:
        parts = (int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5))
        linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts]
        return sum(w * x for w, x in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    least = {"ink": 7, "muted": 4.5, "helped": 4.5, "hurt": 4.5, "bars": 3, "quiet": 3}
    for name, ratio in least.items():
        dark, bright = sorted((light(colours[name]), light(colours["paper"])))
        assert (bright + 0.05) / (dark + 0.05) >= ratio, name


def test_a_lone_surrogate_can_be_written_to_a_file() -> None:
    assert "a?b" in render(make_document(name="a\ud800b"))[0].encode().decode()


def test_templates_are_found_in_a_zip_file(tmp_path: Path) -> None:
    archive = tmp_path / "packages.zip"
    with zipfile.ZipFile(archive, "w") as packages:
        for path in JOBS.rglob("*.*"):
            if path.suffix in (".py", ".j2", ".css"):
                packages.write(path, f"jobs/{path.relative_to(JOBS)}")
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from jobs.evaluation import report\n"
        "assert sys.argv[1] in report.__file__; sys.stdout.write(report.render({})[0])"
    )
    command = [sys.executable, "-c", code, str(archive)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout == rendered("nothing")


@pytest.mark.parametrize(
    ("p", "value", "sentence"),
    [
        (0.004, 0.6, "rose from 0.500 to 0.600 (+0.100, p = 0.004)"),
        (0.00001, 0.4, "fell from 0.500 to 0.400 (−0.100, p < 0.001)"),
        (0.21, 0.4, "fell from 0.500 to 0.400, which may be chance (−0.100, p = 0.210)"),
        (0.05, 0.6, "rose from 0.500 to 0.600, which may be chance (+0.100, p = 0.050)"),
        (0.0499, 0.6, "rose from 0.500 to 0.600 (+0.100, p = 0.0499)"),
        (0.9, 0.5001, "rose from 0.5000 to 0.5001, which may be chance (+0.0001, p = 0.900)"),
        (None, 0.6, "rose from 0.500 to 0.600 (+0.100)"),
        (1.0, 0.5, "stayed at 0.500"),
    ],
)
def test_the_verdict_claims_no_more_than_the_test(
    p: float | None, value: float, sentence: str
) -> None:
    changes = {"first_stage": {"nDCG@10": 0.5}, "reranked": {"nDCG@10": value}, "intervals": None}
    found = verdict(make_document(**changes, tests={"nDCG@10": {"p_holm": p}}))
    assert plain(found.sentence + found.rest) == f"nDCG@10 {sentence}"
    assert (found.tone != "") == (p is not None and p < 0.05)


def test_a_baseline_stands_in_where_there_is_no_first_stage() -> None:
    baseline = make_full()["baseline"] | {"queries": 40, "delta": {"nDCG@10": 0.03}}
    found = verdict(without_first_stage(baseline=baseline))
    assert found.sentence == "nDCG@10 rose from 0.552 to 0.582"
    assert any("bge-reranker-base is over the 40 queries" in sentence for sentence in found.more)


@pytest.mark.parametrize(
    ("written", "text"),
    [
        (formatting.signed(-0.00001), "0.0000"),
        (formatting.signed(None), "–"),
        (formatting.fixed(float("nan")), "–"),
        (formatting.share(0.99999), "> 99.9%"),
        (formatting.share(0.00001), "< 0.1%"),
        (formatting.beside(0.59999, 0.6), "0.59999"),
        (formatting.seconds(3599.9), "1 h 0 min"),
        (formatting.seconds(125), "2 min 5 s"),
    ],
)
def test_numbers_as_people_read_them(written: str, text: str) -> None:
    assert written == text


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium")
def test_pages_fit_every_screen_and_ask_for_nothing(tmp_path: Path) -> None:
    """In frames as wide as a phone and as a desktop; a page of 400-letter names among them."""
    text = json.dumps(make_full(name=LONG))
    for word in ("bge-reranker-base", "missing_doc", "1037798", "d3"):
        text = text.replace(word, LONG)
    pages = {name: rendered(name) for name in VARIATIONS}
    pages |= {"long": render(json.loads(text))[0], "tuning": render_tuning(make_tuning())}
    frames = ""
    for place, (name, html) in enumerate(pages.items()):
        (tmp_path / f"{place}.html").write_text(html, encoding="utf-8")
        for width in (390, 1280):
            attributes = f'name="{name} {width}" width="{width}" height="800"'
            frames += f'<iframe src="{place}.html" {attributes}></iframe>'
    script = """addEventListener("load", () => {
        const found = [...document.querySelectorAll("iframe")].map(frame => {
            const root = frame.contentDocument.documentElement;
            return [frame.name, root.scrollWidth - root.clientWidth];
        });
        document.body.textContent = "FOUND" + JSON.stringify(found) + "END";
    });"""
    page = tmp_path / "frames.html"
    page.write_text(f"<meta charset=utf-8>{frames}<script>{script}</script>", encoding="utf-8")
    command = [
        str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
        "--hide-scrollbars", "--no-first-run", "--disable-background-networking",
        "--allow-file-access-from-files", "--enable-logging=stderr",
        f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", page.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    found = re.search(r"FOUND(.*?)END", done.stdout, re.DOTALL)
    assert found is not None, done.stderr
    beyond = json.loads(found[1])
    assert len(beyond) == 2 * len(pages)
    assert [name for name, width in beyond if width > 0] == []
    assert [line for line in done.stderr.splitlines() if "CONSOLE" in line] == []
