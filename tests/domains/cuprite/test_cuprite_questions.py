"""Answers are right for a tile's shares, and every answer is read back as what it says."""

import itertools
import random
import time

import pytest

from overlays.domains.cuprite import questions as q

IMAGES = ["tiles/t_clay.png", "tiles/t_iron.png", "tiles/t_natural.png"]


def some_shares(seed: int) -> dict[str, float]:
    rng = random.Random(seed)
    names = rng.sample(q.MINERALS, rng.randint(0, 5))
    weights = [rng.random() for _ in names]
    total = sum(weights) * rng.uniform(1, 4) or 1.0
    return {name: weight / total for name, weight in zip(names, weights, strict=True)}


@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_alteration_answer_is_read_back(language):
    for altered, step in itertools.product([True, False], range(21)):
        text = q.alteration_answer(altered, step / 20, language)
        assert q.parse_alteration(text) == (altered, step / 20), text


@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_set_of_minerals_is_read_back(language):
    for size in range(len(q.MINERALS) + 1):
        for names in itertools.combinations(q.MINERALS, size):
            assert q.parse_minerals(q.minerals_answer(names, language)) == set(names)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_analysis_is_read_back(language):
    for seed, (zone, level) in enumerate(itertools.product(q.ZONES, q.POTENTIALS)):
        for round_ in range(20):
            shares = {name: max(share, 0.05) for name, share in some_shares(100 * seed + round_).items()}
            text = q.analysis_answer(zone, shares, level, language)
            rounded = {name: q.percent(share) / 100 for name, share in shares.items()}
            assert q.parse_analysis(text) == {"zone": zone, "minerals": rounded, "potential": level}, text


@pytest.mark.parametrize("language", ["en", "zh"])
def test_records_of_a_tile_say_what_its_shares_say(language):
    for seed in range(50):
        shares = some_shares(seed)
        records = q.tile_records("t7", IMAGES, shares | {"background": 0.3}, language, random.Random(seed), "train")
        assert [record["task"] for record in records] == list(q.TASKS)
        yes_no, listed, analysis = records
        altered, share = q.parse_alteration(yes_no["conversations"][1]["value"])
        copper = sum(value for name, value in shares.items() if name in q.COPPER)
        assert altered == (copper > 0.10) == bool(yes_no["target"]["alteration"])
        assert abs(share - copper) <= 0.025 + 1e-9
        expected = {name for name, value in shares.items() if value >= 0.05}
        assert q.parse_minerals(listed["conversations"][1]["value"]) == expected
        assert set(q.parse_analysis(analysis["conversations"][1]["value"])["minerals"]) == expected
        assert "background" not in listed["target"]


def test_minerals_come_largest_first_and_equal_shares_in_class_order():
    shares = {"epidote": 0.2, "alunite": 0.1, "kaolinite": 0.3, "chlorite": 0.1}
    assert q.present(shares, 0.05) == ["kaolinite", "epidote", "alunite", "chlorite"]


@pytest.mark.parametrize(("shares", "zone"), [
    ({"alunite": 0.1, "kaolinite": 0.3, "muscovite": 0.3}, "advanced argillic"),
    ({"kaolinite": 0.3, "muscovite": 0.2}, "argillic"),
    ({"kaolinite": 0.2, "muscovite": 0.3, "alunite": 0.02}, "phyllic"),
    ({"calcite": 0.4, "chlorite": 0.1, "muscovite": 0.3}, "propylitic"),
    ({"calcite": 0.9}, "none"),
    ({"calcite": 0.5, "white mica": 0.5}, "none"),
    ({"kaolinite": 0.3, "dickite": 0.1, "muscovite": 0.3}, "advanced argillic"),
    ({"pyrophyllite": 0.2}, "advanced argillic"),
    ({"buddingtonite": 0.5}, "none"),
    ({}, "none"),
])
def test_zone_follows_the_dominant_minerals(shares, zone):
    assert q.zone(shares, 0.05) == zone


@pytest.mark.parametrize(("share", "level"), [(0.0, "low"), (0.10, "low"), (0.11, "moderate"), (0.5, "high")])
def test_copper_potential_is_graded_by_cover(share, level):
    assert q.potential(share, 0.10) == level


def test_percent_rounds_to_fives():
    assert [q.percent(x) for x in (0, 0.024, 0.025, 0.05, 0.974, 0.975, 1)] == [0, 0, 5, 5, 95, 100, 100]


@pytest.mark.parametrize("language", ["en", "zh"])
def test_questions_vary_and_are_the_same_for_the_same_seed(language):
    for task in q.TASKS:
        phrasings = q.QUESTIONS[task, language]
        assert len(set(phrasings)) >= 5
        rng = random.Random(0)
        assert len({q.question(task, language, rng) for _ in range(200)}) == len(phrasings)
    first, second = ([q.tile_records("t", IMAGES, {}, language, random.Random(5), "val")] for _ in range(2))
    assert first == second


def test_ids_carry_tile_task_and_language():
    ids = [r["id"] for lang in ("en", "zh") for r in q.tile_records("r3c4", IMAGES, {}, lang, random.Random(0), "test")]
    assert ids == ["r3c4-alteration", "r3c4-minerals", "r3c4-analysis",
                   "r3c4-alteration-zh", "r3c4-minerals-zh", "r3c4-analysis-zh"]


