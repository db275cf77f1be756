"""The page of a study: what it shows is what was found, literally, and it loads and runs nothing."""

import base64
import html
import math
import re
import xml.etree.ElementTree as xml

import pytest
from fake_runs import HOSTILE, write_run, write_study
from pages import Page, needs_chromium, shown_by_chromium

from jaxformer.ablation.outcome import judge_study
from jaxformer.ablation.study import Study
from jaxformer.ablation.verdict import Word
from jaxformer.experiment.resolution import resolve
from jaxformer.report.figures import PLOTS
from jaxformer.report.findings import collect_findings
from jaxformer.report.formatting import signed
from jaxformer.report.text import decision_table
from jaxformer.report.write import write_report
from jaxformer.statistics.paired_difference import Difference
from jaxformer.statistics.significance import interim_level

pytestmark = pytest.mark.device_free


pytest.importorskip("matplotlib")
pytest.importorskip("networkx")


@pytest.fixture(scope="module")
def page(report):
    return Page((report / "index.html").read_text())


def test_the_numbers_of_the_page_are_those_of_the_comparison(outcome, page, report):
    markdown = html.unescape((report / "report.md").read_text())
    for one in outcome.comparisons:
        if one.difference is None:
            continue
        low, high = one.difference.interval(1 - interim_level(len(one.seeds)))
        shown = [
            f"{signed(one.difference.mean)} ± {one.difference.standard_error:.4f}",
            f"[{signed(low)}, {signed(high)}]",
            f"{one.cost.time_per_token:.3f}" if one.cost.is_timed else "",
            one.verdict.word.value,
            one.verdict.reason.partition("] is ")[2],
        ]
        for text in shown:
            assert text in page.text and text in markdown, (one.variant, text)
        assert list(one.corpora) == ["books", "talks"]
        for corpus in one.corpora.values():
            assert f"{signed(corpus.mean)} ± {corpus.standard_error:.4f}" in page.text
        for task in one.tasks.values():
            assert f"{100 * task.variant:.1f}" in page.text
            gold = task.gold_bits_per_byte
            assert f"{signed(100 * task.accuracy.mean, 1)} ± {100 * task.accuracy.standard_error:.1f}" in page.text
            assert f"{signed(gold.mean, 3)} ± {gold.standard_error:.3f}" in page.text
    hours = sum(run.device_hours for runs in outcome.runs.values() for run in runs)
    assert f"{hours:.2f} of finished runs" in page.text and "2023-11-14" in page.text


def test_a_row_of_the_table_belongs_to_its_variant(outcome, report):
    page = (report / "index.html").read_text()
    table = page[page.index('<table class="decisions">') : page.index("</table>")]
    bodies = [Page(body).text for body in re.findall(r"<tbody[^>]*>(.*?)</tbody>", table, re.DOTALL)]
    names = re.findall(r"<tbody[^>]*>.*?<strong>(.*?)</strong>", table, re.DOTALL)
    assert names == ["root", *(each.name for each in collect_findings(outcome))]
    for body, each in zip(bodies[1:], collect_findings(outcome), strict=True):
        assert each.word.value in body
        if each.difference:
            assert signed(each.difference.mean) in body and f"{each.hours:.2f}" in body
        for path, (before, after) in each.lineage["change"].items():
            assert f"{path}: {before or repr(before)} → {after}" in body


def test_hostile_text_is_shown_literally_and_runs_nothing(page):
    text = " ".join(HOSTILE.split())
    assert page.text.count(text) >= 2, "as a question, and as a source"
    page.assert_nothing_is_loaded_or_run()
    assert "svg" not in page.tags, "a picture is an image, whose file cannot run anything"


