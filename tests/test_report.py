"""The report: the same figures on a page, in Markdown and in JSON; and the page as a browser shows it."""

from __future__ import annotations

import csv
import html
import io
import json
import re
import shutil
import subprocess
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest

from pocketdraft.runtime.chart import Line, heat, lines, stacked
from pocketdraft.runtime.errors import PocketdraftError
from pocketdraft.runtime.figures import points, ratio
from pocketdraft.runtime.lengths import PLAIN, Runs, Way
from pocketdraft.runtime.profile import DeviceInfo, read_profile, reported
from pocketdraft.runtime.proposal import Proposal
from pocketdraft.runtime.results import FirstToken, Imported, Imports, Parity, Prediction, Read, Results, read_results
from pocketdraft.runtime.sections import report
from pocketdraft.runtime.stats import Stats

GOLDEN = Path(__file__).parent / "golden" / "profile.json"
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-headless-shell", "google-chrome"))), None)


def runs(drafts: int, speed: float) -> Runs:
    """Eight prompts of 40 tokens; of a round's drafts as many are accepted as its number says."""
    stats = Stats(seconds={"draft": 0.1 * drafts, "verify": 1.0, "sampling": 0.02, "host": 0.05})
    for number in range(32):
        stats.outcomes[len(Proposal.chain([0] * drafts)), min(drafts, number % (drafts + 1))] += 1
    stats.emitted = stats.accepted + stats.rounds
    return Runs([40] * 8, [40 / (speed * (1 + 0.01 * n)) for n in range(8)], stats)


@pytest.fixture
def results() -> Results:
    by_domain = {
        domain: {PLAIN: runs(0, 100.0), **{Way("mtp", n): runs(n, factor * (90 + 10 * n)) for n in (1, 2, 4)}}
        for domain, factor in (("code", 1.2), ("<en> & more", 0.9))
    }
    return Results(
        date="2026-11-26",
        bundle="demo",
        bundle_bytes=4_500_000,
        backend="litert",
        recipe="mixed",
        device=DeviceInfo(name="Linux x86_64", soc="a processor"),
        threads=1,
        temperature=0.0,
        max_tokens=40,
        prompts=dict.fromkeys(by_domain, 8),
        licences=("a book: public domain",),
        identical=True,
        points=tuple(points(by_domain) + points(by_domain, 2)),
        first_token=FirstToken(cold_s=0.2, opened_s=0.15, warm_s=0.01),
        peak_memory_bytes=123_000_000,
        read=Read(
            target_bytes=3_000_000, drafter_bytes=600_000, kv_bytes=1_000, bandwidth=2e10, limit_tokens_per_s=6_664.4
        ),
        predictions=(
            Prediction(domain="all", drafter="none", drafts=0, held_out=False, predicted=101, measured=100, error=0.01),
            Prediction(domain="all", drafter="mtp", drafts=2, held_out=True, predicted=103, measured=110, error=-0.06),
            Prediction(domain="code", drafter="mtp", drafts=2, held_out=True, predicted=103, measured=100, error=0.03),
        ),
        parity=Parity(max_error=1e-3, argmax_agreement=0.98, kl=1e-2),
        profile=read_profile(GOLDEN),
    )


@pytest.fixture
def page(results):
    imports = Imports(source="x", rows=(Imported(tool="vLLM", model="m", what="bench", tokens_per_s=3.0),))
    return report([results], [imports], reported())


def test_the_page_needs_nothing_from_anywhere(page):
    text = page.html()
    assert not re.findall(r"""(?:src|href)\s*=\s*["'](?!data:text/csv)[^"']*""", text)
    assert "<script" not in text
    assert "url(" not in text
    assert "@import" not in text


def test_names_of_domains_cannot_break_the_page(page):
    text = page.html()
    assert "<en>" not in text
    assert "&lt;en&gt; &amp; more" in text


def test_every_table_exports_the_rows_that_it_shows(page):
    links = re.findall(r'href="data:text/csv;charset=utf-8,([^"]*)"', page.html())
    tables = [table for section in page.sections for table in section.tables]
    assert len(links) == len(tables) >= 7
    for link, table in zip(links, tables, strict=True):
        rows = list(csv.reader(io.StringIO(unquote(html.unescape(link)))))
        assert rows == [list(table.columns), *map(list, table.rows)]


def test_markdown_and_json_hold_the_same_tables(page):
    tables = [table for section in page.sections for table in section.tables]
    kept = json.loads(page.json())["tables"]
    assert [table["title"] for table in kept] == [table.title for table in tables]
    for table in tables:
        for row in table.rows:
            assert f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" in page.markdown()


def test_what_others_report_is_marked_wherever_it_stands(page):
    (table,) = [table for section in page.sections for table in section.tables if table.title == "Speeds by device"]
    assert all(row[1].startswith("reported: ") for row in table.rows)


def test_a_speed_that_differs_shows_in_the_summary(results):
    tiles = dict((name, value) for name, value, _ in report([results], [], []).sections[0].tiles)
    assert tiles["same tokens"] == "yes"
    assert tiles["best draft length"] == "4"
    slow = results.model_copy(
        update={"points": tuple(p for p in results.points if p.drafts in (0, 1)), "identical": False}
    )
    tiles = dict((name, value) for name, value, _ in report([slow], [], []).sections[0].tiles)
    assert tiles["same tokens"] == "NO"


