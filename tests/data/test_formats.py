"""Rows of other formats: what each becomes, what is refused by name, and where the files of a table are."""

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

from overlays import paths
from overlays.data import embedded, records, tables
from overlays.data.formats import to_record
from overlays.errors import UserError

USER, ASSISTANT = {"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}
TURNS = [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]
CALL = {"name": "zoom", "arguments": {"factor": 2}}
CALLED = [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "", "tool_calls": [CALL]},
          {"from": "tool", "value": "done"}, {"from": "gpt", "value": "A"}]


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "CACHE", tmp_path / "cache")
    return tmp_path / "cache"


def png(color=(10, 200, 30), size=(64, 96)):
    buffer = io.BytesIO()
    Image.new("RGB", size, color).save(buffer, "PNG")
    return buffer.getvalue()


def shown(*names, text="Q"):
    """A human turn with images in front, and its answer."""
    return [{"from": "human", "value": "<image>" * len(names) + "\n" + text}, {"from": "gpt", "value": "A"}]


@pytest.mark.parametrize("row, expected", [
    ({"conversations": TURNS, "system": "S"}, {"conversations": [{"from": "system", "value": "S"}, *TURNS]}),
    ({"conversations": [{"from": "system", "value": "S"}, *TURNS], "system": "S"},
     {"conversations": [{"from": "system", "value": "S"}, *TURNS]}),
    ({"conversations": shown("a"), "images": ["a.png"]}, {"conversations": shown("a"), "image": "a.png"}),
    ({"conversations": [{"role": "user", "content": "Q"}, {"role": "model", "content": "A"}]},
     {"conversations": TURNS}),
    ({"conversations": [{"from": "user", "value": "Q"}, {"from": "bot", "value": "A"}]}, {"conversations": TURNS}),
    ({"messages": [USER, ASSISTANT], "source": "x"}, {"conversations": TURNS, "source": "x"}),
    ({"messages": [{"role": "developer", "content": "S"}, USER, ASSISTANT]},
     {"conversations": [{"from": "system", "value": "S"}, *TURNS]}),
    ({"messages": [USER, ASSISTANT], "images": ["a.png", "b.png"]},
     {"conversations": shown("a", "b"), "image": ["a.png", "b.png"]}),
    ({"messages": [{"role": "user", "content": [
        {"type": "input_text", "text": "one "}, {"type": "image_url", "image_url": {"url": "a.png"}},
        {"type": "text", "text": "two"}, {"type": "image"}]}, ASSISTANT], "images": [{"path": "b.png", "bytes": None}]},
     {"conversations": [{"from": "human", "value": "one <image>two<image>"}, TURNS[1]], "image": ["a.png", "b.png"]}),
    ({"messages": [{"role": "user", "content": "<video>Q"}, ASSISTANT], "videos": ["a.mp4"]},
     {"conversations": [{"from": "human", "value": "<video>Q"}, TURNS[1]], "video": "a.mp4"}),
    ({"messages": [USER, {**ASSISTANT, "reasoning_content": "hm"}]},
     {"conversations": [TURNS[0], {"from": "gpt", "value": "<think>\nhm\n</think>\n\nA"}]}),
    ({"messages": [USER, {**ASSISTANT, "weight": 1}]}, {"conversations": TURNS}),
    ({"instruction": "Q", "input": "", "output": "A"}, {"conversations": TURNS}),
    ({"instruction": "Do", "input": "it", "output": "A", "history": [["Q", "A"]], "system": "S"},
     {"conversations": [{"from": "system", "value": "S"}, *TURNS, {"from": "human", "value": "Do\nit"}, TURNS[1]]}),
    ({"query": "Q", "response": "A", "history": [["Q", "A"]]}, {"conversations": TURNS + TURNS}),
    ({"query": "Q", "response": "A", "images": "a.png"}, {"conversations": shown("a"), "image": "a.png"}),
    ({"prompt": "Q", "completion": "A"}, {"conversations": TURNS}),
    ({"prompt": [USER], "completion": [ASSISTANT]}, {"conversations": TURNS}),
    ({"prompt": [USER], "chosen": [ASSISTANT], "rejected": "B"},
     {"conversations": TURNS[:1], "chosen": "A", "rejected": "B"}),
    ({"conversations": TURNS, "messages": [USER, ASSISTANT]}, {"conversations": TURNS}),
])
def test_a_row_of_a_known_format_is_a_record(row, expected):
    assert to_record(row) == expected
    assert records.check_record({key: value for key, value in expected.items() if key in ("conversations", "image")}
                                | {"video": expected.get("video")}) == [] or "chosen" in expected
    assert to_record(expected) == expected


