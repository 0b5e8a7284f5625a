"""Names of data sets, and what a wrong one says."""

import json

import pytest

from overlays import registry
from overlays.errors import UserError


@pytest.fixture
def root(tmp_path):
    """A repository with one prepared domain and one data set of the user's own."""
    prepared = tmp_path / "data" / "prepared" / "cuprite"
    prepared.mkdir(parents=True)
    for split in ("train", "val"):
        (prepared / f"{split}.jsonl").write_text("{}\n")
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "a.json").write_text("[]")
    (tmp_path / "data" / "datasets.json").write_text(
        "\ufeff" + json.dumps({"mine": {"annotation_path": "own/a.json", "data_path": ""}}), encoding="utf-8"
    )
    return tmp_path


def test_names_files_and_percentages_in_one_list(root):
    file = root / "own" / "a.json"
    sets = registry.resolve(f"cuprite_train, mine%30,{file}%2.5", root)
    assert [(s.name, s.rate) for s in sets] == [("cuprite_train", 1.0), ("mine", 0.3), (str(file), 0.025)]
    assert sets[0].annotation == root / "data/prepared/cuprite/train.jsonl"
    assert sets[0].media_root == sets[0].annotation.parent
    assert sets[1].annotation == file and sets[1].media_root == file.parent
    elsewhere, = registry.resolve(f"{file}@{root}%50", root)
    assert (elsewhere.annotation, elsewhere.media_root, elsewhere.rate) == (file, root, 0.5)


def test_the_splits_of_every_domain_are_known_before_they_are_prepared(tmp_path):
    from overlays.domains import DOMAINS

    known = registry.known(tmp_path)
    assert DOMAINS and {f"{domain}_{split}" for domain in DOMAINS for split in registry.SPLITS} == {*known}
    for domain in DOMAINS:
        with pytest.raises(UserError, match=f"{domain}_val is not prepared: .* first"):
            registry.resolve(f"{domain}_val", tmp_path)


@pytest.mark.parametrize("names, said", [
    ("cuprite_trian", "did you mean cuprite_train"),
    ("cuprite_test", "run python -m overlays.prepare cuprite"),
    ("nowhere/a.jsonl", "there is no annotation file nowhere/a.jsonl"),
    ("mine%0", "above 0"),
    ("mine%101", "at most 100"),
    (" , ", "no data set is named"),
])
def test_a_wrong_name_says_what_is_meant(root, names, said):
    with pytest.raises(UserError, match=said):
        registry.resolve(names, root)


def test_a_damaged_list_of_own_sets_is_named(root):
    (root / "data" / "datasets.json").write_text('{"mine": {"data_path": ""}}')
    with pytest.raises(UserError, match="datasets.json is damaged: .* write"):
        registry.resolve("mine", root)
