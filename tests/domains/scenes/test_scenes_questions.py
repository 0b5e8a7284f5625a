"""Question files in the published layouts, and what a question asks for."""

import json

import pytest

from overlays.domains.scenes.question_files import Question, find_files, question_type, read_questions, task_of
from overlays.errors import UserError


def write(path, value):
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


SQA = {"scene_id": "scene0249_00", "situation": "I am facing a table.", "question": "What is behind me?",
       "question_id": 220602000037, "alternative_situation": []}


def test_sqa3d_questions_find_their_answers_in_the_annotations_beside_them(tmp_path):
    path = write(tmp_path / "v1_balanced_questions_val_scannetv2.json", {"questions": [SQA, {**SQA, "question_id": 1}]})
    with pytest.raises(UserError, match="v1_balanced_sqa_annotations_val_scannetv2.json is missing"):
        read_questions(path)
    write(tmp_path / "v1_balanced_sqa_annotations_val_scannetv2.json", {"annotations": [
        {"question_id": 220602000037, "answers": [{"answer": "door", "answer_id": 1}]}]})
    first, second = read_questions(path)
    assert first == Question("sqa3d", "220602000037", "scene0249_00", "What is behind me?", ("door",),
                             "I am facing a table.", "val")
    assert second.problem == "no answer"
    assert find_files([tmp_path]) == [path]


def test_scanqa_keeps_all_answers_and_lists_questions_without_one(tmp_path):
    path = write(tmp_path / "ScanQA_v1.0_train.json", [
        {"scene_id": "scene0000_00", "question_id": "train-scene0000-0", "question": "What is on the desk?",
         "answers": ["a lamp", "desk lamp"], "object_ids": [8], "object_names": ["lamp"]},
        {"scene_id": "scene0000_00", "question_id": "x", "question": "What?"},
        {"scene_id": 3, "question_id": "y", "question": "What?", "answers": ["z"]}, "text"])
    rows = read_questions(path)
    assert rows[0].answers == ("a lamp", "desk lamp") and rows[0].split == "train"
    assert [row.problem for row in rows[1:]] == ["no answer", "no scene is named", "no scene is named"]


def test_video_3d_llm_rows_lose_placeholder_and_instruction(tmp_path):
    value = "<image>\nHow many chairs are there? Answer the question using a single word or phrase."
    row = {"id": 7, "video": "scannet/scene0011_00", "metadata": {"dataset": "sqa3d", "question_type": "how"},
           "conversations": [{"value": value, "from": "human"}, {"value": "4", "from": "gpt"}]}
    ground = {**row, "conversations": [{"value": "<image> Where?", "from": "human"},
                                       {"value": "<ground>", "from": "gpt"}]}
    first, second = read_questions(write(tmp_path / "sqa3d_test_llava_style.json", [row, ground]))
    assert first == Question("sqa3d", "7", "scene0011_00", "How many chairs are there?", ("4",), "", "test")
    assert "box" in second.problem


ALPACA = {"instruction": "<image><image>\nAnswer in a word.", "input": "What colour is the sofa?", "output": "red",
          "images": [f"data/scannet/posed_images/scene0011_00/{number}.jpg" for number in ("00000", "00020")]}
SHAREGPT = {"messages": [{"role": "user", "content": "<image>Where is the bed?"},
                         {"role": "assistant", "content": "by the window"},
                         {"role": "user", "content": "How many chairs are there?"},
                         {"role": "assistant", "content": "2"}],
            "images": ["scene0012_00/00000.jpg"]}


def test_training_data_of_llama_factory_are_read(tmp_path):
    path = write(tmp_path / "merged_training_data.json", [ALPACA, {**ALPACA, "scene_id": "scene0001_00", "output": ""}])
    first, second = read_questions(path)
    assert first == Question("merged_training_data", "row 0", "scene0011_00",
                             "Answer in a word.\nWhat colour is the sofa?", ("red",), "", "train")
    assert (second.scene, second.problem) == ("scene0001_00", "no answer")
    for row in (SHAREGPT, {"conversations": [{"from": {"user": "human", "assistant": "gpt"}[turn["role"]],
                                              "value": turn["content"]} for turn in SHAREGPT["messages"]],
                           "images": SHAREGPT["images"]}):
        where, count = read_questions(write(tmp_path / "merged.json", [row]))
        assert (where.id, where.scene, where.text, where.answers) == ("row 0", "scene0012_00", "Where is the bed?",
                                                                      ("by the window",))
        assert (count.id, count.scene, count.text, count.answers) == ("row 0-2", "scene0012_00",
                                                                      "How many chairs are there?", ("2",))
    odd = {**ALPACA, "audios": ["a.wav"]}
    assert "audios" in read_questions(write(tmp_path / "merged.json", [odd, 3]))[0].problem


SCANQA = {"scene_id": "scene0000_00", "question_id": "a-1", "question": "What colour?", "answers": ["brown"]}