@pytest.mark.parametrize("images", [IMAGES, IMAGES[:1], ["photo.png", "other.png"]])
@pytest.mark.parametrize("language", ["en", "zh"])
def test_one_placeholder_per_image_introduced_in_order(images, language):
    value = q.tile_records("t", images, {}, language, random.Random(0), "train")[0]["conversations"][0]["value"]
    assert value.count("<image>") == len(images)
    named = [value.index(text[language == "zh"]) for name, text in q.COMPOSITES.items()
             if f"tiles/t_{name}.png" in images]
    assert named == sorted(named) and len(named) == sum("tiles/t_" in image for image in images)


def test_thresholds_reach_the_question_and_the_answer():
    records = q.tile_records("t", IMAGES, {"alunite": 0.15}, "en", random.Random(0), "train", 0.20, 0.30)
    assert "20 %" in records[0]["conversations"][0]["value"] and "30 %" in records[1]["conversations"][0]["value"]
    assert records[0]["conversations"][1]["value"].startswith("No.")
    assert records[1]["conversations"][1]["value"] == "none"


@pytest.mark.parametrize(("text", "expected"), [
    ("YES — it's an alteration zone, roughly 40%", (True, 0.40)),
    ("Answer: yes, 12.5 percent of the tile", (True, 0.125)),
    ("No, only about ５ ％.", (False, 0.05)),
    ("yes", (True, None)),
    ("The tile is not altered.", (False, None)),
    ("There is no alteration here (0 %).", (False, 0.0)),
    ("This is an alteration zone with 30-40 % cover", (True, 0.35)),
    ("This tile is altered.", (True, None)),
    ("Yes. There is no doubt: 60 %", (True, 0.60)),
    ("是，约占４０％", (True, 0.40)),
    ("否。百分之 5", (False, 0.05)),
    ("不是蚀变带，约 5%", (False, 0.05)),
    ("该图块属于蚀变带，约 30 %", (True, 0.30)),
    ("该图块没有蚀变", (False, None)),
    ("Alteration minerals exceed 10 %: 45 %", (True, 0.45)),
    ("Yes, more than 40 %", (True, 0.40)),
    ("未超过 10 %，约 5 %", (False, 0.05)),
    ("Yes, alteration covers 15%. No vegetation.", (True, 0.15)),
    ("not sure", (None, None)),
    ("Yes. No. Yes.", (None, None)),
    ("About 340 % of it", (None, None)),
    ("Yes, 1000 %", (True, None)),
    ("rocks", (None, None)),
    ("", (None, None)),
])
def test_free_alteration_answers(text, expected):
    assert q.parse_alteration(text) == expected


@pytest.mark.parametrize(("text", "expected"), [
    ("Alunite and KAOLINITE.", {"alunite", "kaolinite"}),
    ("The tile shows sericite, smectite (20 %), and kaolin", {"muscovite", "montmorillonite", "kaolinite"}),
    ("alunite, no kaolinite", {"alunite"}),
    ("No alunite or kaolinite, but calcite", {"calcite"}),
    ("alunite is absent; chlorite is present", {"chlorite"}),
    ("Alunite is absent, chlorite dominates", {"chlorite"}),
    ("There is no alunite.", set()),
    ("not only alunite but also epidote", {"alunite", "epidote"}),
    ("alunite 30 %, kaolinite 0 %", {"alunite"}),
    ("alunite without kaolinite", {"alunite"}),
    ("none", set()), ("None.", set()), ("No mineral reaches 5 %: none", set()), ("无", set()), ("没有。", set()),
    ("没有达到 5 % 的矿物", set()),
    ("明矾石，高岭石；绢云母", {"alunite", "kaolinite", "muscovite"}),
    ("以明矾石和高岭土为主，未见绿泥石", {"alunite", "kaolinite"}),
    ("没有明矾石，但有方解石", {"calcite"}),
    ("含alunite与蒙皂石", {"alunite", "montmorillonite"}),
    ("微晶高岭石", {"montmorillonite"}),
    ("Alunite, kaolinite and calcite were not detected.", set()),
    ("1. alunite\n2. kaolinite", {"alunite", "kaolinite"}),
    ("It contains neither alunite nor kaolinite; muscovite is dominant", {"muscovite"}),
    ("none. alunite", None),
    ("jarosite", None), ("alun", None), ("", None), ("a tile of rock", None),
])
def test_free_mineral_lists(text, expected):
    assert q.parse_minerals(text) == expected


@pytest.mark.parametrize(("text", "zone", "minerals", "level"), [
    ("This is advanced argillic alteration with alunite (30 %) and kaolinite. The copper potential is high.",
     "advanced argillic", {"alunite", "kaolinite"}, "high"),
    ("Argillic zone; minerals: smectite 20 %; low copper potential", "argillic", {"montmorillonite"}, "low"),
    ("属于绢云母化，矿物：白云母 40 %。铜矿潜力中等", "phyllic", {"muscovite"}, "moderate"),
    ("Zone: none. Minerals: none. Copper potential: low", "none", set(), "low"),
    ("Sericitic alteration.", "phyllic", None, None),
])
def test_free_analyses(text, zone, minerals, level):
    found = q.parse_analysis(text)
    assert (found["zone"], found["potential"]) == (zone, level)
    assert (None if found["minerals"] is None else set(found["minerals"])) == minerals


def test_an_analysis_of_nothing_is_unreadable():
    assert q.parse_analysis("a nice picture") is None


@pytest.mark.parametrize("piece", ["1", "no ", "potential ", "alunite , , ", "alunite 5 ", "矿物:", "not alter "])
def test_endless_answers_are_read_quickly(piece):
    start = time.perf_counter()
    for parse in (q.parse_alteration, q.parse_minerals, q.parse_analysis):
        parse(piece * 9000)
    assert time.perf_counter() - start < 1
