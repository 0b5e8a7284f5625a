"""A command that is killed before any change of a file and started again ends as if nothing had happened."""

import pytest
import torch

from tests.robustness import cases, kills


@pytest.fixture(autouse=True)
def one_thread():
    """A fork of a process that computes in several threads would wait for those for ever."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def chosen(place, *names):
    return [case for case in cases.all_cases(place) if case.name in names]


@pytest.mark.parametrize(("name", "shares"), [
    ("sft-continued", (0.97,)), ("prepare-again", (0.5, 0.99)),  # the first in the swap of the final model
])
def test_a_few_kills(tmp_path, name, shares):
    harness = kills.Harness(*chosen(tmp_path, name), tmp_path)
    for share in shares:
        assert not harness.kill(round(share * harness.changes)).problem


def test_the_harness_sees_what_a_kill_leaves(tmp_path):
    def careless(folder):
        (folder / "temporary").write_text("half")
        (folder / "temporary").rename(folder / f"result{len(list(folder.iterdir()))}")

    harness = kills.Harness(kills.Case("careless", careless), tmp_path)
    assert harness.changes == 2  # open and rename
    assert harness.kill(2).problem == ""
    (harness.initial / "old").touch()
    assert harness.kill(1).problem == "old is left over"


@pytest.mark.slow
def test_kills_of_all_entry_points(tmp_path):
    found = kills.campaign(cases.all_cases(tmp_path), tmp_path, kills=100, seed=0)
    assert len(found) >= 90 and not [row for row in found if row.problem]
