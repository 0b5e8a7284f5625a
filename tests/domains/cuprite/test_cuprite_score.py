"""Scores are what one counts by hand, unreadable answers count as wrong, and the majority answer stands beside."""

import copy
import json
import random

import pytest

from overlays.domains.cuprite import questions as q
from overlays.domains.cuprite.score import HEADLINES, majority, right, score
from overlays.errors import UserError


def records(shares: list[dict], language: str = "en", split: str = "test") -> list[dict]:
    return [record for number, tile in enumerate(shares) for record in
            q.tile_records(f"t{number}", ["t_clay.png"], tile, language, random.Random(0), split)]


def rows(recs: list[dict], predict=None) -> list[dict]:
    """Prediction rows; the truth itself unless `predict(record)` says otherwise."""
    out = []
    for record in recs:
        answer = record["conversations"][1]["value"]
        said = predict(record) if predict else answer
        out.append({"id": record["id"], "task": record["task"], "language": record["language"],
                    "question": record["conversations"][0]["value"], "answer": answer, "prediction": said,
                    "target": record["target"], "split": record["split"]})
    return out


TILES = [{"alunite": 0.4, "kaolinite": 0.2}, {"muscovite": 0.3}, {"calcite": 0.6}, {}]


@pytest.mark.parametrize("language", ["en", "zh"])
def test_true_answers_score_perfectly(language):
    metrics = score(rows(records(TILES, language)), records(TILES, language, "train"))
    for name in ("alteration_accuracy", "alteration_f1", "mineral_macro_f1", "mineral_micro_f1", "mineral_exact",
                 "parse_rate", "analysis_zone_accuracy", "analysis_potential_accuracy", "analysis_mineral_macro_f1"):
        assert metrics[name] == 1, name
    assert metrics["share_mae"] == 0
    assert metrics["n"] == 12 and metrics["n_by_task"] == {"alteration": 4, "minerals": 4, "analysis": 4}
    assert metrics["mineral_macro_over"] == ["alunite", "kaolinite", "muscovite", "calcite"]


def test_unreadable_answers_count_as_the_worst_ones():
    metrics = score(rows(records(TILES), lambda record: "???"))
    assert metrics["alteration_accuracy"] == metrics["alteration_f1"] == metrics["parse_rate"] == 0
    assert metrics["mineral_macro_f1"] == metrics["mineral_micro_f1"] == metrics["mineral_exact"] == 0
    assert metrics["share_mae"] == pytest.approx((0.6 + 0.7 + 1 + 1) / 4)
    assert metrics["alteration_confusion"] == {"yes": {"yes": 0, "no": 0, "unparsed": 2},
                                               "no": {"yes": 0, "no": 0, "unparsed": 2}}
    assert metrics["baseline"] is None


def test_an_unreadable_verdict_on_unaltered_ground_lowers_f1():
    said = {"t0-alteration": "Yes, 60 %", "t1-alteration": "Yes, 30 %", "t2-alteration": "gneiss"}
    metrics = score(rows([r for r in records(TILES[:3]) if r["task"] == "alteration"], lambda r: said[r["id"]]))
    assert metrics["alteration_f1"] == pytest.approx(4 / 5)
    assert metrics["mineral_macro_f1"] is None and metrics["n_by_task"]["minerals"] == 0


def test_mineral_metrics_are_those_counted_by_hand():
    said = ["alunite", "muscovite, epidote", "none", "???"]
    listed = [r for r in records(TILES) if r["task"] == "minerals"]
    metrics = score(rows(listed, lambda r: said[int(r["id"][1])]))
    assert metrics["per_mineral"]["alunite"] == {
        "precision": 1, "recall": 1, "f1": 1, "support": 1, "predicted": 1}
    assert metrics["per_mineral"]["epidote"] == {
        "precision": 0, "recall": None, "f1": 0, "support": 0, "predicted": 1}
    assert metrics["mineral_macro_f1"] == pytest.approx((1 + 0 + 1 + 0) / 4)  # epidote is not in the truth
    assert metrics["mineral_micro_f1"] == pytest.approx(2 * 2 / (4 + 3), abs=1e-6)
    assert metrics["mineral_exact"] == 0 and metrics["parse_rate"] == 0.75


def test_share_error_is_against_the_exact_share():
    row = rows(records([{"alunite": 0.34}])[:1], lambda r: "Yes. Alteration minerals cover about 50 % of this tile.")
    assert score(row)["share_mae"] == pytest.approx(0.16)