@pytest.mark.parametrize("row", [
    {"conversations": [TURNS[0], {"from": "function_call", "value": json.dumps(CALL)},
                       {"from": "observation", "value": "done"}, TURNS[1]]},
    {"messages": [USER, {"role": "tool_call", "content": json.dumps(CALL)}, {"role": "tool", "content": "done"},
                  ASSISTANT]},
    {"messages": [USER, {"role": "assistant", "content": None, "tool_calls": [
        {"id": "1", "type": "function", "function": {"name": "zoom", "arguments": '{"factor": 2}'}}]},
        {"role": "tool", "tool_call_id": "1", "content": "done"}, ASSISTANT]},
])
def test_tool_turns_of_all_spellings_are_the_same_record(row):
    bare = {"name": "zoom", "parameters": {}}
    record = to_record({**row, "tools": json.dumps([bare])})
    assert record == {"conversations": CALLED, "tools": [{"type": "function", "function": bare}]}
    assert records.check_record(record) == [] and to_record(record) == record


def test_calls_that_follow_each_other_are_one_turn():
    record = to_record({"messages": [USER, {"role": "assistant", "content": "Let me see."},
                                     {"role": "tool_call", "content": json.dumps(CALL)},
                                     {"role": "tool_call", "content": json.dumps(CALL)},
                                     {"role": "tool", "content": "1"}, {"role": "tool", "content": "2"}]})
    assert record["conversations"][1] == {"from": "gpt", "value": "Let me see.", "tool_calls": [CALL, CALL]}
    assert [turn["from"] for turn in record["conversations"]] == ["human", "gpt", "tool", "tool"]


@pytest.mark.parametrize("extra, said", [
    ({"audio": "a.wav"}, "'audio' is not read"), ({"audios": ["a.wav"]}, "'audios' is not read"),
    ({"objects": {"ref": ["x"], "bbox": [[1, 2, 3, 4]]}}, "'objects' is not read"),
    ({"rejected_response": "B"}, "'rejected_response' is not read"),
    ({"history": [["Q", "A"]]}, "'history' is not read"), ({"output": "A"}, "'output' is not read"),
    ({"enable_thinking": False}, "'enable_thinking' is not read"),
    ({"max_pixels": 4}, "'max_pixels' is not read"),
    ({"image_path": "a.png"}, "'image_path' is not read: call it image"),
    ({"image": "a.png", "images": ["b.png"]}, "image and images name different files"),
    ({"messages": [USER, {**ASSISTANT, "content": "B"}]}, "say different things"),
    ({"query": "Q"}, "both conversations and query"),
    ({"system": ["S"]}, "system must be text, not a list"), ({"system": {"x": 1}}, "system must be text"),
    ({"images": 3}, "image must be a path"), ({"images": [[1]]}, "image must be a path"),
    ({"videos": [[3]]}, "image must be a path"), ({"image": "data:image/png;base64,%%"}, "not base64"),
    ({"image": "data:image/png"}, "no comma"), ({"image": "data:image/png;base64,"}, "is empty"),
    ({"tools": "{oops"}, "tools must be a list"), ({"tools": [3]}, "tools must be a list"),
    ({"tools": {"name": 3}}, "tools must be a list"),
    ({"tools": json.loads("[" * 40 + "]" * 40)}, "32 levels"),
    ({"chosen": [{"role": "user", "content": "x"}]}, "in words"),
])
def test_a_key_that_is_not_read_is_named(extra, said):
    with pytest.raises(UserError, match=said):
        to_record({"conversations": TURNS, **extra})


