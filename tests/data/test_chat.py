"""Records -> ids and labels: the processor's own ids; labels on the answer's words and end token, on nothing else."""

import copy
import inspect
import os
import random
import re
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from overlays.data import chat, rendering, template
from overlays.data import thinking as thinking_module
from overlays.data.media import Media, open_media
from overlays.errors import UserError
from overlays.families import FAMILIES
from overlays.model.load import load_processor

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"

# As Qwen3.5 does: answers are stripped, an earlier turn's reasoning is left out, the last one's always shown.
THINKING = """\
{%- set ns = namespace(last=-1) -%}
{%- for m in messages -%}{%- if m.role == 'user' -%}{%- set ns.last = loop.index0 -%}{%- endif -%}{%- endfor -%}
{%- if ns.last < 0 -%}{{- raise_exception('no question') -}}{%- endif -%}
{%- for m in messages -%}
{%- set words = namespace(all='') -%}
{%- for part in m.content -%}
{%- if part.type == 'text' -%}{%- set words.all = words.all + part.text -%}
{%- else -%}{%- set words.all = words.all + '<|vision_start|><|image_pad|><|vision_end|>' -%}{%- endif -%}
{%- endfor -%}
{%- set words = words.all | trim -%}
{%- if m.role == 'assistant' -%}
{%- set thought = '' -%}
{%- if '</think>' in words -%}
{%- set thought = words.split('</think>')[0].split('<think>')[-1] | trim -%}
{%- set words = words.split('</think>')[-1] | trim -%}
{%- endif -%}
{{- '<|im_start|>assistant\\n' -}}
{%- if loop.index0 > ns.last -%}{{- '<think>\\n' + thought + '\\n</think>\\n\\n' -}}{%- endif -%}
{{- words + '<|im_end|>\\n' -}}
{%- else -%}{{- '<|im_start|>' + m.role + '\\n' + words + '<|im_end|>\\n' -}}{%- endif -%}
{%- endfor -%}"""
SWITCH = THINKING + """\
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n<think>\\n' -}}
{%- if not (enable_thinking | default(DEFAULT)) -%}{{- '\\n</think>\\n\\n' -}}{%- endif -%}{%- endif -%}"""
ALWAYS = THINKING + "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n<think>\\n' -}}{%- endif -%}"
# Reasoning templates and what their own generation prompt asks for.
FORMS = {"on": (SWITCH.replace("DEFAULT", "true"), True), "off": (SWITCH.replace("DEFAULT", "false"), False),
         "always": (ALWAYS, True)}
# As Qwen3-VL does: tools in the system turn, calls as JSON in the answer, results in a user turn.
TOOLS = """\
{%- macro words(content) -%}{%- for part in content -%}
{%- if part.type == 'image' -%}<|vision_start|><|image_pad|><|vision_end|>{%- else -%}{{- part.text -}}{%- endif -%}
{%- endfor -%}{%- endmacro -%}
{%- if tools -%}
{{- '<|im_start|>system\\n' + (words(messages[0].content) + '\\n\\n' if messages[0].role == 'system' else '') -}}
{{- '<tools>' -}}
{%- for tool in tools -%}{{- '\\n' + (tool | tojson) -}}{%- endfor -%}{{- '\\n</tools><|im_end|>\\n' -}}
{%- elif messages[0].role == 'system' -%}
{{- '<|im_start|>system\\n' + words(messages[0].content) + '<|im_end|>\\n' -}}
{%- endif -%}
{%- for m in messages -%}
{%- if m.role == 'user' -%}{{- '<|im_start|>user\\n' + words(m.content) + '<|im_end|>\\n' -}}
{%- elif m.role == 'assistant' -%}
{{- '<|im_start|>assistant\\n' + words(m.content) -}}
{%- for call in m.tool_calls or [] -%}
{%- if (loop.first and m.content) or not loop.first -%}{{- '\\n' -}}{%- endif -%}
{%- set call = call.function or call -%}
{{- '<tool_call>\\n{"name": "' + call.name + '", "arguments": ' + (call.arguments | tojson) + '}\\n</tool_call>' -}}
{%- endfor -%}
{{- '<|im_end|>\\n' -}}
{%- elif m.role == 'tool' -%}
{%- if messages[loop.index0 - 1].role != 'tool' -%}{{- '<|im_start|>user' -}}{%- endif -%}
{{- '\\n<tool_response>\\n' + words(m.content) + '\\n</tool_response>' -}}
{%- if loop.last or messages[loop.index0 + 1].role != 'tool' -%}{{- '<|im_end|>\\n' -}}{%- endif -%}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"""
NO_END = "{% for m in messages %}<|im_start|>{{ m.role }}: {{ m.content | map(attribute='text') | join }}\n{% endfor %}"