def test_a_verdict_without_share_is_right_but_not_fully_read():
    metrics = score(rows(records([{"alunite": 0.4}])[:1], lambda r: "yes"))
    assert metrics["alteration_accuracy"] == 1 and metrics["parse_rate"] == 0
    assert metrics["share_unparsed"] == 1 and metrics["share_mae"] == pytest.approx(0.6)


def test_an_analysis_that_lacks_a_part_is_not_fully_read():
    analysis = [r for r in records([{"alunite": 0.4}]) if r["task"] == "analysis"]
    metrics = score(rows(analysis, lambda r: "Zone: advanced argillic. Minerals: alunite 40 %."))
    assert metrics["parse_rate"] == 0 and metrics["analysis_zone_accuracy"] == 1
    assert metrics["analysis_potential_accuracy"] == 0 and metrics["analysis_mineral_micro_f1"] == 1


def test_baseline_is_the_majority_answer_of_the_training_split():
    train = records([{"alunite": 0.5}, {"alunite": 0.3, "calcite": 0.1}, {"alunite": 0.2}, {}], split="train")
    metrics = score(rows(records(TILES)), train)
    assert metrics["baseline"]["answers"]["alteration"] == (True, pytest.approx(0.25))
    assert metrics["baseline"]["answers"]["minerals"] == ["alunite"]
    assert metrics["baseline"]["answers"]["analysis"]["zone"] == "advanced argillic"
    assert metrics["baseline"]["alteration_accuracy"] == 0.5 and metrics["baseline"]["parse_rate"] == 1
    assert metrics["baseline"]["mineral_macro_f1"] == pytest.approx((0.4 + 0 + 0 + 0) / 4, abs=1e-6)
    assert metrics["baseline"]["share_mae"] == pytest.approx((0.35 + 0.05 + 0.25 + 0.25) / 4)
    assert set(HEADLINES) <= set(metrics["baseline"])
    assert metrics["baseline_every_mineral"]["mineral_micro_f1"] == pytest.approx(2 * 2 / (4 + 8), abs=1e-6)


def test_without_a_majority_mineral_the_baseline_is_the_most_frequent_list():
    train = records([{"alunite": 0.5}, {"alunite": 0.5}, {"calcite": 0.5}, {"muscovite": 0.5}, {}], split="train")
    assert majority(train)["minerals"] == {"alunite"}


def test_a_tie_of_verdicts_is_no():
    assert majority(records([{"alunite": 0.5}, {}], split="train"))["alteration"][0] is False


def test_languages_are_reported_apart_and_add_up():
    both = rows(records(TILES)) + rows(records(TILES, "zh"), lambda r: "？")
    metrics = score(both, records(TILES, split="train"))
    assert metrics["languages"]["en"]["parse_rate"] == 1 and metrics["languages"]["zh"]["parse_rate"] == 0
    assert metrics["n"] == sum(part["n"] for part in metrics["languages"].values()) == 24


def test_scoring_is_pure_and_gives_json():
    given, train = rows(records(TILES)), records(TILES, split="train")
    before = copy.deepcopy((given, train))
    assert json.loads(json.dumps(score(given, train))) == json.loads(json.dumps(score(given, train)))
    assert (given, train) == before


def test_no_rows_give_no_metrics():
    metrics = score([], records(TILES, split="train"))
    assert metrics["n"] == 0 and all(metrics[name] is None for name in HEADLINES)


@pytest.mark.parametrize("change", [{"task": "poetry"}, {"answer": "hm", "target": {}}])
def test_a_row_that_cannot_be_scored_is_named(change):
    row = rows(records(TILES)[:1])[0] | change
    with pytest.raises(UserError, match="t0-alteration"):
        score([row])


@pytest.mark.parametrize(("task", "said", "is_right"), [
    ("alteration", "Yes, about 10 %", True), ("alteration", "no", False), ("alteration", "?", False),
    ("minerals", "kaolinite and alunite", True), ("minerals", "alunite", False), ("minerals", "?", False),
    ("analysis", "Zone: advanced argillic. Minerals: alunite, kaolinite. Copper potential: high.", True),
    ("analysis", "Zone: advanced argillic. Minerals: alunite, kaolinite. Copper potential: low.", False),
    ("analysis", "Zone: advanced argillic. Minerals: alunite, kaolinite.", False),
])
def test_an_answer_is_right_as_a_whole_or_not(task, said, is_right):
    row = next(row for row in rows(records(TILES[:1]), lambda record: said) if row["task"] == task)
    assert right(row) is is_right
