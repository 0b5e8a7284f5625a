"""Predictions: what is asked, in which order it comes back, and that an interrupted run goes on where it was."""

import copy
import json
import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from overlays import predict as module
from overlays.data import rasters
from overlays.errors import UserError
from overlays.files import write_json, write_jsonl
from overlays.merge import merge


def record(number: int, images: list[str], words: str, answer: str = "alunite") -> dict:
    return {"id": f"r{number}", "image": images, "task": "minerals", "language": "en", "split": "test",
            "target": {"alunite": 0.5}, "conversations": [
                {"from": "human", "value": "<image>\n" * len(images) + words}, {"from": "gpt", "value": answer}]}


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    folder = tmp_path_factory.mktemp("media")
    for number in range(4):
        pixels = torch.randint(0, 255, (64, 64 + 32 * (number % 2), 3), generator=torch.Generator().manual_seed(number))
        Image.fromarray(pixels.byte().numpy()).save(folder / f"{number}.png")
    return folder


@pytest.fixture
def chosen():
    return [record(0, ["0.png"], "Which minerals are here, and how much of each?"),
            record(1, ["1.png", "2.png"], "What?"), record(2, ["3.png"], "Name them."),
            record(3, ["2.png", "0.png", "1.png"], "Say yes or no."),
            record(4, ["1.png"], "A rather longer question about the ground that is shown in this picture?")]


@pytest.fixture(scope="module")
def processor(tiny_model_dir):
    from overlays.model.load import load_processor

    return load_processor(tiny_model_dir("qwen3_vl"))


@pytest.fixture
def counted(monkeypatch):
    """Generation replaced by the number of prompt tokens; `stop_after` batches it is interrupted."""
    state = SimpleNamespace(asked=0, batches=0, stop_after=None)

    def answer_batch(model, processor, batch, max_new_tokens):
        if state.batches == state.stop_after:
            raise KeyboardInterrupt
        state.batches += 1
        state.asked += len(batch["input_ids"])
        return [f"{int(row.sum())} tokens" for row in batch["attention_mask"]]

    monkeypatch.setattr(module, "answer_batch", answer_batch)
    return state


MODEL = torch.nn.Linear(1, 1)


@pytest.mark.parametrize("family", ["qwen3_vl", "qwen2_5_vl", "qwen3_5", "qwen3_5_moe"])
def test_a_batch_answers_as_one_by_one(family, tiny_model_dir, media, chosen, tmp_path):
    from overlays.model.load import load_for_inference

    model, own = load_for_inference(tiny_model_dir(family))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():  # weights large enough to answer differently, and in words
        for weight in model.parameters():
            weight.add_(torch.randn(weight.shape, generator=generator), alpha=0.05)
    model.generation_config.suppress_tokens = own.tokenizer.all_special_ids
    chosen = chosen + [record(5, [], "No picture at all?")]
    together = module.predict(model, own, chosen, media, 6, 12, tmp_path / "p.jsonl")
    alone = [module.answer(model, own, item, media, 12) for item in chosen]
    assert [row["prediction"] for row in together] == alone
    assert len(set(alone)) > 1 and all(alone)


