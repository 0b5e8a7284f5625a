"""Messages and training records carry the same, row for row, in every file form."""

import json

import pytest

from overlays.data import records, tables
from overlays.data.convert import convert
from overlays.data.messages import to_messages, to_record
from overlays.errors import UserError

RECORDS = [
    {"id": "a-00030", "video": "clips/a.mp4", "video_start": 30, "video_end": 60, "task": "video_only",
     "future": {"v": [1.5, 2.0], "k": [0.00123, -0.001]}, "low_speed": False, "note": None,
     "conversations": [{"from": "human", "value": "<video>\nHow fast?"},
                       {"from": "gpt", "value": "[(1.50, 0.00123)]"}]},
    {"id": 7, "image": ["x.png", "y.png"], "video": ["z.mp4"],
     "conversations": [{"from": "system", "value": "Be brief."},
                       {"from": "human", "value": "First <image> then <video><image>"}, {"from": "gpt", "value": "ok"},
                       {"from": "human", "value": "语言?"}, {"from": "gpt", "value": ""}]},
    {"conversations": [{"from": "user", "value": "no media"}, {"from": "assistant", "value": "yes"}]},
    {"id": "e", "image": [], "images": ["own.png"], "extra": {}, "target": {"a": 1.0},
     "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a", "weight": 1}]},
]
ROWS = [
    {"messages": [{"role": "user", "content": [{"type": "video", "video": "a.mp4"}, {"type": "text", "text": "What?"}]},
                  {"role": "assistant", "content": [{"type": "text", "text": "That."}]}], "source": "x"},
    {"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]},
    {"messages": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "a"},
                                               {"type": "text", "text": "b"}]},
                  {"role": "assistant", "content": "c"}], "images": ["p.png"], "score": 0.5},
    {"messages": [{"role": "user", "content": "<image>See <image>", "name": "me"},
                  {"role": "assistant", "content": "d"}], "images": ["p.png", "q.png"]},
    {"messages": [{"role": "user", "content": [{"type": "image", "image": "p.png", "max_pixels": 100}]},
                  {"role": "assistant", "content": "e"}]},
    {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], "images": [],
     "videos": None},
    {"messages": [{"role": "user", "content": "<image>q"}, {"role": "assistant", "content": "a"}], "images": "p.png"},
]


def _rows(path):
    return records.read(path, convert=False)


def test_a_record_becomes_messages_in_the_order_of_its_placeholders():
    row = to_messages(RECORDS[1])
    assert row["messages"][0] == {"role": "system", "content": "Be brief."}
    assert row["messages"][1]["content"] == [
        {"type": "text", "text": "First "}, {"type": "image", "image": "x.png"}, {"type": "text", "text": " then "},
        {"type": "video", "video": "z.mp4"}, {"type": "image", "image": "y.png"}]
    assert to_messages(RECORDS[0]) == {
        **{key: RECORDS[0][key] for key in RECORDS[0] if key not in ("video", "conversations")},
        "messages": [{"role": "user", "content": [{"type": "video", "video": "clips/a.mp4"},
                                                  {"type": "text", "text": "\nHow fast?"}]},
                     {"role": "assistant", "content": "[(1.50, 0.00123)]"}]}


def test_messages_become_a_record_that_trains():
    assert to_record(ROWS[1]) == {"conversations": [{"from": "human", "value": "Hello"},
                                                    {"from": "gpt", "value": "Hi"}]}
    for row, value, files in ((ROWS[0], "<video>What?", {"video": "a.mp4"}), (ROWS[2], "<image>ab", {"image": "p.png"}),
                              (ROWS[3], "<image>See <image>", {"image": ["p.png", "q.png"]})):
        record = to_record(row)
        assert record["conversations"][0] == {"from": "human", "value": value}
        assert {key: record[key] for key in ("image", "video") if key in record} == files


@pytest.mark.parametrize("form", ["jsonl", "json", "parquet", ""])
@pytest.mark.parametrize(("given", "there", "back"),
                         [(RECORDS, "messages", "training"), (ROWS, "training", "messages")])
def test_both_ways_give_every_row_back_in_every_form(tmp_path, monkeypatch, form, given, there, back):
    suffix = f".{form}" if form else ""
    monkeypatch.setattr(tables, "WRITTEN", 20)
    monkeypatch.setattr(tables, "BATCH", 8)
    given = given * 12  # several batches
    records.write(tmp_path / f"given{suffix}", given)
    assert list(_rows(tmp_path / f"given{suffix}")) == given
    assert convert(tmp_path / f"given{suffix}", tmp_path / f"there{suffix}") == (len(given), there)
    assert convert(tmp_path / f"there{suffix}", tmp_path / f"back{suffix}", back) == (len(given), back)
    assert list(_rows(tmp_path / f"back{suffix}")) == given


