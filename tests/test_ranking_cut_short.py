"""What a training says of itself: where the clock ended it, what the text was worth, and figures that fit the log."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import tiny_options
from test_ranking_metrics import make_sample

from adcascade.records.coded import CodedColumn
from adcascade.reports.interval import Interval
from adcascade.training.stage import StageResult
from ranking.data.dataset import load_dataset
from ranking.evaluation import plots
from ranking.evaluation.evaluate import evaluate
from ranking.evaluation.metrics import at_threshold, top_share
from ranking.evaluation.page import write_page
from ranking.evaluation.report import cut_short_line, evaluation_table, stages_line, text_fit_line
from ranking.evaluation.results import CurvePoint, Slice, TextFit
from ranking.store import open_store
from ranking.training.run import _unfinished, train_and_save
from ranking.training.versions import load_from, warn_of_rows_it_knows


@pytest.fixture(scope="module")
def data(world):
    return load_dataset(world.ads, world.clicks, world.users)


def fit(steps, *, by_clock=False, planned=834):
    return StageResult(steps, 0, 0.5, 0.5, 1.0, planned, by_clock=by_clock)


def test_a_stage_says_why_it_ended():
    assert str(fit(834)) == "all 834 steps"
    assert str(fit(7, by_clock=True)) == "stopped after step 7 of 834, by --max-minutes"
    assert str(fit(300)) == "ended after step 300 of 834, since its loss no longer fell"


def test_text_that_added_nothing_is_not_text_that_was_hardly_trained():
    nothing = TextFit(False, 834, 0, 2000, 0.5916, 0.5916, 834, False)
    hardly = replace(nothing, steps=7, by_clock=True)
    never = replace(hardly, steps=0)
    assert text_fit_line(nothing).startswith("The text added nothing: 834 steps of fine-tuning hardly lowered")
    for one, steps in ((hardly, 7), (never, 0)):
        assert text_fit_line(one).startswith(
            f"The text was trained for {steps} of 834 steps, then --max-minutes ended it"
        )
        assert "added nothing" not in text_fit_line(one)
    assert "were not fine-tuned" in text_fit_line(replace(nothing, steps=0, planned=0))
    helped = replace(hardly, kept_step=5, loss_kept=0.58, reads_text=True)
    assert "from 0.5916 to 0.5800 (step 5 of 7)" in text_fit_line(helped)


def test_what_texts_alone_say_is_told_beside_what_fine_tuning_brought():
    fit = TextFit(False, 0, 0, 2000, 0.59, 0.59, 0, False, prior_ads=1234, prior_gain=Interval(0.93, 0.41, 1.45))
    said = text_fit_line(fit)
    assert "learned from 1,234 ads in closed form, adds 0.930 [0.410, 1.450] to the log-likelihood" in said
    assert "of the validation part. The text" in said
    assert "of the validation part and of the training part, where each row is judged without its fold. The text" in (
        text_fit_line(replace(fit, prior_with_training=True))
    )
    assert said.endswith("not fine-tuned: the model predicts from counters, past events, interests and that.")


def test_a_ranker_that_the_clock_ended_says_so_everywhere(data, tiny_bert, tmp_path):
    options = tiny_options(tiny_bert, max_minutes=0.0)
    report = train_and_save(data, tmp_path, options, which_baselines="none")
    assert set(report.cut_short) == {"behaviour", "text"}
    for stage in ("behaviour", "text"):
        assert re.fullmatch(r"stopped after step \d+ of [\d,]+, by --max-minutes", report.stages[stage])
    store = open_store(tmp_path)
    assert store.manifest(report.version).content
    assert load_from(store, "").spec.stages == report.stages
    folder = store.path(report.version)
    assert json.loads((folder / "report.json").read_text())["stages"] == report.stages
    page = (folder / "report.html").read_text()
    assert "by --max-minutes. How many steps fit depends on how busy the machine is" in page
    assert report.stages["behaviour"] in cut_short_line(report)
    assert report.stages["text"] in stages_line(report.stages)


def test_a_ranker_that_was_not_ended_is_not_warned_of(data, tiny_bert, tmp_path):
    options = tiny_options(tiny_bert, epochs=0, behaviour_min_steps=5, behaviour_epochs=1)
    report = train_and_save(data, tmp_path, options, which_baselines="none")
    assert (report.cut_short, cut_short_line(report)) == ((), "")
    assert list(report.stages) == ["behaviour"]


def test_as_many_are_called_as_are_clicked():
    """A log with a CTR of 2 %, whose probabilities never come near a half."""
    random = np.random.default_rng(0)
    p_click = random.beta(1, 50, 20_000)
    sample = make_sample(p_click, random.random(20_000) < p_click)
    threshold = top_share(sample, 0.02)
    assert (p_click >= threshold).mean() == pytest.approx(0.02, abs=1e-3)
    found = at_threshold(sample, threshold)
    assert found["precision"] > 0.05
    assert found["recall"] > 0.05
    assert at_threshold(sample, 0.5)["recall"] == 0
    counts = make_sample([0.3, 0.2, 0.1], [1, 1, 0], [10, 10, 80])
    assert [top_share(counts, share) for share in (0.05, 0.1, 0.15, 1.0)] == [0.3, 0.3, 0.2, 0.1]
    assert top_share(make_sample([0.25] * 4, [1, 0, 0, 0]), 0.25) == 0.25


def test_intervals_are_over_what_the_log_names(data, world):
    loaded = load_from(open_store(world.model), "")
    nobody = replace(data, log=replace(data.log, user_id=CodedColumn.of([""] * len(data.log), "")))
    some = np.array(data.log.user_id.tolist(), object)
    some[data.split.test[::2]] = ""
    half = replace(data, log=replace(data.log, user_id=CodedColumn.of(some, "")))
    for one, units in ((data, "users"), (nobody, "requests"), (half, "users, and requests of nobody")):
        found = evaluate(one, loaded, which_baselines="none")
        assert found.units == units
        assert f"intervals over {units}. Ranker" in evaluation_table(found, "title").caption
        assert found.threshold_note == f"the highest {one.prior_ctr:.2%}, the CTR of training"
    asked = evaluate(data, loaded, which_baselines="none", threshold=0.7)
    assert (asked.threshold, asked.threshold_note) == (0.7, "as asked for")


def test_the_page_says_over_what_its_intervals_are_and_how_the_threshold_was_chosen(data, world, tmp_path):
    loaded = load_from(open_store(world.model), "")
    nobody = replace(data, log=replace(data.log, user_id=CodedColumn.of([""] * len(data.log), "")))
    found = evaluate(nobody, loaded, which_baselines="none")
    write_page(tmp_path / "page.html", found, "title")
    page = (tmp_path / "page.html").read_text()
    assert "bootstrap intervals over requests." in " ".join(page.split())
    assert "over users" not in page
    assert "the CTR of training" in page


def test_an_ads_file_that_grew_is_no_leak(data, world, tmp_path, caplog):
    more = tmp_path / "ads.jsonl"
    more.write_text(world.ads.read_text() + '{"ad_id": "brand-new", "title": "shown to nobody yet"}\n')
    grown = load_dataset(more, world.clicks, world.users)
    loaded = load_from(open_store(world.model), "")
    warn_of_rows_it_knows(loaded, grown)
    assert caplog.text == ""
    # A killed training of it begins anew all the same: how many ids are learned depends on the catalog.
    assert _unfinished(grown, Path(), tiny_options(world.model)) != _unfinished(data, Path(), tiny_options(world.model))
    other = tmp_path / "other.jsonl"
    other.write_text(world.ads.read_text().replace("offer 1", "another text 1"))
    warn_of_rows_it_knows(loaded, load_dataset(other, world.clicks, world.users))
    assert "did not learn from exactly the rows" in caplog.text


def test_versions_whose_hash_is_of_the_whole_catalog_are_not_suspected(data, world, tmp_path, caplog):
    more = tmp_path / "ads.jsonl"
    more.write_text(world.ads.read_text() + '{"ad_id": "brand-new", "title": "shown to nobody yet"}\n')
    grown = load_dataset(more, world.clicks, world.users)
    assert grown.is_training_of(grown._sha256_with(sorted(grown.ads)))
    assert grown.training_sha256 == data.training_sha256


def slice_of(auc):
    return Slice("ad", "in training", 100, 10, 0.1, auc, 0.5, 0.61)


def test_the_axis_of_a_plot_begins_below_its_least_bar():
    """Of bars that end where the axis begins nothing is seen; ticks stay texts in the page."""
    ticks = [
        float(text)
        for text in re.findall(r">(0\.\d+)</text>", plots.slices_plot("ad", [slice_of(0.42), slice_of(0.7)]))
    ]
    assert min(ticks) == pytest.approx(0.4)
    assert ">0.5" in plots.slices_plot("ad", [slice_of(0.7), slice_of(0.8)])


def test_a_course_of_two_points_says_so():
    points = [CurvePoint("text", step, 0.6, 0.6) for step in (0, 75)]
    assert "validated 2 times only" in plots.loss_plot(points, "text")
    assert "times only" not in plots.loss_plot([*points, CurvePoint("text", 150, 0.6, 0.6)], "text")