@pytest.mark.parametrize("row, said", [
    ({"messages": "text"}, "messages must be a list"), ({"messages": []}, "messages must be a list"),
    ({"messages": {"role": "user"}}, "messages must be a list"), ({"messages": [3]}, "turn 1 must be an object"),
    ({"messages": [{"role": "critic", "content": "x"}]}, "unknown role 'critic'"),
    ({"messages": [{"role": ["user"], "content": "x"}]}, "unknown role"),
    ({"messages": [USER, {"role": "assistant"}]}, "value of turn 2 must be text, not null"),
    ({"messages": [USER, {"role": "assistant", "content": 3}]}, "value of turn 2 must be text, not a number"),
    ({"messages": [USER, {**ASSISTANT, "weight": 0}]}, "turn 2: the key 'weight' is not read"),
    ({"messages": [USER, {**ASSISTANT, "loss": False}]}, "turn 2: the key 'loss' is not read"),
    ({"messages": [{**USER, "images": ["a.png"]}, ASSISTANT]}, "turn 1: the key 'images' is not read"),
    ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "type 'input_audio'"),
    ({"messages": [{"role": "user", "content": [{"type": "image", "image": "a", "max_pixels": 9}]}]}, "'max_pixels'"),
    ({"messages": [{"role": "user", "content": [{"type": "image", "image": 3}]}]}, "image must be a path"),
    ({"messages": [{"role": "user", "content": [{"type": "text", "text": 3}]}]}, "part of text that is a number"),
    ({"messages": [{"role": "user", "content": [3]}]}, "must be text, not a number"),
    ({"messages": [USER, {**ASSISTANT, "tool_calls": [{"function": {}}]}]}, "turn 2 has a tool call"),
    ({"messages": [USER, {**ASSISTANT, "tool_calls": [{"name": "f", "arguments": "x"}]}]}, "must be a JSON object"),
    ({"messages": [{**USER, "tool_calls": [CALL]}]}, "only the assistant can"),
    ({"conversations": [TURNS[0], {"from": "function_call", "value": ""}]}, "turn 2 is a tool call without"),
    ({"messages": [{"role": "user", "from": "gpt", "content": "x"}]}, "turn 1 has from and role, which differ"),
    ({"instruction": 3, "output": "A"}, "instruction must be text"), ({"query": ["Q"]}, "query must be text"),
    ({"query": "Q", "response": {"x": 1}}, "response must be text"),
    ({"query": "Q", "history": "Q"}, "history must be a list"),
    ({"query": "Q", "history": [[1, 2]]}, "history must be text"), ({"prompt": 3}, "prompt must be text"),
    ({"prompt": "Q", "completion": 3}, "completion must be text"),
])
def test_wrong_types_are_one_clause(row, said):
    with pytest.raises(UserError, match=said):
        to_record(row)


def test_supervised_training_does_not_ignore_the_answers_of_a_pair():
    pair = {"conversations": TURNS, "chosen": "A", "rejected": "B"}
    assert records.check_record(pair) == []  # its question can be predicted on
    assert [problem[:18] for problem in records.check_trained(pair)] == ["the key 'chosen' i", "the key 'rejected'"]


def test_records_and_metadata_stay_as_they_are():
    for record in (
        {"id": 1, "conversations": TURNS, "task": "x", "category": "y", "label": 3, "image_url": None},
        {"conversations": shown("a"), "image": "a.png", "image_path": "/elsewhere/a.png", "window": [0, 0, 2, 2]},
        {"id": 2}, {"conversations": None}, {"question": "Q", "answer": "A"},
    ):
        assert to_record(record) == record


def test_scan_names_file_row_and_id_of_a_key_that_is_not_read(tmp_path):
    file = tmp_path / "a.jsonl"
    rows = [{"id": "x", "conversations": TURNS}, {"id": "y", "conversations": TURNS, "audio": "a.wav"}]
    file.write_text("\n".join(map(json.dumps, rows)))
    found = list(records.scan(file))
    assert found[0] == (1, rows[0])
    assert str(found[1][1]).startswith(f"{file}, row 2 (id y): the key 'audio' is not read")
    assert [record for _, record in records.scan(file, convert=False)] == rows


