"""Reasoning before the answer: the form of a checkpoint's prompts, stored in its chat template."""

from collections.abc import Iterable, Mapping
from functools import lru_cache

from overlays.data.rendering import render, to_messages, unopened
from overlays.data.template import QUESTION, any_answer, apply, template_of
from overlays.errors import UserError

# Stands before a checkpoint's chat template: the form of its prompts, for templates with that switch also the default.
_FORM = "{{%- set enable_thinking = enable_thinking | default({}) -%}}\n"
_FORMS = {True: _FORM.format("true"), False: _FORM.format("false")}


def thinking_of(processor) -> bool | None:
    """The form of a checkpoint's prompts: whether they leave the model room to reason before it answers.

    That is what `set_thinking` stored with the checkpoint, else what its template's own generation prompt does. None
    where the template writes the same before an answer with and without reasoning: there is one form only.
    """
    return _thinking(template_of(processor), processor)


def set_thinking(processor, thinking: str) -> None:
    """Choose the form of a checkpoint's prompts; `save_pretrained` of the processor stores it in the chat template.

    Args:
        thinking: "on", "off", or "auto" for the form that the checkpoint has.

    Raises:
        UserError: on or off, and the template has one form only.
    """
    if thinking == "auto":
        return
    if thinking_of(processor) is None:
        raise UserError(f"--thinking {thinking}: the chat template of this model has no block of reasoning; "
                        "use --thinking auto")
    template = _FORMS[thinking == "on"] + _without_form(template_of(processor))
    whole = processor.chat_template
    processor.chat_template = {**whole, "default": template} if isinstance(whole, dict) else template


def fit_thinking(processor, thinking: str, training: Iterable[Mapping]) -> str:
    """Choose the form of the prompts that a training run's checkpoints will have.

    Args:
        thinking: "on", "off", or "auto" for the form of more than half of the training records' last answers.
        training: the training records.

    Returns:
        A sentence for the user; "" where the template has one form only.

    Raises:
        UserError: on or off, and the template has one form only or no last answer has that form.
    """
    if thinking_of(processor) is None:
        set_thinking(processor, thinking)
        return ""
    answers = [reasons(record) for record in training]
    count = {"on": sum(answers), "off": len(answers) - sum(answers)}
    if thinking != "auto" and not count[thinking]:
        kind = "with" if thinking == "on" else "without"
        raise UserError(f"--thinking {thinking}: none of the {len(answers)} training records has a last answer {kind} "
                        "reasoning between <think> and </think>, so no prompt would be as in training; "
                        "use --thinking auto")
    chosen = ("on" if count["on"] > count["off"] else "off") if thinking == "auto" else thinking
    set_thinking(processor, chosen)
    sentence = f"thinking {chosen}: {count['on']} of {len(answers)} training records have reasoning in the last answer"
    if all(count.values()):
        sentence += "; the others are asked in a form that they were not trained in (--thinking on or off chooses)"
    template = template_of(processor)
    if _own_prompt(template, processor) != _opening(template, processor, chosen == "on"):
        sentence += "; the template has no switch for that: other programs than this one will ask in another form"
    return sentence


def reasons(record: Mapping) -> bool:
    """Whether the last answer of a record has words of reasoning before </think>."""
    answers = [message for message in to_messages(record, unopened(record)) if message["role"] == "assistant"]
    words = "".join(part.get("text", "") for part in answers[-1]["content"]) if answers else ""
    thought, closed, _ = words.partition("</think>")
    return bool(closed and thought.rpartition("<think>")[2].strip())


def _without_form(template: str) -> str:
    for form in _FORMS.values():
        template = template.removeprefix(form)
    return template


@lru_cache(maxsize=16)
def _thinking(template: str, processor) -> bool | None:
    if _opening(template, processor, True) == _opening(template, processor, False):
        return None
    stored = next((form for form, line in _FORMS.items() if template.startswith(line)), None)
    return _own_prompt(template, processor) == _opening(template, processor, True) if stored is None else stored


@lru_cache(maxsize=16)
def _opening(template: str, processor, thinking: bool) -> str:
    """What training shows before the words of an answer with or without reasoning."""
    rendered = render([QUESTION, any_answer(thinking)], processor)
    return rendered.text[: rendered.answers[0][0]]


def _own_prompt(template: str, processor) -> str:
    """The template's own generation prompt."""
    return apply([QUESTION], processor, add_generation_prompt=True)