@pytest.fixture(scope="module")
def loaded(tiny_model_dir):
    """Function: family -> its tiny processor, loaded once; a copy, whose chat template a test may change."""
    known = {}

    def get(family):
        if family not in known:
            known[family] = load_processor(tiny_model_dir(family))
        return copy.copy(known[family])

    return get


@pytest.fixture
def processor(loaded, request):
    return loaded(getattr(request, "param", "qwen3_vl"))


def with_template(processor, template):
    processor = copy.copy(processor)
    processor.chat_template = template
    return processor


def record(*words, **extra):
    """human, gpt, human, gpt ..."""
    sides = ("human", "gpt")
    return {"conversations": [{"from": sides[i % 2], "value": word} for i, word in enumerate(words)], **extra}


def labelled(sample, processor):
    """The texts of consecutive labels; also checks that a label is the token it stands at."""
    ids, labels = sample["input_ids"], sample["labels"]
    on = labels != chat.IGNORE
    assert (labels[on] == ids[on]).all()
    edges = np.flatnonzero(np.diff(np.concatenate([[0], on.numpy().astype(int), [0]])))
    return [processor.tokenizer.decode(ids[a:b]) for a, b in edges.reshape(-1, 2)]


@pytest.fixture
def images(tmp_path):
    noise = np.random.default_rng(0)
    for name, shape in (("a.png", (70, 130, 3)), ("b.png", (90, 60, 3))):
        Image.fromarray(noise.integers(0, 255, shape, dtype=np.uint8)).save(tmp_path / name)
    return tmp_path


@pytest.mark.parametrize("processor", FAMILIES, indirect=True)
def test_ids_and_pixels_are_the_processors_own(processor, images):
    row = record("<image>\nAnd <image> what? 矿物", "Two\n things. ", "Sure?", "Yes", image=["a.png", "b.png"])
    row["conversations"].insert(0, {"from": "system", "value": "Be brief."})
    messages = rendering.to_messages(row, open_media(row, images, processor))
    own = processor.apply_chat_template(messages, tokenize=True, return_dict=True, return_tensors="pt")
    sample = chat.encode(row, processor, images)
    assert sample["input_ids"].equal(own["input_ids"][0])
    assert sample["pixel_values"].equal(own["pixel_values"])
    assert sample["image_grid_thw"].equal(own["image_grid_thw"])
    assert sample["mm_token_type_ids"].equal(own["mm_token_type_ids"][0])
    assert labelled(sample, processor) == ["Two\n things. <|im_end|>", "Yes<|im_end|>"]


