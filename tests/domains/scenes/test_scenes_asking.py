"""Answers of the sample's questions on a room laid out by hand."""

from collections import Counter

import numpy as np
import pytest

from overlays.domains.scenes.question_files import question_type, task_of
from overlays.samples.scenes import asking, rooms


def thing(kind, colour, x, y, z=0.4, side=0.6):
    half = side / 2
    return rooms.Thing(kind, colour, (x - half, y - half, z - half), (x + half, y + half, z + half))


# From above, north up: red box at the west wall, blue sofa in the middle, green box north, yellow table south
ROOM = rooms.Room((2.5, 2.5), 2.8, (
    thing("box", "red", -2.1, 0.0, z=0.3), thing("sofa", "blue", 0.0, 0.0), thing("box", "green", 0.5, 2.0, z=2.2),
    thing("table", "yellow", 0.9, -1.4)), (), np.zeros((6, 3)), np.zeros(3))


def answers(kind):
    return {(asked.situation + " " + asked.question).strip(): asked.answer for asked in asking.ASK[kind](ROOM)}


def test_what_questions():
    assert answers("colour") == {"What colour is the sofa?": "blue", "What colour is the table?": "yellow"}
    assert answers("count") == {"How many boxes are in the room?": "2"}
    assert answers("kind")["What is the green thing?"] == "box"


def test_walls_are_named_by_the_compass_and_only_where_it_is_clear():
    found = answers("wall")
    assert found["Which wall is nearest to the red box?"] == "west"
    assert found["Which wall is nearest to the green box?"] == "north"
    assert not any("blue sofa" in question for question in found)  # in the middle


def test_heights_of_tops():
    found = answers("height")  # tops at 0.6, 0.7, 2.5 and 0.7 m
    assert found == {"How high above the floor is the top of the red box?": "0.5",
                     "How high above the floor is the top of the green box?": "2"}


def test_lengths_go_to_the_nearest_power_of_two_and_only_where_that_is_clear():
    assert [asking.nearest(metres) for metres in (0.4, 0.5, 0.65, 0.72, 1.3, 1.4, 3.1, 8.0)] == [
        "0.5", "0.5", "0.5", None, "1", None, "4", "8"]
    assert [asking.nearest(metres) for metres in (0.0, 0.2, 15.0)] == [None, None, None]


def test_a_larger_room_has_the_same_questions_and_other_lengths():
    large = ROOM.scaled(2.0)
    for kind in ("wall", "nearer", "side", "colour", "kind", "count"):
        assert asking.ASK[kind](large) == asking.ASK[kind](ROOM)
    assert {asked.question: float(asked.answer) for asked in asking.ASK["height"](large)} == {
        question: 2 * float(answer) for question, answer in answers("height").items()}


def test_nearer_is_by_distance_on_the_plan_whatever_the_order_of_naming():
    found = answers("nearer")
    assert found["Which is nearer to the red box, the blue sofa or the green box?"] == "blue sofa"
    assert found["Which is nearer to the red box, the green box or the blue sofa?"] == "blue sofa"


def test_left_and_right_as_seen_by_someone_standing_there():
    found = answers("side")
    # From the red box (west) towards the sofa (east), north is to the left.
    where = "I stand at the red box and face the blue sofa."
    assert found[f"{where} Is the green box on my left or on my right?"] == "left"
    assert found[f"{where} Is the yellow table on my left or on my right?"] == "right"
    assert asking.bearing(ROOM.things[0], ROOM.things[1], ROOM.things[2]) == pytest.approx(
        np.degrees(np.arctan2(2.0, 2.6)))


def test_distance_is_that_on_the_plan():
    assert answers("distance")["How many metres is it from the red box to the blue sofa?"] == "2"


def test_drawn_questions_are_even_enough_that_guessing_stays_low():
    counts = {kind: Counter() for kind in asking.ASK}
    for seed in range(150):
        rng = np.random.default_rng(seed)
        room = rooms.build_room(rng).scaled(rng.choice(rooms.SCALES))
        for asked in asking.ask(room, rng, dict.fromkeys(asking.ASK, 1)):
            counts[asked.kind][asked.answer] += 1
    share = {kind: max(tally.values()) / sum(tally.values()) for kind, tally in counts.items()}
    assert share["wall"] < 0.4 and share["height"] < 0.5 and share["count"] < 0.6 and share["colour"] < 0.4
    assert share["nearer"] < 0.3 and share["side"] < 0.6 and share["distance"] < 0.5


def test_each_kind_of_question_is_recognised_by_its_words():
    expected = {"colour": "colour", "kind": "object", "count": "count", "wall": "place", "height": "height",
                "nearer": "nearest", "side": "direction", "distance": "distance"}
    for kind, name in expected.items():
        asked = asking.ASK[kind](ROOM)[0]
        assert question_type(asked.question) == name
        assert task_of(name) == ("what" if kind in ("colour", "kind", "count") else "where")