def test_results_are_read_back_and_others_refused(results, tmp_path):
    path = tmp_path / "r.json"
    path.write_text(results.dump())
    assert read_results(path) == results
    assert read_results(GOLDEN) == read_profile(GOLDEN)
    for text, says in (('{"kind": "cake"}', "its kind is 'cake'"), ("[1]", "is no result"), ("{", "is no result")):
        path.write_text(text)
        with pytest.raises(PocketdraftError, match=says):
            read_results(path)


def test_the_page_and_its_two_companions_are_written(page, tmp_path):
    written = page.write(tmp_path / "r.html")
    assert [path.name for path in written] == ["r.html", "r.md", "r.json"]
    with pytest.raises(PocketdraftError, match=r"--out is .*r.txt, the report is a page; give r.html"):
        page.write(tmp_path / "r.txt")
    with pytest.raises(PocketdraftError, match="is no folder"):
        page.write(tmp_path / "none" / "r.html")


def test_what_a_report_is_made_of_is_not_written_over(page, results, tmp_path):
    made_of = tmp_path / "r.json"
    made_of.write_text(results.dump())
    with pytest.raises(PocketdraftError, match=r"would write over .*r.json, which it is made of"):
        page.write(tmp_path / "r.html", [made_of])
    assert read_results(made_of) == results
    assert [path.name for path in tmp_path.iterdir()] == ["r.json"]


def test_bundles_side_by_side_show_the_best_of_all_drafters(results):
    lookup = [p.model_copy(update={"drafter": "prompt_lookup", "tokens_per_s": 999.0}) for p in results.points]
    lookup = [p.model_copy(update={"ratio": p.ratio.model_copy(update={"value": 9.0})}) for p in lookup if p.ratio]
    both = results.model_copy(update={"points": (*results.points, *lookup)})
    (table,) = [t for section in report([both], [], []).sections for t in section.tables if t.title == "Bundles"]
    row = dict(zip(table.columns, table.rows[0], strict=True))
    assert row["accepted"].endswith("prompt_lookup")
    assert row["best/s"] == "999"


def test_lines_of_one_colour_differ_in_the_legend_too():
    svg = lines([Line("a", [(0, 1.0)]), Line("b", [(0, 2.0)], dashed=True)], "x", "y")
    legend = svg[svg.index('class="legend"') :]
    assert legend.count("dashed") == 1
    assert legend.index("dashed") > legend.index(">a<")


def test_the_interval_holds_the_median_and_shrinks_where_prompts_agree():
    random = np.random.default_rng(0)
    plain = random.uniform(90, 110, 64)
    noisy = ratio(plain, plain * random.uniform(0.5, 2.5, 64))
    calm = ratio(plain, plain * 1.3)
    assert noisy.low < noisy.value < noisy.high
    assert (calm.low, calm.value, calm.high) == pytest.approx((1.3, 1.3, 1.3))


def test_charts_place_every_value_within_their_frame():
    svg = lines([Line("a", [(0, 1.0), (8, 3.0)], [(0.5, 1.5), (2.0, 4.0)])], "x", "y", baseline=1.0)
    svg += stacked([("off", {"draft": 0.0, "verify": 3.0}), ("4", {"draft": 5.0, "verify": 3.0})], "x", "y")
    svg += heat(["code"], ["1", "2"], [[1.0, None]], "label")
    places = [float(value) for value in re.findall(r'(?:cx|cy|x|y)="([-\d.]+)"', svg)]
    assert min(places) >= 0
    assert max(places) <= 640
    assert svg.count("<rect") == 5


@pytest.mark.browser
@pytest.mark.skipif(BROWSER is None, reason="no Chromium; apt-get install chromium")
@pytest.mark.parametrize(
    ("name", "width", "dark"), [("light", 1200, False), ("dark", 1200, True), ("narrow", 500, False)]
)
def test_a_browser_shows_it_light_dark_and_narrow(page, tmp_path, name, width, dark):
    image = pytest.importorskip("PIL.Image")
    page.write(tmp_path / "r.html")
    picture = tmp_path / f"{name}.png"
    scheme = ["--blink-settings=preferredColorScheme=0"] if dark else []
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", *scheme]
    where = [f"--window-size={width},2400", f"--screenshot={picture}", (tmp_path / "r.html").as_uri()]
    subprocess.run([*command, *where], check=True, capture_output=True, timeout=120)
    pixels = np.asarray(image.open(picture).convert("RGB"), np.float64)
    assert pixels.shape == (2400, width, 3)
    ground = pixels[:, :4].mean()  # the page's edge
    assert ground < 60 if dark else ground > 230
    assert (np.abs(pixels[:, -8:] - pixels[0, 0]) < 2).all(), "something runs over the page's right edge"
    assert pixels.std() > 10, "the page is blank"
    colours = (pixels.max(-1) - pixels.min(-1) > 60).mean()
    assert colours > 0.005, "the charts have no colour"