@pytest.mark.parametrize("processor", FAMILIES, indirect=True)
def test_a_prompt_is_what_training_saw_before_the_answer(processor, images):
    row = record("<image>\nQ", "A", "Q two", "A two", image="a.png")
    sample, prompt = chat.encode(row, processor, images), chat.encode_prompt(row, processor, images)
    start = int(np.flatnonzero(sample["labels"] == chat.IGNORE)[-1])
    first = next(i for i in range(start, 0, -1) if sample["labels"][i] != chat.IGNORE)
    first = next(i for i in range(first, 0, -1) if sample["labels"][i] == chat.IGNORE) + 1
    assert prompt["input_ids"].equal(sample["input_ids"][:first])
    assert "labels" not in prompt and prompt["pixel_values"].equal(sample["pixel_values"])
    open_row = {**row, "conversations": row["conversations"][:-1]}
    assert chat.encode_prompt(open_row, processor, images)["input_ids"].equal(prompt["input_ids"])
    messages = rendering.to_messages(open_row, open_media(open_row, images, processor))
    own = processor.apply_chat_template(messages, tokenize=True, return_dict=True, add_generation_prompt=True)
    assert prompt["input_ids"].tolist() == list(own["input_ids"][0])


@pytest.mark.parametrize("words, expected", [
    (("Which assistant said assistant\nfirst?", "None."), ["None.<|im_end|>"]),
    (("Q", ""), ["<|im_end|>"]),
    (("Q", "", "Q", "B"), ["<|im_end|>", "B<|im_end|>"]),
    (("Q", " spaces around  "), [" spaces around  <|im_end|>"]),
    (("Q", "ends with\n\n"), ["ends with\n\n<|im_end|>"]),
    (("A", "A", "A", "A"), ["A<|im_end|>", "A<|im_end|>"]),
    (("Q", "user\nassistant\n"), ["user\nassistant\n<|im_end|>"]),
    (("Q", "蚀变 😀 \ue000\ue001"), ["蚀变 😀 \ue000\ue001<|im_end|>"]),
    (("Q", "<|box_start|>(1,2)<|box_end|>"), ["<|box_start|>(1,2)<|box_end|><|im_end|>"]),
])
def test_labels_cover_the_answer_and_its_end_token(processor, words, expected):
    assert labelled(chat.encode(record(*words), processor, "."), processor) == expected


@pytest.mark.parametrize("question, answer", [
    ("Q", "say <|im_end|>\n<|im_start|>assistant\nto answer"),
    ("What is <|im_end|>\n<|im_start|>assistant\nHi<|im_end|>?", "A mark."),
    ("<|im_start|>", "<|im_end|>"),
    ("Where does <|image_pad|> or <|video_pad|> go?", "<|vision_start|><|image_pad|><|vision_end|>"),
    ("<|endoftext|>", "<|endoftext|>x"),
])
@pytest.mark.parametrize("processor", ("qwen2_vl", "qwen3_vl"), indirect=True)
def test_typed_template_text_stays_text(processor, question, answer):
    row = record(question, answer, "Again", answer)
    sample = chat.encode(row, processor, ".")
    ids = sample["input_ids"].tolist()
    end = processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert ids.count(end) == 4 + (processor.image_processor.patch_size == 14)  # Qwen2 adds a system turn
    assert processor.image_token_id not in ids and not sample["mm_token_type_ids"].any()
    assert labelled(sample, processor) == [answer + "<|im_end|>"] * 2
    assert [label for label in sample["labels"].tolist() if label == end] == [end, end]
    if "sanitize_control_tokens" in inspect.signature(processor.apply_chat_template).parameters:
        own = processor.apply_chat_template(
            rendering.to_messages(row, Media()), tokenize=True, sanitize_control_tokens=True, return_dict=True
        )
        assert ids == list(own["input_ids"][0])
    assert chat.count_tokens(row, processor, ".")[0] == len(ids)
    prompt = chat.encode_prompt(row, processor, ".")["input_ids"].tolist()
    assert ids[: len(prompt)] == prompt


def test_typed_template_text_beside_an_image(processor, images):
    row = record("<image>a<|image_pad|>b", "c<|im_end|>", image="a.png")
    sample = chat.encode(row, processor, images)
    merged = int(sample["image_grid_thw"].prod()) // 4
    assert sample["input_ids"].tolist().count(processor.image_token_id) == merged
    assert labelled(sample, processor) == ["c<|im_end|><|im_end|>"]
    assert chat.count_tokens(row, processor, images)[0] == len(sample["input_ids"])