def test_edits_of_the_converted_row_are_not_lost():
    """A row that keeps its first form as well says two things once it is edited: which one counts is the user's."""
    row = to_messages(RECORDS[3])
    row["messages"][1] = {"role": "assistant", "content": "edited"}
    with pytest.raises(UserError, match="record e says one thing in its conversations and another in its messages"):
        to_record(row)
    del row["conversations"], row["image"], row["images"]
    assert to_record(row)["conversations"][1]["value"] == "edited"
    record = to_record(ROWS[2])
    record["conversations"][1]["value"] = "edited"
    with pytest.raises(UserError, match="delete the one that is out of date"):
        to_messages(record)
    del record["messages"], record["images"]
    assert to_messages(record)["messages"][1]["content"] == "edited"


def test_tables_of_others_are_read(tmp_path):
    import datasets

    # Columns of one type: every part has every key, empty where another part has it.
    datasets.Dataset.from_list(ROWS[:1]).to_parquet(str(tmp_path / "other.parquet"))
    datasets.Dataset.from_list(ROWS[:1]).save_to_disk(str(tmp_path / "other"))
    for name in ("other.parquet", "other"):
        assert list(_rows(tmp_path / name)) == ROWS[:1]
        convert(tmp_path / name, tmp_path / "out.jsonl")
        assert json.loads((tmp_path / "out.jsonl").read_text()) == to_record(ROWS[0])


def test_rows_that_cannot_be_converted_are_named_and_nothing_is_written(tmp_path):
    good = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
    cases = (
        ({"messages": [{"role": "tool", "content": "x"}]}, "row 2:.*tool"), ({"messages": []}, "row 2:.*no messages"),
        ({"messages": [{"role": "user", "content": [{"type": "audio", "audio": "x"}]}]}, "row 2:.*audio"),
        ({"messages": [{"role": "user", "content": "<image>"}]}, "row 2:.*no image file left"),
        ({"messages": [{"role": "user", "content": "x"}], "images": ["p.png"]}, "row 2:.*no message shows"),
        ({"messages": [{"role": ["user"], "content": "x"}]}, "row 2:.*none of user"),
        ({"messages": [{"role": "user", "content": [{"type": ["text"]}]}]}, "row 2:.*not text, image or video"),
        ({**good, "images": 3}, "row 2:.*'images' must be a path or a list of paths, not 3"),
        ({**good, "videos": [{"path": "a"}]}, "row 2:.*'videos' must be a path"),
        ({**good, "image": "x.png"}, "row 2:.*names x.png under 'image'.*call the key 'images'"),
    )
    for bad, message in cases:
        records.write(tmp_path / "in.jsonl", [good, bad])
        with pytest.raises(UserError, match=message):
            convert(tmp_path / "in.jsonl", tmp_path / "out.jsonl")
        assert not (tmp_path / "out.jsonl").exists()
    (tmp_path / "in.jsonl").write_text(json.dumps(good).replace('"q"', r'"half \ud800"') + "\n")
    with pytest.raises(UserError, match="row 1: text that is not Unicode.*half"):
        convert(tmp_path / "in.jsonl", tmp_path / "out.jsonl")
    for record, message in (({"id": 1, "conversations": [{"from": "human", "value": "<video>"}]}, "no video file left"),
                            ({"id": 1, "video": "a", "conversations": [{"from": "human", "value": "x"}]}, "names a"),
                            ({"id": 1, "conversations": [{"from": ["human"], "value": "x"}]}, "has a turn"),
                            ({"id": 1, "image": 3, "conversations": []}, "'image' must be a path"),
                            ({"id": 1}, "no conversations")):
        with pytest.raises(UserError, match=message):
            to_messages(record)
    (tmp_path / "empty.jsonl").touch()
    for source, target, message in (("empty.jsonl", "o.jsonl", "holds no row"),
                                    ("no.parquet", "o.jsonl", "there is no annotation file"),
                                    ("in.jsonl", "in.jsonl", "overwritten"), ("in.jsonl", "o.csv", "must end in"),
                                    (".", "o.jsonl", "is no data set")):
        with pytest.raises(UserError, match=message):
            convert(tmp_path / source, tmp_path / target)


@pytest.mark.parametrize("name", ["table.parquet", "table"])
def test_messages_edited_in_a_table_count_and_the_first_form_beside_them_does_not(tmp_path, name):
    import datasets
    import pyarrow.parquet

    records.write(tmp_path / name, ROWS[2:3])  # its row lies in the column extra as a whole
    path = tmp_path / name
    table = pyarrow.parquet.read_table(path) if path.suffix else datasets.load_from_disk(path).data
    rows = table.to_pylist()
    rows[0]["messages"][1]["content"][0]["text"] = "edited"
    edited = datasets.Dataset(pyarrow.Table.from_pylist(rows, table.schema))
    if path.suffix:
        edited.to_parquet(tmp_path / "edited.parquet")
    else:
        edited.save_to_disk(tmp_path / "edited")
    record = next(records.read(tmp_path / name.replace("table", "edited")))
    assert record["conversations"][1] == {"from": "gpt", "value": "edited"}


def test_files_inside_a_table_are_refused_in_one_sentence(tmp_path):
    import pyarrow
    import pyarrow.parquet

    row = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], "thumbnail": b"x"}
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "in.parquet")
    with pytest.raises(UserError, match="row 1: it holds files as bytes"):
        convert(tmp_path / "in.parquet", tmp_path / "out.jsonl")
