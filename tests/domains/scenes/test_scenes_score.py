"""Answer cleaning, EM, EM-R and CIDEr-D on cases worked out by hand."""

import math

import pytest

from overlays.domains.scenes.cider import cider
from overlays.domains.scenes.score import clean, majority, matches, score
from overlays.errors import UserError


def row(kind, prediction, *answers, **more):
    return {"id": "x", "question_type": kind, "prediction": prediction, "answers": list(answers), **more}


@pytest.mark.parametrize("answer, cleaned", [
    ("The 2 Chairs.", "two chairs"), ("an  apple, a pear", "apple pear"), ("20", "twenty"), ("21", "21"),
    ("It's red!", "its red"), ("left-hand side", "left hand side"), ("", ""), ("A", ""), ("theatre", "theatre"),
    ("the chair’s leg", "chairs leg"), ("cafe\u0301", "café"), ("１ ﬂoor", "one floor"),
])
def test_cleaning(answer, cleaned):
    assert clean(answer) == cleaned


@pytest.mark.parametrize("prediction, answers, expected", [
    ("Red", ["red"], (True, True)), ("2", ["two"], (True, True)), ("the red box", ["red"], (False, True)),
    ("red", ["dark red"], (False, True)), ("blue", ["red"], (False, False)), ("", ["red"], (False, False)),
    ("the", ["red"], (False, False)), ("sofa", ["couch", "Sofa."], (True, True)),
    ("book shelf", ["bookshelf"], (False, True)),
])
def test_exact_and_relaxed_match(prediction, answers, expected):
    assert matches(prediction, answers) == expected


def test_cider_of_a_perfect_long_answer_is_ten_and_of_one_word_a_quarter():
    references = [[["a", "b", "c", "d"]], [["e", "f", "g", "h"]]]
    assert cider([["a", "b", "c", "d"], ["e", "f", "g", "h"]], references) == pytest.approx([10, 10])
    assert cider([["red"], ["blue"]], [[["red"]], [["green"]]]) == pytest.approx([2.5, 0])


def test_cider_counts_rare_words_clips_repetition_and_punishes_length():
    references = [[["red", "box"]], [["red", "sofa"]], [["blue", "sofa"]]]
    red, box, log3 = math.log(1.5), math.log(3), math.log(3)
    one = (red**2) / (red * math.hypot(red, box)) * math.exp(-1 / 72)  # "red": one word of two, and one too short
    assert cider([["red"], [], []], references)[0] == pytest.approx(10 * one / 4)
    # "box box": its count is clipped to the reference's one; no bigram agrees.
    two = box * min(2 * box, box) / (2 * box * math.hypot(red, box))
    assert cider([["box", "box"], [], []], references)[0] == pytest.approx(10 * two / 4)
    assert log3 == box


def test_cider_takes_the_mean_over_references_and_survives_empty_answers():
    references = [[["red"], ["dark", "blue"]], [["green"]]]
    scores = cider([["red"], []], references)
    assert scores == pytest.approx([1.25, 0.0])


def test_figures_by_task_and_type_beside_the_majority_answer():
    train = [{"question_type": "height", "conversations": [{"from": "human", "value": "?"},
                                                          {"from": "gpt", "value": answer}]}
             for answer in ("low", "low", "high")]
    train.append({"question_types": ["colour", "height"], "conversations": [
        {"from": "human", "value": "?"}, {"from": "gpt", "value": "red"},
        {"from": "human", "value": "?"}, {"from": "gpt", "value": "high"}]})
    rows = [row("height", "high", "high"), row("height", "low", "high"), row("height", "low", "low"),
            row("colour", "the red", "red")]
    metrics = score(rows, train)
    assert (metrics["n"], metrics["n_where"], metrics["n_what"]) == (4, 3, 1)
    assert metrics["em"] == 0.75 and metrics["what_em"] == 1.0 and metrics["where_em"] == pytest.approx(2 / 3, abs=1e-6)
    assert metrics["by_type"]["height"]["n"] == 3 and metrics["by_type"]["height"]["task"] == "where"
    assert metrics["baseline"]["answers"] == {"height": "high", "colour": "red"}  # 2 : 2, the first in the alphabet
    assert metrics["baseline"]["where_em"] == pytest.approx(2 / 3, abs=1e-6)
    assert score(rows)["baseline"] is None


def test_the_baseline_is_given_for_the_types_that_training_has():
    train = [{"question_type": "height", "conversations": [{"from": "human", "value": "?"},
                                                          {"from": "gpt", "value": "low"}]}]
    rows = [row("height", "high", "low"), row("height", "low", "high"), row("colour", "red", "red")]
    baseline = score(rows, train)["baseline"]
    assert baseline["by_type"] == {"height": {"task": "where", "n": 2, "em": 0.5, "em_r": 0.5, "cider": 1.25}}
    assert baseline["where_em"] == 0.5 and baseline["answers"] == {"height": "low"}
    assert baseline["what_em"] is baseline["em"] is baseline["em_r"] is baseline["cider"] is None
    assert score(rows[2:], train)["baseline"] is None


def test_types_and_answers_are_read_from_the_words_where_a_row_lacks_them():
    metrics = score([{"id": "a", "question": "Hint.\nHow many chairs are there?", "answer": "two", "prediction": "2"}])
    assert metrics["by_type"] == {"count": {"task": "what", "n": 1, "em": 1.0, "em_r": 1.0, "cider": 0.0}}
    assert majority([{"conversations": [{"from": "human", "value": "<image>\nWhere is it?"},
                                        {"from": "gpt", "value": "here"}]}]) == {"place": "here"}


def test_a_row_without_truth_is_an_error_not_a_missing_row():
    with pytest.raises(UserError, match="has no true answer"):
        score([{"id": "a", "question": "Where?", "answer": "", "prediction": "here"}])