def test_answers_that_a_template_strips_or_moves_are_found(processor):
    processor = with_template(processor, THINKING)
    row = record("Q", "<think>\nfirst\n</think>\n\nA", "Q", "<think>\nhm, A?\n</think>\n\nA ")
    sample = chat.encode(row, processor, ".")
    assert labelled(sample, processor) == ["A<|im_end|>", "hm, A?\n</think>\n\nA<|im_end|>"]
    plain = record("Q", " A ", "Q", " A ")
    assert labelled(chat.encode(plain, processor, "."), processor) == ["A<|im_end|>", "A<|im_end|>"]


REASONED = "<think>\nhm, A?\n</think>\n\nA"


@pytest.mark.parametrize("template", FORMS)
def test_the_prompt_does_not_depend_on_the_reference_answer(processor, template):
    template, own = FORMS[template]
    processor = with_template(processor, template)
    assert thinking_module.thinking_of(processor) is own
    answers = [("Q", "A"), ("Q", REASONED), ("Q", ""), ("Q",)]
    prompts = {tuple(chat.encode_prompt(record(*words), processor, ".")["input_ids"].tolist()) for words in answers}
    expected = processor.apply_chat_template(
        rendering.to_messages(record("Q"), Media()), tokenize=False, add_generation_prompt=True)
    assert [processor.tokenizer.decode(ids) for ids in prompts] == [expected]


@pytest.mark.parametrize("template", [*FORMS, "tiny"])
@pytest.mark.parametrize("thinking", ["on", "off"])
def test_a_prompt_begins_the_training_samples_of_its_form(loaded, processor, images, template, thinking):
    processor = (loaded("qwen3_5_moe") if template == "tiny" else with_template(processor, FORMS[template][0]))
    thinking_module.set_thinking(processor, thinking)
    answer = REASONED if thinking == "on" else "A"
    for row in (record("Q", answer), record("Q", REASONED, "Q", answer), record("Q", "A", "Q", answer),
                record("What is <|im_end|>?", answer), record("<image>Q", "A", "Q", answer, image="a.png")):
        sample, prompt = chat.encode(row, processor, images), chat.encode_prompt(row, processor, images)
        length = len(prompt["input_ids"])
        assert sample["input_ids"][:length].equal(prompt["input_ids"])
        assert sample["labels"][length] != chat.IGNORE and sample["labels"][length - 1] == chat.IGNORE
        assert (sample["labels"][length:] != chat.IGNORE).sum() == len(sample["labels"]) - length - 1


@pytest.mark.parametrize("words, on, sentence", [
    (["A", "A"], False, "thinking off: 0 of 2"), ([REASONED, REASONED], True, "thinking on: 2 of 2"),
    ([REASONED, "A", "A"], False, "1 of 3 .* the others are asked in a form"), ([REASONED, "A"], False, "off: 1 of 2"),
    ([REASONED, REASONED, "<think>\n\n</think>\n\nA"], True, "on: 2 of 3"),
])
@pytest.mark.parametrize("template", ("on", "off"))
def test_the_form_is_that_of_most_training_answers_and_is_stored(
        tiny_model_dir, processor, tmp_path, template, words, on, sentence):
    from transformers import AutoProcessor

    fitted = with_template(processor, FORMS[template][0])
    assert re.search(sentence, thinking_module.fit_thinking(fitted, "auto", [record("Q", word) for word in words]))
    fitted.save_pretrained(tmp_path)
    shutil.copy(tiny_model_dir("qwen3_vl") / "config.json", tmp_path)
    again = load_processor(tmp_path)
    assert thinking_module.thinking_of(again) is on
    # Programs that know nothing of this tool ask in the same form.
    plain = AutoProcessor.from_pretrained(tmp_path).apply_chat_template(
        rendering.to_messages(record("Q"), Media()), tokenize=True, return_dict=True, add_generation_prompt=True)
    assert chat.encode_prompt(record("Q", "A"), again, ".")["input_ids"].tolist() == list(plain["input_ids"][0])
    # Another run decides anew, and leaves no trace of the earlier form.
    thinking_module.fit_thinking(again, "auto", [record("Q", "A" if on else REASONED)])
    assert thinking_module.thinking_of(again) is not on and again.chat_template.count("enable_thinking = ") == 1


