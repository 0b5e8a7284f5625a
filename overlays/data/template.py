"""A processor's chat template: a program from the model folder, which is run within limits."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path

from overlays.errors import UserError

TEMPLATE_SECONDS, TEMPLATE_BYTES = 10, 1 << 30
QUESTION = {"role": "user", "content": [{"type": "text", "text": "?"}]}
_CHECKED: set[str] = set()  # templates that `check_template` has let through


def template_of(processor) -> str:
    """The template that conversations are rendered with. Raises UserError where there is none."""
    template = processor.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    if not template:
        raise UserError("the processor has no chat template; copy chat_template.jinja from the base model")
    return template


def apply(messages: Sequence[dict], processor, tools: Sequence[dict] | None = None, **options) -> str:
    """The text of a conversation. Raises UserError where the template refuses it."""
    if tools:
        options["tools"] = tools
    try:
        return processor.apply_chat_template(messages, tokenize=False, **options)
    except MemoryError:
        raise
    except Exception as error:  # a template is a program: it raises what it likes
        raise UserError(f"the chat template refuses this conversation: {' '.join(str(error).split())}") from None


def any_answer(thinking: bool | None) -> dict:
    """An assistant's message, with words of reasoning or without."""
    words = "<think>\n-\n</think>\n\n-" if thinking else "-"
    return {"role": "assistant", "content": [{"type": "text", "text": words}]}


def check_template(processor) -> None:
    """Render a short conversation in a process of its own, which may take TEMPLATE_SECONDS of CPU and TEMPLATE_BYTES.

    A process that ends in another way, killed or hanging after the fork, says nothing about the template.

    Raises:
        UserError: the chat template takes more, as one with nested loops or long repeated text does.
    """
    if not hasattr(os, "fork") or not processor.chat_template or template_of(processor) in _CHECKED:
        return
    import resource
    import signal

    def limit(kind: int, most: int) -> None:
        hard = resource.getrlimit(kind)[1]  # may be below: ulimit, a batch system
        resource.setrlimit(kind, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))

    child = os.fork()
    if child == 0:
        status = 0
        try:
            used = os.sysconf("SC_PAGE_SIZE") * int(Path("/proc/self/statm").read_text().split()[0]) \
                if Path("/proc/self/statm").is_file() else None
            if used:
                limit(resource.RLIMIT_AS, used + TEMPLATE_BYTES)
            for number in (signal.SIGALRM, signal.SIGXCPU):
                signal.signal(number, signal.SIG_DFL)
            signal.alarm(10 * TEMPLATE_SECONDS)
            limit(resource.RLIMIT_CPU, TEMPLATE_SECONDS)
            apply([QUESTION, any_answer(None)], processor)
        except MemoryError:
            status = 1
        except BaseException:  # said where a conversation is rendered
            pass
        finally:
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status in (1, -signal.SIGXCPU):
        raise UserError(f"the chat template of this model takes more than {TEMPLATE_SECONDS} seconds of CPU or "
                        f"{TEMPLATE_BYTES >> 20} MB for one question: copy the base model's chat_template.jinja")
    if status:
        logging.getLogger(__name__).warning("the check of the chat template ended by signal %d: it is left out",
                                            -status)
    else:
        _CHECKED.add(template_of(processor))