@pytest.mark.parametrize("where", ["image", "images", "image_url", "part"])
def test_a_picture_in_base64_is_kept_once_and_opened(tmp_path, cache_folder, where):
    uri = "data:image/png;base64," + base64.b64encode(png()).decode()
    part = {"image_url": {"type": "image_url", "image_url": {"url": uri}}, "part": {"type": "image", "image": uri}}
    if where in part:
        row = {"messages": [{"role": "user", "content": [part[where], {"type": "text", "text": "Q"}]}, ASSISTANT]}
    else:
        row = {"conversations": shown("a"), where: uri}
    record, again = to_record(row), to_record(row)
    assert record == again and len([file for file in cache_folder.rglob("*") if file.is_file()]) == 1
    assert records.check_record(record, tmp_path) == []
    assert records.media_file(tmp_path, record["image"]).read_bytes() == png()
    records.media_file(tmp_path, record["image"]).unlink()
    assert "gone from the cache" in records.check_record(record, tmp_path)[0]


def test_the_size_of_an_embedded_picture_is_limited(monkeypatch):
    monkeypatch.setattr(embedded, "MAX_EMBEDDED_BYTES", 100)
    uri = "data:image/png;base64," + base64.b64encode(bytes(101)).decode()
    with pytest.raises(UserError, match="101 bytes, above the limit of 100"):
        to_record({"conversations": shown("a"), "image": uri})
    with pytest.raises(UserError, match="characters, above the limit"):
        to_record({"conversations": shown("a"), "image": "data:image/png;base64," + "A" * 301})