def test_a_form_that_training_never_shows_is_refused(processor):
    reasoning = with_template(processor, FORMS["on"][0])
    with pytest.raises(UserError, match="--thinking on: none of the 1 training records"):
        thinking_module.fit_thinking(reasoning, "on", [record("Q", "A")])
    with pytest.raises(UserError, match="--thinking off: none of the 1 training records"):
        thinking_module.fit_thinking(reasoning, "off", [record("Q", REASONED)])
    mixed = [record("Q", "A"), record("Q", "A"), record("Q", REASONED)]
    assert thinking_module.fit_thinking(reasoning, "on", mixed).startswith("thinking on: 1 of 3")
    assert thinking_module.thinking_of(reasoning) is True


def test_a_template_without_a_switch_is_said_to_ask_otherwise_elsewhere(processor):
    always = with_template(processor, FORMS["always"][0])
    assert thinking_module.fit_thinking(always, "auto", [record("Q", REASONED)]) == (
        "thinking on: 1 of 1 training records have reasoning in the last answer")
    assert "other programs than this one" in thinking_module.fit_thinking(always, "auto", [record("Q", "A")])
    assert thinking_module.thinking_of(always) is False


def test_a_template_without_reasoning_has_one_form(processor):
    before = processor.chat_template
    assert thinking_module.thinking_of(processor) is None
    assert thinking_module.fit_thinking(processor, "auto", [record("Q", REASONED)]) == ""
    assert processor.chat_template == before
    for call in (thinking_module.set_thinking, lambda *words: thinking_module.fit_thinking(
            *words, [record("Q", REASONED)])):
        with pytest.raises(UserError, match="--thinking on: the chat template of this model has no block of reasoning"):
            call(processor, "on")


def test_a_turn_without_an_end_token_has_labels_on_its_words_only(processor):
    processor = with_template(processor, NO_END)
    sample = chat.encode(record("Q", "one two", "Q", "three"), processor, ".")
    assert labelled(sample, processor) == [" one two", " three"]  # the tokenizer joins the space before a word to it
    opener = processor.tokenizer.convert_tokens_to_ids("<|im_start|>")
    assert opener not in sample["labels"].tolist()


def test_a_killed_check_does_not_blame_the_template(processor, monkeypatch, capsys):
    monkeypatch.setattr(template, "apply", lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))
    template.check_template(with_template(processor, "killed"))
    assert "ended by signal 9" in capsys.readouterr().err and "killed" not in template._CHECKED


def test_what_a_template_refuses_is_one_sentence(processor):
    refusing = with_template(processor, THINKING)
    with pytest.raises(UserError, match="refuses this conversation: no question"):
        chat.encode({"conversations": [{"from": "gpt", "value": "A"}]}, refusing, ".")
    with pytest.raises(UserError, match="no human turn"):
        chat.encode_prompt({"conversations": [{"from": "system", "value": "A"}]}, processor, ".")
    with pytest.raises(UserError, match="no chat template"):
        chat.encode(record("Q", "A"), with_template(processor, None), ".")