@pytest.mark.parametrize("given, answers", [
    ("chair", ("chair",)), (2, ("2",)), ([2.0, 0.5], ("2", "0.5")), (["a", "b "], ("a", "b")),
    ({"answer": "a"}, ("a",)), ([{"answer": "a"}, {"answer": "b"}], ("a", "b")), (None, ()), ([True, [], {}], ()),
    (float("inf"), ()),
])
def test_answers_in_every_form_files_give_them(tmp_path, given, answers):
    questions = tmp_path / "v1_balanced_questions_val_scannetv2.json"
    write(questions, {"questions": [{**SQA, "question_id": 1}, {**SQA, "question_id": [2]}, {**SQA, "question_id": 3}]})
    write(tmp_path / "v1_balanced_sqa_annotations_val_scannetv2.json", {"annotations": [
        {"question_id": "1", "answers": given}, {"question_id": [2], "answer": given}, {"question_id": 3.0,
                                                                                       "answers": given}]})
    assert [row.answers for row in read_questions(questions)] == [answers] * 3
    path = write(tmp_path / "ScanQA_Train.json", [SCANQA | {"answers": given}, None])
    assert read_questions(path)[0].answers == answers and read_questions(path)[0].split == "train"
    row = {"video": "scannet/x", "conversations": [{"value": "What?", "from": "human"}, {"value": "z", "from": "gpt"}]}
    path = write(tmp_path / "x_val.json", [row | {"metadata": {"answers": given}}, row | {"conversations": 5}])
    first, second = read_questions(path)
    assert first.answers == (answers or ("z",)) and second.problem == "no question text"


@pytest.mark.parametrize("given, situation, problem", [
    ({"text": "I sit."}, "I sit.", ""), (["I sit.", {"text": "A door."}], "I sit. A door.", ""), (None, "", ""),
    ("", "", ""), ([], "", ""), ({"x": 1}, "", "its situation is not text"), (["a", None, [1]], "a",
                                                                             "its situation is not text"),
    ("I sit <image> here.", "I sit  here.", ""), ("half \ud83d", "half \ud83d", "text holds half a character"),
])
def test_a_situation_is_kept_or_the_question_listed(tmp_path, given, situation, problem):
    row, = read_questions(write(tmp_path / "ScanQA_val.json", [SCANQA | {"situation": given}]))
    assert (row.situation, row.problem) == (situation, problem)


@pytest.mark.parametrize("change, problem", [
    ({"question": "What \ud83d?"}, "text holds half a character"),
    ({"answers": ["\ud83d"]}, "text holds half a character"),
    ({"scene_id": "a\ud83d"}, "text holds half a character"), ({"question_id": "\ud83d"}, ""),
    ({"answers": ["a", "the <video>"]}, "its answer holds <image> or <video>, which stand for media"),
])
def test_text_that_no_record_can_hold_is_a_listed_problem(tmp_path, change, problem):
    row, = read_questions(write(tmp_path / "ScanQA_val.json", [SCANQA | change]))
    assert row.problem == problem
    f"{row.id} {row.scene}".encode()  # metadata.json lists both


def test_a_folder_named_like_a_question_file_is_none(tmp_path):
    (tmp_path / "old.json").mkdir()
    path = write(tmp_path / "ScanQA_val.json", [SCANQA])
    assert find_files([tmp_path]) == [path]


@pytest.mark.parametrize("value", [{}, [], [1], {"data": []}, [{"question": "q"}]])
def test_other_layouts_are_refused_in_a_sentence(tmp_path, value):
    with pytest.raises(UserError, match="in none of the known layouts"):
        read_questions(write(tmp_path / "x.json", value))


def test_broken_json_and_missing_files(tmp_path):
    path = tmp_path / "x.json"
    path.write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match="is not JSON"):
        read_questions(path)
    with pytest.raises(UserError, match="no question file or folder"):
        find_files([tmp_path / "none"])
    with pytest.raises(UserError, match="no question files"):
        (tmp_path / "empty").mkdir()
        find_files([tmp_path / "empty"])


@pytest.mark.parametrize("text, kind, task", [
    ("How far is the chair from the door?", "distance", "where"),
    ("How many metres is it?", "distance", "where"),
    ("How many chairs are to my left?", "count", "what"),
    ("What color is the table closest to me?", "colour", "what"),
    ("How high above the floor is the lamp?", "height", "where"),
    ("Where is the bed?", "place", "where"),
    ("Which wall is nearest to the bed?", "place", "where"),
    ("Which is nearer, the bed or the desk?", "nearest", "where"),
    ("Is the door to my left?", "direction", "where"),
    ("Is the door open?", "yes-no", "what"),
    ("What is on the desk?", "object", "what"),
    ("Name the room.", "other", "what"),
    ("I am sitting with a door on my left. Is it red?", "yes-no", "what"),
    ("I am facing the window 1.5 m away. How many chairs are there?", "count", "what"),
    ("I am at the table. Is the bed 1.5 m away?", "yes-no", "what"),
])
def test_types_by_the_words_of_a_question(text, kind, task):
    assert question_type(text) == kind and task_of(kind) == task