def test_rows_come_in_the_order_of_the_records(processor, counted, media, chosen, tmp_path):
    out = tmp_path / "deep" / "p.jsonl"
    rows = module.predict(MODEL, processor, chosen, media, 2, 8, out)
    assert [row["id"] for row in rows] == [item["id"] for item in chosen]
    assert rows == [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [path.name for path in out.parent.iterdir()] == ["p.jsonl"]
    assert rows[1] == {"id": "r1", "task": "minerals", "language": "en", "image": ["1.png", "2.png"],
                       "question": "What?", "answer": "alunite", "prediction": rows[1]["prediction"],
                       "target": {"alunite": 0.5}, "split": "test"}
    assert counted.asked == 5 and counted.batches == 3


def test_a_model_with_a_regression_head_is_not_asked_for_words(processor, media, chosen, tmp_path):
    model = torch.nn.Linear(1, 1)
    model._extensions = {"regression": {"names": ["level"]}}
    with pytest.raises(UserError, match="regression head and not in words: score it with python -m overlays.evaluate"):
        module.predict(model, processor, chosen, media, 2, 8, tmp_path / "p.jsonl")
    write_json(tmp_path / "run" / "additions.json", model._extensions)
    (tmp_path / "run" / "config.json").write_text("{}")
    write_jsonl(media / "data.jsonl", chosen)
    with pytest.raises(UserError, match=f"{tmp_path}/run answers with the numbers"):  # before weights are loaded
        module.main(["--checkpoint", str(tmp_path / "run"), "--dataset-use", str(media / "data.jsonl"), "--output",
                     str(tmp_path / "out.jsonl")])
    assert not (tmp_path / "out.jsonl").exists()


def test_an_interrupted_prediction_goes_on(processor, counted, media, chosen, tmp_path):
    expected = module.predict(MODEL, processor, chosen, media, 2, 8, tmp_path / "whole.jsonl")
    counted.asked = counted.batches = 0
    counted.stop_after, notes = 2, []
    with pytest.raises(KeyboardInterrupt):
        module.predict(MODEL, processor, chosen, media, 2, 8, tmp_path / "p.jsonl")
    assert not (tmp_path / "p.jsonl").exists()
    with (tmp_path / "p.jsonl.partial").open("a", encoding="utf-8") as partial:
        partial.write('damaged by the kill\n["4", "cut sho')
    with (tmp_path / "p.jsonl.partial").open("ab") as partial:
        partial.write("明".encode()[:1])
    counted.stop_after = None
    more = [*chosen, {**chosen[0], "id": "one more"}]
    answered = module.predict(MODEL, processor, more, media, 2, 8, tmp_path / "p.jsonl", note=notes.append)
    assert answered[:5] == expected
    assert counted.asked == len(more) and len(notes) == 1 and notes[0].startswith("4 of 6")


@pytest.mark.parametrize("change", ["checkpoint", "question", "length", "picture", "scene"])
def test_answers_of_another_job_are_not_taken_over(change, processor, counted, media, chosen, tmp_path):
    (media / "scene.npz").write_bytes(b"depth")
    chosen = [{**row, "scene": {"metadata": "scene.npz"}} for row in chosen]
    counted.stop_after = 1
    with pytest.raises(KeyboardInterrupt):
        module.predict(MODEL, processor, chosen, media, 2, 8, tmp_path / "p.jsonl", "one")
    for name in {"picture": ["0.png", "1.png", "2.png"], "scene": ["scene.npz"]}.get(change, []):
        os.utime(media / name, (1, 1))
    counted.stop_after, counted.asked = None, 0
    if change == "question":
        for row in chosen:
            row["conversations"][0]["value"] += " Really?"
    module.predict(MODEL, processor, chosen, media, 2, 9 if change == "length" else 8, tmp_path / "p.jsonl",
                   "two" if change == "checkpoint" else "one")
    assert counted.asked == len(chosen) - (change == "picture")  # one of the two kept has no picture


def test_a_damaged_partial_file_starts_over(processor, counted, media, chosen, tmp_path):
    (tmp_path / "p.jsonl.partial").write_bytes(b"\xff\x00 nothing")
    assert len(module.predict(MODEL, processor, chosen, media, 2, 8, tmp_path / "p.jsonl")) == 5


def test_a_missing_image_is_named_with_its_record(processor, counted, media, chosen, tmp_path):
    chosen[3]["image"][1] = "lost.png"
    with pytest.raises(UserError, match=r"r3: .*lost\.png"):
        module.predict(MODEL, processor, chosen, media, 2, 8, tmp_path / "p.jsonl")
    assert not (tmp_path / "p.jsonl").exists()


def test_an_answer_ends_at_its_end_token_and_holds_no_special_ones(processor):
    token = processor.tokenizer.convert_tokens_to_ids
    words = processor.tokenizer.encode("calcite, alunite", add_special_tokens=False)
    tails = [[*words, token("<|im_end|>"), *words],
             [*words[:1], token("<|image_pad|>"), *words[1:], token("<|endoftext|>")]]
    width = max(map(len, tails))

    class Model(torch.nn.Linear):
        generation_config = SimpleNamespace(eos_token_id=[token("<|im_end|>"), token("<|endoftext|>")])

        def generate(self, input_ids, **flags):
            assert flags["do_sample"] is False and flags["max_new_tokens"] == 50 and "ids" not in flags
            padded = [tail + [token("<|endoftext|>")] * (width - len(tail)) for tail in tails]
            return torch.cat([input_ids, torch.tensor(padded)], dim=1)

    batch = {"input_ids": torch.zeros(2, 3, dtype=torch.long), "ids": ["a", "b"]}
    assert module.answer_batch(Model(1, 1), processor, batch, 50) == ["calcite, alunite"] * 2


def test_other_formats_and_frames_are_predicted_on(processor, counted, media, tmp_path):
    row = {"id": "x", "messages": [
        {"role": "user", "content": [{"type": "video", "video": ["1.png", "3.png"]}, {"type": "text", "text": "Q"}]},
        {"role": "assistant", "content": "A"}]}
    write_jsonl(media / "messages.jsonl", [row])
    found, root = module.load_records(str(media / "messages.jsonl"))
    rows = module.predict(MODEL, processor, found, root, 1, 8, tmp_path / "p.jsonl")
    assert (rows[0]["question"], rows[0]["answer"], rows[0]["video"]) == ("Q", "A", [["1.png", "3.png"]])
    write_jsonl(media / "messages.jsonl", [{**row, "audio": "a.wav"}])
    with pytest.raises(UserError, match=r"messages.jsonl, row 1 \(id x\): the key 'audio' is not read"):
        module.load_records(str(media / "messages.jsonl"))


def test_rasters_of_other_values_than_the_checkpoints_are_refused(processor, counted, tmp_path):
    own = copy.deepcopy(processor)
    rasters.set_statistics(own, np.zeros(4), np.full(4, 30.0))  # of codes; the files hold what they stand for
    for number in range(4):
        np.save(tmp_path / f"{number}.npy", np.random.default_rng(number).normal(0, 0.09, (4, 64, 64)).astype("f4"))
    found = [record(number, [f"{number}.npy"], "How many?") for number in range(4)]
    measuring = torch.nn.Linear(1, 1)
    measuring.regression = torch.nn.Identity()
    for call, model in ((module.predict, MODEL), (module.predict_values, measuring)):
        with pytest.raises(UserError, match="statistics are those of other values .* train it again"):
            call(model, own, found, tmp_path)
    assert counted.asked == 0
    rasters.set_statistics(own, np.zeros(4), np.full(4, 0.1))
    assert len(module.predict(MODEL, own, found, tmp_path)) == 4


def test_the_answer_of_a_tool_call_is_the_call():
    call = {"name": "zoom", "arguments": {}}
    turns = [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "", "tool_calls": [call]}]
    assert module.last_turns({"conversations": turns}) == ("Q", json.dumps(call))