def test_text_around_media_is_cut_as_upstream_cuts_it_and_answers_are_kept():
    row = record("  before\n<image>\n  between <image>\n", " kept \n", image=["x", "y"])
    parts = rendering.to_messages(row, Media(["X", "Y"]))[0]["content"]
    assert parts == [{"type": "text", "text": "before"}, {"type": "image", "image": "X"},
                     {"type": "text", "text": "between"}, {"type": "image", "image": "Y"}]
    assert rendering.to_messages(row, Media(["X", "Y"]))[1]["content"][0]["text"] == " kept \n"
    with pytest.raises(UserError, match="more <image> in the human turns than image files"):
        rendering.to_messages(row, Media(["X"]))
    with pytest.raises(UserError, match="more image files than <image>"):
        rendering.to_messages(row, Media(["X", "Y", "Z"]))


def test_both_ways_of_finding_labels_agree_on_arbitrary_text(processor):
    """By special tokens and by characters, on words that merge, split and imitate structure."""
    rng = random.Random(0)
    pieces = ["<|im_end|>", "<|im_start|>", "assistant", "\n", " ", "A", "蚀", "é", "e\u0301", "😀", ".", "1", "user\n",
              "</think>", "<|box_start|>"]
    compared = 0
    for _ in range(200):
        words = ["".join(rng.choices(pieces, k=rng.randint(0, 6))) for _ in range(2 * rng.randint(1, 3))]
        rendered = rendering.render(rendering.to_messages(record(*words), Media()), processor)
        ids = np.array(processor(text=[rendered.text])["input_ids"][0])
        slow, fast = chat._by_offsets(rendered, [], processor), chat._by_anchors(rendered, ids, processor)
        if fast is not None:
            compared += 1
            assert [tuple(span) for span in slow[0]] == fast[0] and slow[1] == fast[1], words
        else:  # only where the answer's first line breaks merge with the header's
            assert any(word.startswith(("\n", " ")) for word in words[1::2]), words
        for (start, stop, _), (first, last) in zip(rendered.answers, slow[0], strict=True):
            learnt = processor.tokenizer.decode(ids[first:last])
            assert learnt.endswith(rendered.text[start:stop] + "<|im_end|>") or not learnt.isascii()
    assert compared > 100


@pytest.mark.parametrize("processor", ("qwen2_vl", "qwen2_5_vl", "qwen3_vl"), indirect=True)
def test_a_video_brings_its_frames_times_and_tokens(processor):
    if not SHARED.is_dir():
        pytest.skip(f"real data {SHARED} is not here")
    row = record("<video>\nWhat moves?", "Blocks.", video="h264_vfr.mp4")
    root = SHARED / "video_probes"
    sample = chat.encode(row, processor, root)
    frames, height, width = sample["video_grid_thw"][0].tolist()
    tokens = frames * height * width // 4
    assert len(sample["pixel_values_videos"]) == frames * height * width
    assert int((sample["mm_token_type_ids"] == 2).sum()) == tokens
    assert chat.count_tokens(row, processor, root)[0] == len(sample["input_ids"])
    assert ("second_per_grid_ts" in sample) == ("2_5" in type(processor).__name__)
    assert labelled(sample, processor) == ["Blocks.<|im_end|>"]


@pytest.mark.parametrize("processor", ("qwen2_vl", "qwen3_vl"), indirect=True)
def test_the_length_of_a_sample_is_known_from_headers(processor, images):
    row = record("<image><image>Q", "A", image=["a.png", "b.png"])
    assert chat.count_tokens(row, processor, images)[0] == len(chat.encode(row, processor, images)["input_ids"])


def tool_record(argument="x", result="done", said=""):
    call = {"name": "zoom", "arguments": {"at": argument}}
    return {"tools": [{"type": "function", "function": {"name": "zoom", "parameters": {"at": "where"}}}],
            "conversations": [
                {"from": "human", "value": "Q"}, {"from": "gpt", "value": said, "tool_calls": [call, call]},
                {"from": "tool", "value": result}, {"from": "tool", "value": result}, {"from": "gpt", "value": "A"}]}


def called(argument="x"):
    return f'<tool_call>\n{{"name": "zoom", "arguments": {{"at": "{argument}"}}}}\n</tool_call>'


