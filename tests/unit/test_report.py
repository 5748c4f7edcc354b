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

from jobs.evaluation.report import words
from jobs.evaluation.report.report import render
from jobs.evaluation.report.standalone import standalone
from jobs.evaluation.report.verdict import verdict
from tests.report_document import (
    MEASURES,
    bare_document,
    make_document,
    make_examples,
    make_gate,
    with_baseline,
)

REPORTING = Path(render.__code__.co_filename).parent
HOSTILE = """<script>alert(1)</script>&"'><img src=x onerror=alert(1)>{{ 7 * 7 }}$x$"""
LONG = "x" * 400
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
VOID = {"meta", "link", "br", "img"}


class Page(HTMLParser):
    """What a page is made of; fails where tags do not match."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: list[str] = []
        self.feed(html)
        self.close()
        assert not self.open

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

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.texts))

    def values(self, name: str) -> list[str]:
        return [value for _, key, value in self.attributes if key == name]


def full(**changes: Any) -> dict[str, Any]:
    document = make_document(120, gate=make_gate(passed=False), examples=make_examples())
    return with_baseline(document) | changes


def without_first_stage() -> dict[str, Any]:
    document = make_document()
    keys = ("first_stage_order", "first_stage", "delta", "tests", "moved", "per_query")
    document |= dict.fromkeys(keys)
    document["intervals"] |= {"first_stage": None, "delta": None}
    for row in document["slices"][0]["rows"]:
        row |= {"first_stage": None, "delta": None, "p_holm": None}
    return document


def all_equal() -> dict[str, Any]:
    document = make_document(9)
    same = dict.fromkeys(MEASURES, 0.5)
    zero = dict.fromkeys(MEASURES, 0.0)
    test = {"p": 1.0, "p_holm": 1.0, "effect_size": 0.0, "helped": 0, "hurt": 0, "tied": 9}
    document |= {"first_stage": same, "reranked": same, "delta": zero, "ceiling": same}
    document["intervals"] = {
        "level": 0.95,
        "first_stage": {name: [0.5, 0.5] for name in MEASURES},
        "reranked": {name: [0.5, 0.5] for name in MEASURES},
        "delta": {name: [0.0, 0.0] for name in MEASURES},
    }
    document["tests"] = dict.fromkeys(MEASURES, test | {"method": "0 queries changed"})
    document["per_query"] |= {"differences": [0.0] * 9, "most_helped": [], "most_hurt": []}
    document["moved"]["truncation"] |= {"pairs": 0, "queries": 0, "queries_in_top": 0}
    return document


def unjudged() -> dict[str, Any]:
    document = make_document()
    document["scores"] |= {
        "relevant": [0] * 44,
        "not_relevant": [0] * 44,
        "reliability": [
            row | {"pairs": 0, "mean_probability": None, "share_relevant": None}
            for row in document["scores"]["reliability"]
        ],
        "ece": None,
        "judged_pairs": 0,
    }
    keys = ("first_stage", "delta", "tests", "per_query", "intervals")
    return document | dict.fromkeys(keys) | {"queries": 0, "reranked": {}, "ceiling": {}}


VARIATIONS = {
    "full": (
        full(),
        "Not passed: 2 of 3 rules failed . nDCG@10 >= 0.60 (is 0.5732); ms_per_pair.p95 <= 12 "
        "(no value: nothing was scored). | nDCG@10 rose from 0.506 to 0.573 (+0.067, | "
        "Against bge-reranker-base | All systems | ▲ significantly better | Most hurt queries | "
        "Truncation could have changed the order of 40 of 120 queries; 20 have a cut document "
        "among the first 10 | nDCG@10 by language | missing_doc | 头孢-17 | was 3",
        "",
    ),
    "no gate": (
        make_document(),
        "nDCG@10 rose from 0.506 to 0.573 (+0.067, 95% interval +0.020 to +0.114, p = 0.005). | "
        "is significant | 9.5 ms per pair | 25 / 10 / 8 queries | 1 query has no relevant | "
        "157 queries without judgement | 90.7%",
        "Gate | Not passed | All systems | Examples",
    ),
    "passed": (
        make_document(gate=make_gate(passed=True)),
        "Passed: all 3 rules hold.",
        "Not passed",
    ),
    "no first stage": (
        without_first_stage(),
        "nDCG@10 is 0.573 (95% interval 0.520 to 0.626). | no first-stage order | ceiling",
        "first stage | Query by query | What moved | p (Holm) | rose",
    ),
    "no labels": (
        unjudged(),
        "No query has a judgement | unjudged, 3,505 pairs | What moved",
        "Measures | probability given | Query by query | Slices of",
    ),
    "no operations": (make_document(operations=None), "rose", "Time and rejects | ms per pair"),
    "no slices": (make_document(slices=[]), "rose", "Slices"),
    "one query": (
        make_document(1),
        "1 query | One query says nothing about others.",
        "1 queries with",
    ),
    "all equal": (
        all_equal(),
        "nDCG@10 stayed at 0.500. | No query changed its nDCG@10. | No pair was cut",
        "NaN | nan | rose | fell",
    ),
    "a single system": (
        make_document(systems=with_baseline(make_document())["systems"][:1]),
        "rose",
        "All systems",
    ),
    "bare": (bare_document(), "No query has a judgement", "Settings | Lengths | Time"),
    "nothing": ({}, "No query has a judgement", "None"),
}  # fmt: skip


@cache
def rendered(name: str) -> str:
    return render(VARIATIONS[name][0])


@pytest.mark.parametrize("name", VARIATIONS)
def test_shows_what_there_is_and_leaves_out_the_rest(name: str) -> None:
    _, there, missing = VARIATIONS[name]
    page = Page(rendered(name))
    assert [text for text in there.split(" | ") if _plain(text) not in _plain(page.text)] == []
    assert [text for text in missing.split(" | ") if text and text in page.text] == []
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    assert set(page.values("aria-labelledby")) <= set(ids)
    assert page.tags["h1"] == 1
    # Each drawing says in words what it shows.
    labels = [value for tag, key, value in page.attributes if (tag, key) == ("svg", "aria-label")]
    assert len(labels) == page.values("role").count("img") == page.tags["figcaption"]
    assert all(len(label) > 30 for label in labels)


@pytest.mark.parametrize("key", sorted(make_document()))
def test_any_block_may_be_missing(key: str) -> None:
    drawn = ("scores", "lengths", "moved", "per_query")
    document = full()
    if key not in drawn:  # drawings take time, and do not depend on the other blocks
        document |= dict.fromkeys(drawn)
    Page(render(document | {key: None}))


def test_nothing_in_the_document_becomes_markup() -> None:
    document = json.loads(json.dumps(full()).replace("nDCG@10", "MEASURE"))
    text = json.dumps(document).replace("MEASURE", json.dumps(HOSTILE)[1:-1])
    for word in ("bge-reranker-base", "language", "missing_doc", "first stage", "d3", "q1", "en"):
        text = text.replace(f'"{word}"', json.dumps(HOSTILE))
    document = json.loads(text) | {"name": HOSTILE, "run_id": HOSTILE, "started": HOSTILE}
    document["examples"][0] |= {"query": HOSTILE}
    document["examples"][0]["before"][0] |= {"text": HOSTILE}
    document["gate"]["rules"][0] |= {"rule": HOSTILE, "note": HOSTILE}
    document["per_query"]["most_helped"][0] |= {"query_id": HOSTILE}
    document["operations"]["model"] |= {"name": HOSTILE, "architecture": HOSTILE}
    document["config"][HOSTILE] = {HOSTILE: [HOSTILE]}
    document["versions"][HOSTILE] = HOSTILE
    page = Page(render(document))
    assert not page.tags["script"] and not page.tags["img"]
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert page.text.count(HOSTILE) > 20


def test_the_page_refers_to_nothing_outside_it() -> None:
    html = rendered("full")
    page = Page(html)
    assert "http" not in html.replace('http-equiv="', "")
    assert "@import" not in html
    assert re.findall(r"url\((?!#)", html) == []
    names = {"src", "srcset", "data", "poster", "action", "formaction", "ping", "background"}
    assert names.isdisjoint(name for _, name, _ in page.attributes)
    links = page.values("href")
    assert all(link == "data:," or link.startswith("#") for link in links)
    assert {link[1:] for link in links if link[0] == "#"} <= set(page.values("id"))
    assert {"script", "iframe", "object", "embed", "base", "form"}.isdisjoint(page.tags)


def test_the_same_document_gives_the_same_page_whatever_matplotlib_is_set_to() -> None:
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red", "svg.fonttype": "path"}):
        assert render(full()) == rendered("full")
        assert matplotlib.rcParams["font.size"] == 30


def test_drawings_take_their_colours_and_their_font_from_the_page() -> None:
    html = rendered("full")
    drawings = "".join(re.findall(r'<svg class="plot".*?</svg>', html, flags=re.DOTALL))
    assert re.findall(r"#[0-9a-fA-F]{6}\b", drawings) == []
    assert "font-family" not in drawings and "<style" not in drawings
    used = set(re.findall(r"var\(--(\w+)\)", html))
    assert used <= set(re.findall(r"--(\w+):", html))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_meets_wcag_aa(scheme: str) -> None:
    blocks = re.findall(r":root \{(.*?)\}", (REPORTING / "report.css").read_text(), re.DOTALL)
    colours = dict(re.findall(r"--(\w+): (#[0-9a-f]{6});", blocks[scheme == "dark"]))
    for name, least in {
        "ink": 7, "muted": 4.5, "helped": 4.5, "hurt": 4.5, "bars": 3, "quiet": 3
    }.items():  # fmt: skip
        assert _contrast(colours[name], colours["paper"]) >= least, name


def test_a_lone_surrogate_can_be_written_to_a_file() -> None:
    assert "a?b" in render(make_document(name="a\ud800b")).encode().decode()


def test_the_template_is_found_in_a_zip_file(tmp_path: Path) -> None:
    archive = tmp_path / "packages.zip"
    with zipfile.ZipFile(archive, "w") as packages:
        jobs = REPORTING.parents[1]
        for path in jobs.rglob("*.*"):
            if path.suffix in (".py", ".j2", ".css"):
                packages.write(path, f"jobs/{path.relative_to(jobs)}")
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from jobs.evaluation.report import report\n"
        "assert sys.argv[1] in report.__file__; sys.stdout.write(report.render({}))"
    )
    command = [sys.executable, "-c", code, str(archive)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout == render({})


@pytest.mark.parametrize(
    ("p", "value", "delta", "sentence"),
    [
        (0.004, 0.6, 0.1, "nDCG@10 rose from 0.500 to 0.600 (+0.100, p = 0.004)"),
        (0.00001, 0.4, -0.1, "nDCG@10 fell from 0.500 to 0.400 (−0.100, p < 0.001)"),
        (0.21, 0.4, -0.1, "nDCG@10 fell from 0.500 to 0.400, which may be chance (−0.100, "
         "p = 0.210)"),
        (0.05, 0.6, 0.1, "nDCG@10 rose from 0.500 to 0.600, which may be chance (+0.100, "
         "p = 0.050)"),
        (0.0499, 0.6, 0.1, "nDCG@10 rose from 0.500 to 0.600 (+0.100, p = 0.0499)"),
        (0.9, 0.5001, 1e-4, "nDCG@10 rose from 0.5000 to 0.5001, which may be chance (+0.0001, "
         "p = 0.900)"),
        (None, 0.6, 0.1, "nDCG@10 rose from 0.500 to 0.600 (+0.100)"),
        (1.0, 0.5, 0.0, "nDCG@10 stayed at 0.500"),
    ],
)  # fmt: skip
def test_the_verdict_claims_no_more_than_the_test(
    p: float | None, value: float, delta: float, sentence: str
) -> None:
    document = make_document(
        first_stage={"nDCG@10": 0.5},
        reranked={"nDCG@10": value},
        delta={"nDCG@10": delta},
        tests={"nDCG@10": {"p": p, "p_holm": p}} if p is not None else None,
        intervals=None,
    )
    found = verdict(document)
    assert _plain(found.sentence + found.numbers) == sentence
    assert (found.tone != "") == (p is not None and p < 0.05)


def test_a_gate_names_the_value_apart_from_its_limit() -> None:
    rule = {"rule": "nDCG@10 >= 0.6", "value": 0.59999, "limit": 0.6, "passed": False, "note": ""}
    found = verdict(make_document(gate={"passed": False, "rules": [rule]}))
    assert found.sentence + found.numbers == "Not passed. nDCG@10 >= 0.6 (is 0.59999)"


def test_a_baseline_stands_in_where_there_is_no_first_stage() -> None:
    document = without_first_stage()
    document["baseline"] = with_baseline(make_document())["baseline"]
    document["baseline"] |= {"queries": 40, "delta": {"nDCG@10": 0.03}}
    found = verdict(document)
    assert found.sentence == "nDCG@10 rose from 0.552 to 0.582"
    assert "bge-reranker-base over 40 queries" in found.more[0]


@pytest.mark.parametrize(
    ("written", "text"),
    [
        (words.signed(0.0), "0.0000"),
        (words.signed(-0.00001), "0.0000"),
        (words.signed(-0.02, 2), "−0.02"),
        (words.signed(None), "–"),
        (words.fixed(float("nan")), "–"),
        (words.share(1.0), "100.0%"),
        (words.share(0.99999), "> 99.9%"),
        (words.share(0.00001), "< 0.1%"),
        (words.share(0.0), "0.0%"),
        (words.compact(999_999), "1M"),
        (words.compact(1210), "1,210"),
        (words.compact(6000), "6k"),
        (words.seconds(59.99), "60.0 s"),
        (words.seconds(3599.9), "1 h 0 min"),
        (words.seconds(125), "2 min 5 s"),
        (words.moment("2026-11-22T01:30:00+02:00"), "2026-11-21 23:30 UTC"),
        (words.moment("yesterday"), "yesterday"),
        (words.shortened("0123456789", 6), "012…89"),
    ],
)
def test_numbers_in_words(written: str, text: str) -> None:
    assert written == text


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium")
def test_fits_every_screen_and_asks_for_nothing(tmp_path: Path) -> None:
    pages = {name: rendered(name) for name in VARIATIONS}
    pages["long words"] = render(_with_long_words())
    found, console = _in_a_browser(tmp_path, pages)
    assert len(found) == 2 * len(pages)
    assert [frame for frame in found if frame["scroll"] > frame["client"]] == []
    assert all(frame["title"] for frame in found)
    assert console == []


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium")
def test_the_check_in_the_browser_can_fail(tmp_path: Path) -> None:
    page = rendered("no gate")
    wide = page.replace("<main>", '<main><p style="width: 800px">wide</p>')
    image = page.replace("<main>", '<main><img src="http://127.0.0.1:9/pixel.png" alt="">')
    found, console = _in_a_browser(tmp_path, {"wide": wide, "image": image})
    overflowing = [frame["name"] for frame in found if frame["scroll"] > frame["client"]]
    assert overflowing == ["wide 390"]
    assert console and all("pixel.png" in line for line in console)


def _in_a_browser(folder: Path, pages: dict[str, str]) -> tuple[list[dict[str, Any]], list[str]]:
    """Every page in frames as wide as a phone and a desktop: their widths, and the console."""
    frames = []
    for place, (name, html) in enumerate(pages.items()):
        (folder / f"{place}.html").write_text(html, encoding="utf-8")
        frames += [
            f'<iframe src="{place}.html" name="{name} {width}" width="{width}" height="800">'
            "</iframe>"
            for width in (390, 1280)
        ]
    script = """addEventListener("load", () => {
        const found = [...document.querySelectorAll("iframe")].map(frame => {
            const root = frame.contentDocument.documentElement;
            return {name: frame.name, scroll: root.scrollWidth, client: root.clientWidth,
                    title: frame.contentDocument.title};
        });
        document.body.textContent = "FOUND" + JSON.stringify(found) + "END";
    });"""
    style = "<style>iframe { border: 0; display: block }</style>"
    content = f"<meta charset=utf-8>{style}{''.join(frames)}<script>{script}</script>"
    (folder / "frames.html").write_text(content, encoding="utf-8")
    assert CHROMIUM is not None
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
        "--hide-scrollbars", "--no-first-run", "--disable-background-networking",
        "--allow-file-access-from-files", "--enable-logging=stderr",
        f"--user-data-dir={folder / 'profile'}", "--dump-dom", (folder / "frames.html").as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    found = re.search(r"FOUND(.*?)END", done.stdout, re.DOTALL)
    assert found is not None, done.stderr
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return json.loads(found[1]), console


def _with_long_words() -> dict[str, Any]:
    document = full(name=LONG, run_id=LONG)
    document["per_query"]["most_helped"][0] |= {"query_id": LONG}
    document["gate"]["rules"][0] |= {"rule": LONG, "note": LONG}
    document["slices"][0] |= {"column": LONG}
    document["slices"][0]["rows"][0] |= {"value": LONG}
    document["operations"]["model"] |= {"name": LONG}
    document["operations"]["reject_reasons"][LONG] = 10**9
    document["baseline"] |= {"name": LONG}
    document["examples"][0] |= {"query_id": LONG, "query": LONG}
    document["examples"][0]["before"][0] |= {"doc_id": LONG, "text": LONG}
    document["config"]["input"] |= {"path": LONG}
    document["queries"] = 10**9
    return document


def _plain(text: str) -> str:
    """Blanks of every kind and number as one, and none in front of punctuation."""
    return re.sub(r"\s+([.,])", r"\1", re.sub(r"\s+", " ", text))


def _contrast(one: str, other: str) -> float:
    def light(colour: str) -> float:
        parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        red, green, blue = (
            part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
        )
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    dark, bright = sorted((light(one), light(other)))
    return (bright + 0.05) / (dark + 0.05)


def test_drawings_stand_alone_without_a_page() -> None:
    found = standalone(make_document())
    assert set(found) == {"win_loss", "flow", "rank_changes", "scores", "reliability", "lengths"}
    for drawing in found.values():
        root = ElementTree.fromstring(drawing)
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert "var(" not in drawing
        assert "http" not in drawing.replace("http://www.w3.org/2000/svg", "")
    assert standalone(bare_document()).keys() < found.keys()