def test_only_the_last_human_turn_is_asked():
    turns = [{"from": "system", "value": "s"}, {"from": "human", "value": "<image>\nfirst"},
             {"from": "gpt", "value": "a"}, {"from": "user", "value": "second"}, {"from": "assistant", "value": "b"}]
    assert module.last_turns({"conversations": turns}) == ("second", "b")
    assert module.last_turns({"conversations": turns[:2]}) == ("first", "")


def test_alike_questions_share_a_batch():
    mixed = [record(i, [], "x" * (i % 7)) | {"task": "ab"[i % 2]} for i in range(20)]
    batches = module._batches(mixed, range(20), 5)
    assert sorted(sum(batches, [])) == list(range(20))
    assert all(len({mixed[i]["task"] for i in batch}) == 1 for batch in batches)


def test_the_identity_of_a_checkpoint_changes_with_its_weights(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"1")
    first = module.checkpoint_identity(tmp_path)
    assert first == module.checkpoint_identity(tmp_path) != module.checkpoint_identity(tmp_path, "other/base")
    (tmp_path / "model.safetensors").write_bytes(b"22")
    assert module.checkpoint_identity(tmp_path) != first
    assert module.checkpoint_identity("Qwen/A") != module.checkpoint_identity("Qwen/B")


def test_records_of_a_file_are_checked_and_limited(media, chosen):
    unanswered = record(7, ["0.png"], "Q?")
    del unanswered["conversations"][1]
    write_jsonl(media / "set.jsonl", [*chosen, unanswered])
    found, root = module.load_records(str(media / "set.jsonl"))
    assert found == [*chosen, unanswered] and root == media
    assert len(module.load_records(str(media / "set.jsonl"), 2)[0]) == 2
    assert len(module.load_records(str(media / "set.jsonl%50"))[0]) == 3


