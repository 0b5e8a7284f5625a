"""Answers of an interrupted job are there for the next run of the same job, and for no other."""

from overlays.answers import Answers


def test_what_was_added_before_an_interruption_is_there_for_the_same_job(tmp_path):
    output = tmp_path / "new" / "predictions.jsonl"
    try:
        with Answers(output, "job") as answers:
            answers.add([("a", "yes"), (3, [["x", "\ud800"]])])
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    assert Answers(output, "job") == {"a": "yes", 3: [["x", "\ud800"]]} and Answers(output, "other") == {}
    with Answers(output, "job") as answers:
        answers.add([("b", "no")])
    assert list(Answers(output, "job")) == ["a", 3, "b"]
    answers.remove()
    assert not list(output.parent.iterdir())


def test_damaged_lines_are_left_out_and_not_written_again(tmp_path):
    output = tmp_path / "p.jsonl"
    with Answers(output, "job") as answers:
        answers.add([("a", "yes")])
    with answers.file.open("ab") as stream:
        stream.write(b'not JSON\n[["list"], "key"]\n["b", "cut sh')
    with Answers(output, "job") as answers:
        answers.add([("c", "no")])
    assert answers.file.read_text().splitlines() == ['{"job": "job"}', '["a", "yes"]', '["c", "no"]']