def test_each_picture_is_an_image_with_a_text_for_who_cannot_see_it(page):
    sources = [value for name, value in page.attributes if name == "src"]
    texts = [value for name, value in page.attributes if name == "alt"]
    headings = [plot.heading for plot in PLOTS if plot.name != "composition"]  # This study leaves nothing out.
    assert texts == headings and page.tags.count("img") == len(sources) == len(headings)
    for source in sources:
        picture = xml.fromstring(base64.b64decode(source.removeprefix("data:image/svg+xml;base64,"), validate=True))
        assert picture.tag == "{http://www.w3.org/2000/svg}svg"
        for element in picture.iter():
            assert not element.tag.endswith("}script") and not [
                name for name in element.attrib if name.startswith("on")
            ]
            links = [value for name, value in element.attrib.items() if name.endswith("href")]
            assert all(value.startswith(("#", "data:image/png;base64,")) for value in links)


def test_no_two_elements_of_the_page_share_a_name(page):
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))


def test_what_was_not_compared_is_shown_plainly(page, outcome):
    by_name = {each.name: each for each in collect_findings(outcome)}
    assert by_name["later"].word is Word.NOT_COMPARED and "no run of it has ended" in page.text
    assert by_name["deep"].word is Word.REVERT and "seed 0 diverged" in page.text
    table = " ".join(decision_table(outcome).split())
    assert "no run of it has ended" in table and "seed 0 diverged" in table


def test_a_merge_reports_its_interaction(page, outcome):
    found = outcome.interactions["joined"]
    assert f"Interaction: {signed(found.mean)} ± {found.standard_error:.4f}" in page.text


def test_the_readings_at_equal_tokens_and_at_equal_time_are_reported(page, outcome):
    compared = [one for one in outcome.comparisons if one.cost and math.isfinite(one.worth)]
    assert compared
    for one in compared:
        assert f"the parent needs {one.worth:.2f} x the variant's tokens" in page.text
    assert "At equal time: unknown, since the time per token was not measured." in page.text
    (timed,) = (one for one in compared if one.cost.is_timed and one.variant == "swiglu")
    (low, high), worth = timed.cost.time_interval, timed.worth
    assert low < 1.07 < high and f"1.070 [{low:.3f}, {high:.3f}]" in page.text
    assert f"= {worth / 1.07:.2f} x [{worth / high:.2f}, {worth / low:.2f}]" in page.text


@pytest.mark.usefixtures("without_png")
def test_a_study_of_which_only_the_parent_is_finished_is_reported(folder, tmp_path):
    write_run(tmp_path / "runs", resolve("root"), 0, tasks=())
    outcome = judge_study(Study(parent="root", variants=("muon", "joined", "swiglu")), tmp_path / "runs")
    page = Page(write_report(outcome, tmp_path / "report").read_text())
    assert page.text.count("NOT COMPARED") >= 6 and "unknown with one seed" in page.text
    assert "What pairing pays" not in page.text and "nan" not in page.text


@pytest.mark.usefixtures("without_png")
def test_one_seed_without_tasks_and_scores_that_are_not_numbers_are_reported(folder, tmp_path):
    runs = tmp_path / "runs"
    write_study(runs, ("root", "muon"), effects={"muon": -0.05}, seeds=1, tasks=("lambada",), items=20)
    outcome = judge_study(Study(parent="root", variants=("muon",), seeds=1, parent_seeds=1), runs)
    (one,) = outcome.comparisons
    nan = Difference(math.nan, math.nan, math.inf)
    tasks = {name: task._replace(variant=math.nan, accuracy=nan) for name, task in one.tasks.items()}
    assert tasks
    outcome = outcome._replace(comparisons=[one._replace(tasks=tasks)])
    page = Page(write_report(outcome, tmp_path / "report").read_text())
    for text in (
        page.text,
        " ".join(decision_table(outcome).split()),
        " ".join(decision_table(outcome._replace(comparisons=[one._replace(tasks={})])).split()),
    ):
        assert "unknown with one seed of the parent" in text
        assert "the first interim analysis is after 3 seeds" in text and not re.search(r"\bnan\b", text)


@needs_chromium
def test_chromium_shows_the_page_without_a_complaint(report, tmp_path):
    shown = shown_by_chromium(report / "index.html", tmp_path)
    assert html.unescape(shown).count("alert(1)") >= 2 and "<script" not in shown
