"""Answers: what is written can be read, and what cannot be read is counted, never guessed."""

import numpy as np
import pytest

from overlays.domains.driving.answers import format_pairs, question, read_answer


def test_the_question_names_rate_and_number_of_pairs_and_tells_the_past_where_asked():
    asked = question(30, 4)
    assert asked.startswith("Given this 1-second, 30 FPS driving clip, output exactly 4 pairs of (velocity in m/s, ")
    assert asked.endswith("No prose, just the list.")
    assert question(29.97, 30, ([1.0, 2.0], [0.0, -0.001])).endswith(
        "just the list. The last second was [(1.00, 0.00000), (2.00, -0.00100)].")


def test_written_pairs_keep_sign_and_five_decimals_of_curvature():
    v, k = [12.3, 0.0, -1.25], [0.00123, -0.00001, -0.0000004]
    text = format_pairs(v, k)
    assert text == "[(12.30, 0.00123), (0.00, -0.00001), (-1.25, 0.00000)]"
    assert np.allclose(read_answer(text, 3).pairs, np.array([v, k]).T, atol=5e-6)


def test_a_highway_is_not_all_zeros():
    k = np.random.default_rng(0).uniform(-0.0013, 0.0013, 30)
    read = read_answer(format_pairs(np.full(30, 30.0), k), 30).pairs
    assert np.abs(read[:, 1] - k).max() <= 5.1e-6 and (read[:, 1] != 0).mean() > 0.95


@pytest.mark.parametrize("v, k", (([1.0], [0.1, 0.2]), ([], []), ([float("nan")], [0.0]), ([1.0], [float("inf")])))
def test_what_is_no_motion_is_not_written(v, k):
    with pytest.raises(ValueError):
        format_pairs(v, k)


@pytest.mark.parametrize("text, pairs", (
    ("[(1.5e1, -3e-4), (1E+1, 2.5E-3)]", [(15, -3e-4), (10, 2.5e-3)]),
    ("Sure! (velocity, curvature): [(+12, .5), (-3., -0.1)] I hope that helps (really).", [(12, 0.5), (-3, -0.1)]),
    ("[[12.3, 0.001], [12.4, -0.002]]", [(12.3, 0.001), (12.4, -0.002)]),
    ("[(12.3,\n 0.001 ),( 12.4 ,\u22120.002)]", [(12.3, 0.001), (12.4, -0.002)]),
    ("[(12.3, 1e\u20133); (12.4, \u20130.002)]", [(12.3, 0.001), (12.4, -0.002)]),
    ("In 1 s (0.5, 1.0): [(12.3, 0.001), (12.4, -0.002)]", [(12.3, 0.001), (12.4, -0.002)]),
    ("<think>(3, 0.1)</think>[(12.3, 0.001), (12.4, -0.002)] for frames (1, 2).", [(12.3, 0.001), (12.4, -0.002)]),
))
def test_signs_exponents_brackets_and_words_around_are_taken(text, pairs):
    answer = read_answer(text, 2)
    assert answer.status == "whole" and answer.parsed and answer.pairs.tolist() == [list(pair) for pair in pairs]


def test_too_few_pairs_are_partial_and_the_last_is_held():
    answer = read_answer("[(1.0, 0.1), (2.0, 0.2), (3.0, 0.", 4)
    assert (answer.status, answer.given, answer.parsed) == ("partial", 2, False)
    assert answer.pairs.tolist() == [[1.0, 0.1], [2.0, 0.2], [2.0, 0.2], [2.0, 0.2]]


def test_too_many_pairs_are_cut():
    answer = read_answer("[(1, 0), (2, 0), (3, 0)]", 2)
    assert (answer.status, answer.given, answer.parsed) == ("extra", 3, True) and len(answer.pairs) == 2


def test_a_broken_pair_ends_the_reading_so_that_no_pair_moves_in_time():
    answer = read_answer("[(1.0, 0.1), (2.0; 0.2), (3.0, 0.3)]", 3)
    assert (answer.status, answer.given) == ("partial", 1) and answer.pairs[:, 0].tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("first", ("(nan, 0.1)", "(1.0; 0.1)", "(1.0 m/s, 0.1)", "(?, ?)", "(1e9, 0)"))
def test_a_broken_first_pair_does_not_shift_the_others(first):
    answer = read_answer(f"At (1, 2): [{first}, (2.0, 0.2), (3.0, 0.3)]", 3)
    assert (answer.status, answer.given) == ("unreadable", 0)


@pytest.mark.parametrize("text", ("", "I cannot tell.", "(fast, left)", "[(nan, 0.1)]", "12.3, 0.001", "[(1e9, 0.0)]",
                                  "[(12, 90)]", "(1, 2, 3)", "[(1.2.3, 0.1)]"))
def test_what_holds_no_pair_is_unreadable(text):
    answer = read_answer(text, 2)
    assert (answer.pairs, answer.status, answer.given) == (None, "unreadable", 0) and read_answer(text, 2).pairs is None