def test_file_addresses_below_the_media_root_work_and_no_others(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    for folder in (root, tmp_path):
        (folder / "a b.png").write_bytes(png())
    inside = {"conversations": shown("a"), "image": (root / "a b.png").as_uri()}
    assert records.check_record(inside, root) == []
    assert records.media_file(root, inside["image"]).read_bytes() == png()
    for uri, said in (((tmp_path / "a b.png").as_uri(), "leaves the media root"), ("http://x/a.png", "is an address"),
                      (root.as_uri() + "/../a%20b.png", "leaves the media root"),
                      (root.as_uri() + "/%2e%2e/a%20b.png", "leaves the media root")):
        assert said in records.check_record({"conversations": shown("a"), "image": uri}, root)[0]


# ---- tables


def table_rows():
    return [{"id": i, "messages": [{"role": "user", "content": [{"type": "image", "text": None},
                                                                {"type": "text", "text": f"Q{i}"}]},
                                   {"role": "assistant", "content": [{"type": "text", "text": "A"}]}],
             "images": [{"bytes": png((i, 0, 0)), "path": None}], "raw": b"\x00", "system": None} for i in range(3)]


def write_table(path, rows):
    """As datasets writes it: a .parquet file, or a folder of save_to_disk."""
    import datasets

    table = datasets.Dataset.from_list(rows)
    if path.suffix == ".parquet":
        table.to_parquet(str(path))
    else:
        table.save_to_disk(str(path))
    return path


@pytest.mark.parametrize("name", ["a.parquet", "saved"])
def test_tables_with_pictures_in_them_are_read(tmp_path, name):
    path = write_table(tmp_path / name, table_rows())
    found = [record for _, record in records.scan(path)]
    assert [record["id"] for record in found] == [0, 1, 2] and "raw" not in found[0]
    assert found[1]["conversations"] == [{"from": "human", "value": "<image>Q1"}, {"from": "gpt", "value": "A"}]
    for i, record in enumerate(found):
        assert records.check_record(record, tmp_path) == []
        assert np.asarray(Image.open(records.media_file(tmp_path, record["image"])))[0, 0].tolist() == [i, 0, 0]
    json.dumps(found)


def test_the_columns_that_the_converter_writes_are_read(tmp_path):
    tables.write(tmp_path / "a.parquet", [{"id": "x", "video_start": 3, "messages": [USER, ASSISTANT]}])
    assert list(records.read(tmp_path / "a.parquet")) == [{"id": "x", "video_start": 3, "conversations": TURNS}]


@pytest.mark.parametrize("extra", ["any words", '{"id": "y"}', "[1]", ""])
def test_a_column_extra_of_the_users_own_is_metadata(tmp_path, extra):
    path = write_table(tmp_path / "a.parquet", [{"messages": [USER, ASSISTANT], "extra": extra}])
    assert list(records.read(path)) == [{"extra": extra, "conversations": TURNS}]


@pytest.mark.parametrize("name", ["a.parquet", "saved"])
def test_a_damaged_table_is_one_sentence(tmp_path, name):
    path = write_table(tmp_path / name, table_rows())
    file = path if path.is_file() else next(path.glob("*.arrow"))
    whole = file.read_bytes()
    for length in (0, 10, len(whole) // 2, len(whole) - 20):
        file.write_bytes(whole[:length])
        with pytest.raises(UserError, match=f"{name} cannot be read"):
            list(records.scan(path))


def test_folders_that_are_no_saved_data_set_say_what_is_missing(tmp_path):
    path = write_table(tmp_path / "saved", table_rows())
    next(path.glob("*.arrow")).unlink()
    with pytest.raises(UserError, match="is incomplete: data-.* is missing"):
        list(records.scan(path))
    for state in ('{"_data_files": [{"filename": "../a.arrow"}]}', '{"_data_files": 3}', "[]", "{oops"):
        (path / tables.STATE).write_text(state)
        with pytest.raises(UserError, match="state.json (names|is damaged)"):
            list(records.scan(path))
    (path / tables.STATE).unlink()
    with pytest.raises(UserError, match="state.json is missing"):
        list(records.scan(path))
    (path / tables.SPLITS).write_text('{"splits": ["train"]}')
    with pytest.raises(UserError, match="such as .*saved/train"):
        list(records.scan(path))


@pytest.mark.parametrize(("message", "reason"), [
    ({"role": "user", "content": [{"type": "image", "image": "a.png", "text": "what is it?"}]}, "with the key 'text'"),
    ({"role": "user", "content": [{"type": "text", "text": "q", "image": "a.png"}]}, "with the key 'image'"),
    ({"role": "user", "content": [{"type": "image", "image": "a.png", "image_url": "b.png"}]}, "two different images"),
    ({"role": "assistant", "content": "a", "reasoning": "A", "reasoning_content": "B"}, "two different texts"),
    ({"role": "assistant", "tool_calls": [{"name": "f", "input": {"x": 1}}]}, "'input' of the tool call 'f'"),
    ({"role": "assistant", "tool_calls": [{"name": "f", "arguments": {"y": 1}, "parameters": {"x": 1}}]}, "differ"),
    ({"role": "assistant", "tool_calls": [{"name": "f", "arguments": []}]}, "must be a JSON object"),
])
def test_no_part_of_a_turn_is_dropped(message, reason, tmp_path):
    turns = [message, {"role": "assistant", "content": "x"}] if message["role"] == "user" else [
        {"role": "user", "content": "q"}, message]
    (tmp_path / "rows.jsonl").write_text(json.dumps({"messages": turns}))
    _, defect = next(records.scan(tmp_path / "rows.jsonl"))
    assert isinstance(defect, records.Defect) and reason in defect.problem


def test_parameters_alone_are_the_arguments_of_a_call(tmp_path):
    turns = [{"role": "user", "content": "q"},
             {"role": "assistant", "tool_calls": [{"name": "f", "arguments": None, "parameters": {"x": 1}}]}]
    (tmp_path / "rows.jsonl").write_text(json.dumps({"messages": turns}))
    _, record = next(records.scan(tmp_path / "rows.jsonl"))
    assert record["conversations"][1]["tool_calls"] == [{"name": "f", "arguments": {"x": 1}}]
