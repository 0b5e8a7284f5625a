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


@pytest.mark.parametrize("value", [{}, [], [1], {"data": []}, [{"question": "q"}]])
def test_other_layouts_are_refused_in_a_sentence(tmp_path, value):
    with pytest.raises(UserError, match="in none of the known layouts"):
        read_questions(write(tmp_path / "x.json", value))


def test_broken_json_and_missing_files(tmp_path):
    path = tmp_path / "x.json"
    path.write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match="is no JSON"):
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
])
def test_types_by_the_words_of_a_question(text, kind, task):
    assert question_type(text) == kind and task_of(kind) == task