def test_what_cannot_be_predicted_is_one_sentence(media, chosen):
    chosen[1]["image"] = ["0.png"]
    write_jsonl(media / "bad.jsonl", chosen)
    bad = str(media / "bad.jsonl")
    for name, words in [(bad, "row 2 .id r1"), ("cuprit_test", "cuprite_test"), (f"{bad},{bad}", "one at a time"),
                        (str(media / "lost.jsonl"), "no annotation file")]:
        with pytest.raises(UserError, match=words):
            module.load_records(name)


def test_the_command_line_writes_the_file(tiny_model_dir, media, chosen, tmp_path, capsys):
    write_jsonl(media / "cli.jsonl", chosen)
    module.main(["--checkpoint", str(tiny_model_dir("qwen3_vl")), "--dataset_use", str(media / "cli.jsonl"), "--output",
                 str(tmp_path / "p.jsonl"), "--limit", "2", "--max_new_tokens", "4", "--batch_size", "2"])
    rows = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["id"] for row in rows] == ["r0", "r1"] and "wrote" in capsys.readouterr().out


@pytest.mark.parametrize("reasoned", [True, False])
def test_a_checkpoint_is_asked_in_the_form_that_it_was_trained_in(tiny_model_dir, tmp_path, capsys, monkeypatch,
                                                                  reasoned):
    """Trained, merged, predicted by the commands; what the model is asked does not depend on the reference answer."""

    from overlays.train import arguments, run, sft
    from overlays.upstream.engine import choose

    answer = "<think>\nit is white\n</think>\n\nalunite" if reasoned else "alunite"
    rows = [record(i, [], f"What is {i}?", answer) for i in range(4)]
    write_jsonl(tmp_path / "train.jsonl", rows)
    groups = arguments.parse([
        "--model_name_or_path", str(tiny_model_dir("qwen3_5_moe")), "--dataset_use", str(tmp_path / "train.jsonl"),
        "--output_dir", str(tmp_path / "run"), "--report_to", "none", "--max_steps", "1", "--lora_enable", "True",
        "--dataloader_num_workers", "0"])
    run.native(sft.prepare(*groups, choose("native", {})))
    assert f"thinking {'on: 4' if reasoned else 'off: 0'} of 4 training records" in capsys.readouterr().out
    merge(tmp_path / "run", tmp_path / "merged", None, "auto")

    asked = []
    own = module.answer_batch
    monkeypatch.setattr(module, "answer_batch", lambda model, processor, batch, length: asked.extend(
        processor.tokenizer.batch_decode(batch["input_ids"])) or own(model, processor, batch, length))
    opened, closed = "assistant\n<think>\n", "assistant\n<think>\n\n</think>\n\n"
    expected = {"auto": opened if reasoned else closed, "on": opened, "off": closed}
    for folder, thinking, reference in (("run", "auto", "alunite"), ("merged", "auto", answer),
                                        ("merged", "auto", "alunite"), ("merged", "on", ""), ("merged", "off", "")):
        write_jsonl(tmp_path / "ask.jsonl", [record(0, [], "What is 0?", reference)])
        asked.clear()
        module.main(["--checkpoint", str(tmp_path / folder), "--dataset_use", str(tmp_path / "ask.jsonl"),
                     "--output", str(tmp_path / "p.jsonl"), "--max_new_tokens", "1", "--thinking", thinking])
        assert len(asked) == 1 and asked[0].endswith(expected[thinking])


def test_a_form_that_the_template_lacks_is_refused_before_weights_are_loaded(tiny_model_dir, media, chosen, tmp_path,
                                                                            monkeypatch):
    write_jsonl(media / "form.jsonl", chosen)
    monkeypatch.setattr("overlays.model.load.load_model", lambda *_: pytest.fail("weights are loaded"))
    with pytest.raises(UserError, match="--thinking off: the chat template of this model has no block of reasoning"):
        module.main(["--checkpoint", str(tiny_model_dir("qwen3_vl")), "--dataset_use", str(media / "form.jsonl"),
                     "--output", str(tmp_path / "p.jsonl"), "--thinking", "off"])