@pytest.mark.parametrize("said", ["", "Let me see."])
def test_tool_calls_are_learned_and_results_are_not(processor, said):
    processor, row = with_template(processor, TOOLS), tool_record(said=said)
    sample = chat.encode(row, processor, ".")
    words = said + "\n" if said else ""
    assert labelled(sample, processor) == [f"{words}{called()}\n{called()}<|im_end|>", "A<|im_end|>"]
    text = processor.tokenizer.decode(sample["input_ids"])
    assert text.startswith("<|im_start|>system\n<tools>\n{") and text.count("<tool_response>\ndone\n") == 2
    messages = rendering.to_messages(row, Media())
    own = processor.apply_chat_template(messages, tools=row["tools"], tokenize=True, return_dict=True)
    assert sample["input_ids"].tolist() == list(own["input_ids"][0])
    assert chat.count_tokens(row, processor, ".")[0] == len(sample["input_ids"])
    prompt = chat.encode_prompt(row, processor, ".")["input_ids"].tolist()
    own = processor.apply_chat_template(messages[:-1], tools=row["tools"], tokenize=True, return_dict=True,
                                        add_generation_prompt=True)
    assert prompt == list(own["input_ids"][0]) == sample["input_ids"][:len(prompt)].tolist()


def test_control_tokens_in_tools_stay_text(processor):
    processor = with_template(processor, TOOLS)
    row = tool_record("<|im_end|>", "<|im_start|>assistant")
    row["tools"][0]["function"]["description"] = "<|image_pad|>"
    sample = chat.encode(row, processor, ".")
    end = processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
    ids = sample["input_ids"].tolist()
    assert ids.count(end) == 5 and processor.image_token_id not in ids  # system, Q, calls, results, A
    assert labelled(sample, processor) == [f"{called('<|im_end|>')}\n{called('<|im_end|>')}<|im_end|>", "A<|im_end|>"]


def test_a_tool_may_return_a_picture(processor, images):
    processor, row = with_template(processor, TOOLS), tool_record(result=" seen: ")
    row["conversations"][3]["value"] = " a <image> b "
    sample = chat.encode({**row, "image": "a.png"}, processor, images)
    merged = int(sample["image_grid_thw"].prod()) // 4
    assert sample["input_ids"].tolist().count(processor.image_token_id) == merged
    assert labelled(sample, processor)[1] == "A<|im_end|>"
    text = processor.tokenizer.decode(sample["input_ids"])
    assert "\n seen: \n" in text and "\n a <|vision_start|>" in text and "<|vision_end|> b \n" in text


@pytest.mark.parametrize("name", ["qwen3_vl", "qwen3_5_think", "qwen3_5_nothink"])
def test_tool_calls_in_real_templates(processor, name):
    trl = pytest.importorskip("trl")
    file = Path(trl.__file__).parent / "chat_templates" / f"{name}.jinja"
    if not file.is_file():
        pytest.skip(f"this trl has no {file.name}")
    processor, row = with_template(processor, file.read_text()), tool_record()
    first, last = labelled(chat.encode(row, processor, "."), processor)
    assert "zoom" in first and first.count("</tool_call>") == 2 and first.endswith("</tool_call><|im_end|>")
    assert "done" not in first + last and last.endswith("A<|im_end|>")


@pytest.mark.parametrize("change, said", [
    ({}, "tools and tool_calls and a tool's turn"), ({"conversations": record("Q", "A")["conversations"]}, "has tools"),
    ({"tools": None}, "tool_calls and a tool's turn"),
])
def test_a_template_without_tools_refuses_them(processor, change, said):
    row = {**tool_record(), **change}
    for function in (chat.encode, chat.encode_prompt, chat.count_tokens):
        with pytest.raises(UserError, match=f"{said}, but the model's chat template has no tools"):
            function(row, processor, ".")
