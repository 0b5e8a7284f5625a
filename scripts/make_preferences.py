"""Preference pairs from a model's own drawn answers: of each question the answer nearer to the truth is chosen."""

import argparse
import hashlib
import json
import os
import sys
from collections import Counter
from pathlib import Path

import _bootstrap  # noqa: F401  (re-runs in .venv, puts the repository on the path)

from overlays import errors, paths
from overlays.answers import Answers
from overlays.errors import UserError
from overlays.files import write_json, write_jsonl
from overlays.flags import Parser


def parse() -> argparse.Namespace:
    parser = Parser(
        description="Draw answers from a model trained with --head none and write preference pairs for "
                    "overlays.train_dpo.")
    parser.add_argument("--checkpoint", required=True, help="run folder or checkpoint of the model (--head none)")
    parser.add_argument("--base_model", help="base of an adapter, where it is not the one it names")
    parser.add_argument("--dataset_use", required=True, help="one data set: a name or a .json/.jsonl file")
    parser.add_argument("--output", type=Path, help="preferences_<name>.jsonl beside the data set's annotation file")
    parser.add_argument("--target", help='name of the number in "target" (default: the only one)')
    parser.add_argument("--samples", type=int, default=8, help="answers drawn for each question")
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--pairs", type=int, default=1, help="pairs of a question at most")
    parser.add_argument("--min_gap", type=float, default=0.0, help="difference of the two errors at least, in the "
                        "target's unit")
    parser.add_argument("--max_new_tokens", type=int, default=16)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--limit", type=int, help="only the first N records")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--allow_symlinks", action="store_true", help=paths.SYMLINKS_HELP)
    flags = parser.parse_args()
    paths.allow_symlinks(flags.allow_symlinks)
    if flags.samples < 2 or not flags.temperature > 0 or min(flags.pairs, flags.batch_size, flags.max_new_tokens) < 1:
        raise UserError("--samples must be at least 2, --temperature above 0, --pairs, --batch_size and "
                        "--max_new_tokens at least 1")
    return flags


def truth_of(record: dict, name: str | None) -> float:
    """The number that answers are measured by. Raises UserError where it is not there or not the only one."""
    target = record.get("target") or {}
    if name is None and len(target) == 1:
        name = next(iter(target))
    if name not in target:
        raise UserError(f"record {record.get('id')} has {'no target ' + name if name else f'{len(target)} targets'}: "
                        "name one with --target")
    return float(target[name])


def last_question(record: dict) -> int:
    """Place of the last turn that asks. Raises UserError where none does."""
    asking = [i for i, turn in enumerate(record["conversations"]) if turn["from"] in ("human", "user")]
    if not asking:
        raise UserError(f"record {record.get('id')} asks nothing: it has no human turn")
    return asking[-1]


def draw_answers(model, processor, chosen: list[dict], media_root: Path, flags: argparse.Namespace,
                 drawn: Answers) -> list[list[str]]:
    """`--samples` answers to each record; `drawn` keeps them by the first row of their batch."""
    import torch
    from tqdm import tqdm

    from overlays.predict import answer_batch, prompt_loader

    order = list(range(len(chosen)))
    every = [order[start:start + flags.batch_size] for start in range(0, len(order), flags.batch_size)]
    batches = [rows for rows in every if rows[0] not in drawn]
    loader = prompt_loader(chosen, batches, processor, media_root, next(model.parameters()).is_cuda)
    bar = tqdm(total=len(chosen), initial=sum(map(len, drawn.values())), desc="drawing answers", unit="question",
               file=sys.stderr)
    with drawn, bar:
        for rows, batch in zip(batches, loader, strict=True):
            torch.manual_seed(flags.seed * 1_000_003 + rows[0])
            draws = [answer_batch(model, processor, batch, flags.max_new_tokens, flags.temperature)
                     for _ in range(flags.samples)]
            drawn.add([(rows[0], [list(texts) for texts in zip(*draws, strict=True)])])
            bar.update(len(rows))
    return [texts for rows in every for texts in drawn[rows[0]]]


def make_pairs(chosen: list[dict], answers: list[list[str]], flags: argparse.Namespace) -> tuple[list[dict], dict]:
    """(records of the pairs, what was left out and why)."""
    from overlays.data.preferences import choose_pairs
    from overlays.domains.satellite.questions import parse_number

    rows, dropped, unreadable = [], [], 0
    for record, texts in zip(chosen, answers, strict=True):
        unreadable += sum(parse_number(text) is None for text in texts)
        pairs, reason = choose_pairs(texts, truth_of(record, flags.target), parse_number, flags.pairs, flags.min_gap)
        asked = record["conversations"][:last_question(record) + 1]
        for number, (good, bad) in enumerate(pairs):
            rows.append({**record, "id": f"{record.get('id')}:{number}", "conversations": asked, "chosen": good,
                         "rejected": bad})
        if not pairs:
            dropped.append({"id": record.get("id"), "reason": reason})
    return rows, {"questions": len(chosen), "pairs": len(rows), "answers": sum(map(len, answers)),
                  "answers_without_number": unreadable, "dropped": dropped}


def main() -> None:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    flags = parse()
    from overlays import registry
    from overlays.predict import checkpoint_identity, load_records
    from overlays.runs import find_checkpoint

    chosen, media_root = load_records(flags.dataset_use, flags.limit)
    for record in chosen:
        truth_of(record, flags.target)
        last_question(record)
    source = registry.resolve(flags.dataset_use)[0]
    output = flags.output or source.annotation.with_name(f"preferences_{source.annotation.stem}.jsonl")
    if output.suffix != ".jsonl":
        raise UserError(f"--output {output} must end in .jsonl")
    if not output.parent.is_dir():
        raise UserError(f"--output {output}: there is no folder {output.parent}")
    if output.resolve().parent != media_root.resolve():
        print(f"note: media are looked for beside an annotation file; {output} does not lie in {media_root}")
    checkpoint = find_checkpoint(flags.checkpoint, paths.OUTPUTS)
    settings = {key: getattr(flags, key) for key in
                ("target", "samples", "temperature", "max_new_tokens", "batch_size", "seed")}
    words = json.dumps([checkpoint_identity(checkpoint, flags.base_model), settings, chosen], sort_keys=True)
    job = hashlib.sha256(words.encode()).hexdigest()
    from overlays.model.load import load_for_inference

    model, processor = load_for_inference(checkpoint, flags.base_model)
    if hasattr(model.get_base_model() if hasattr(model, "get_base_model") else model, "regression"):
        raise UserError(f"{checkpoint} answers with a regression head; draw from a model trained with --head none")
    drawn = Answers(output, job)
    rows, report = make_pairs(chosen, draw_answers(model, processor, chosen, media_root, flags, drawn), flags)
    reasons = Counter(row["reason"] for row in report["dropped"])
    print(f"{report['pairs']} pairs from {report['questions']} questions; "
          f"{report['answers_without_number']} of {report['answers']} answers hold no number"
          + "".join(f"; {count} questions without a pair: {reason}" for reason, count in reasons.items()))
    if not rows:
        raise UserError("no question gave a pair: raise --samples or --temperature, lower --min_gap, or train longer")
    write_jsonl(output, rows)
    write_json(output.with_suffix(".metadata.json"), {
        "checkpoint": str(checkpoint), "dataset": flags.dataset_use, "pairs_of_a_question": flags.pairs,
        "min_gap": flags.min_gap, **settings, **report})
    drawn.remove()
    print(f"wrote {output}")


if __name__ == "__main__":
    errors.run(main)
