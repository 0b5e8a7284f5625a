"""Entry: answers of a checkpoint to the questions of a data set -> predictions.jsonl. Knows no domain.

    python -m overlays.predict --checkpoint outputs/run --dataset_use cuprite_test --output predictions.jsonl
"""

import hashlib
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from overlays import callable_module, paths, registry
from overlays.answers import Answers
from overlays.data import chat, geometry, rasters, records
from overlays.data.collate import PromptCollator
from overlays.data.dataset import sample_rows
from overlays.data.thinking import thinking_of
from overlays.errors import UserError, run
from overlays.files import write_jsonl
from overlays.flags import Parser
from overlays.model import extensions

LEAST = 4  # rasters that are compared with the statistics of a checkpoint
_PLACEHOLDER = re.compile("|".join(map(re.escape, records.PLACEHOLDERS.values())))


# ---------------------------------------------------------------- records

def last_turns(record: Mapping) -> tuple[str, str]:
    """(last human turn without media placeholders, the answer after it or "")."""
    question, answer = "", ""
    for turn in record["conversations"]:
        role = records.ROLES.get(turn["from"])
        if role == "user":
            question, answer = _PLACEHOLDER.sub("", turn["value"]).strip(), ""
        elif role == "assistant":
            answer = records.answer_text(turn)
    return question, answer


def prediction_row(record: Mapping, prediction: str) -> dict:
    """A row of predictions.jsonl: the record with its conversation cut down to question, answer and prediction."""
    question, answer = last_turns(record)
    kept = {key: value for key, value in record.items() if key != "conversations"}
    return kept | {"question": question, "answer": answer, "prediction": prediction}


def load_records(dataset_use: str, limit: int | None = None) -> tuple[list[dict], Path]:
    """Records of one data set (`name`, `name%N` or a file) and its media root; the first `limit` of them.

    Raises:
        UserError: several data sets, an unknown one, a broken record (named with file, row and id), or none.
    """
    if limit is not None and limit < 1:
        raise UserError(f"--limit must be at least 1, not {limit}")
    sets = registry.resolve(dataset_use)
    if len(sets) > 1:
        raise UserError(f"{dataset_use!r} names {len(sets)} data sets; predict on one at a time")
    source = sets[0]
    found = []
    for row, record in records.scan(source.annotation):
        if isinstance(record, records.Defect):
            raise UserError(str(record))
        problems = [text for text in records.check_record(record, source.media_root)
                    if not text.startswith("there is no gpt turn")]
        if problems:
            raise UserError(f"{source.annotation}, row {row} (id {record.get('id')}): {'; '.join(problems)}")
        found.append(record)
    found = [found[i] for i in sample_rows(len(found), source.rate, f"0:{source.name}")][:limit]
    if not found:
        raise UserError(f"data set {source.name} holds no records: {source.annotation}")
    return found, source.media_root


# ---------------------------------------------------------------- generation

def end_ids(model, processor) -> list[int]:
    """Ids at which an answer ends: those of the generation config and the tokenizer's own."""
    ends = model.generation_config.eos_token_id
    ends = [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
    own = processor.tokenizer.eos_token_id
    turn = processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
    known = turn is not None and turn != processor.tokenizer.unk_token_id
    return sorted({*ends, *([own] if own is not None else []), *([turn] if known else [])})


@torch.inference_mode()
def answer_batch(model, processor, prompts: Sequence[dict] | Mapping, max_new_tokens: int,
                 temperature: float = 0.0) -> list[str]:
    """Answers to prompts (`chat.encode_prompt`) or to a batch of them that is already collated.

    Args:
        temperature: 0 takes the likeliest token each time, above 0 tokens are drawn.

    Raises:
        UserError: the model answers with a regression head.
    """
    check_answers_in_words(extensions.settings(model), "this model")
    batch = dict(prompts) if isinstance(prompts, Mapping) else PromptCollator(processor)(prompts)
    batch.pop("ids", None)
    device = next(model.parameters()).device
    batch = {key: value.to(device) for key, value in batch.items()}
    ends = end_ids(model, processor)
    pad = processor.tokenizer.pad_token_id
    draws = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature else {
        "do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    output = model.generate(**batch, **draws, max_new_tokens=max_new_tokens, num_beams=1, use_cache=True,
                            eos_token_id=ends, pad_token_id=ends[0] if pad is None else pad,
                            tokenizer=processor.tokenizer)  # of which a model's stop strings are made
    answers = []
    for ids in output[:, batch["input_ids"].shape[1]:].tolist():
        stop = next((i for i, token in enumerate(ids) if token in ends), len(ids))
        answers.append(processor.tokenizer.decode(ids[:stop], skip_special_tokens=True).strip())
    return answers


def check_answers_in_words(added: Mapping[str, Mapping], name: str | Path) -> None:
    """Refuse a model whose extensions `added` hold a regression head: its language model has learned no answers."""
    if "regression" in added:
        raise UserError(f"{name} answers with the numbers of its regression head and not in words: score it with "
                        "python -m overlays.evaluate")


def answer(model, processor, record: Mapping, media_root: str | Path, max_new_tokens: int = 128) -> str:
    """The answer to one record's last question. Raises UserError where a medium cannot be opened."""
    prompt = chat.encode_prompt(record, processor, media_root)
    geometry.add_coordinates(prompt, record, processor, media_root, max_depth_m(model))
    return answer_batch(model, processor, [prompt], max_new_tokens)[0]


def max_depth_m(model) -> float | None:
    """The depth beyond which the model's 3-D features take none, in metres; None where it has no such features."""
    return extensions.settings(model).get("spatial", {}).get("max_depth_m")


class _Prompts(torch.utils.data.Dataset):
    def __init__(self, chosen: Sequence[dict], processor, media_root: Path, max_depth_m: float | None):
        self.chosen, self.processor, self.media_root, self.max_depth_m = chosen, processor, media_root, max_depth_m

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, index: int) -> dict:
        record = self.chosen[index]
        try:
            prompt = chat.encode_prompt(record, self.processor, self.media_root)
            return geometry.add_coordinates(prompt, record, self.processor, self.media_root, self.max_depth_m)
        except UserError as error:
            return {"problem": f"record {record.get('id')}: {error}"}  # raised outside a worker process


def prompt_loader(chosen: Sequence[dict], batches: Sequence[Sequence[int]], processor, media_root: str | Path,
                  cuda: bool, max_depth_m: float | None = None) -> Iterator[dict]:
    """A collated batch of prompts (see PromptCollator) for each list of row numbers, loaded by workers beside a GPU.

    Raises:
        UserError: a medium is missing or broken, named with the record's id.
    """
    workers = min(4, os.cpu_count() or 1) if cuda and len(batches) > 4 else 0
    loader = torch.utils.data.DataLoader(_Prompts(chosen, processor, Path(media_root), max_depth_m),
                                         batch_sampler=batches, collate_fn=_Collate(processor), num_workers=workers)
    for batch in loader:
        if "problem" in batch:
            raise UserError(batch["problem"])
        yield batch


class _Collate:
    def __init__(self, processor):
        self.collator = PromptCollator(processor)

    def __call__(self, prompts: Sequence[dict]) -> dict:
        problem = next((prompt["problem"] for prompt in prompts if "problem" in prompt), None)
        return {"problem": problem} if problem else self.collator(prompts)


def check_statistics(processor, chosen: Sequence[Mapping], media_root: str | Path) -> None:
    """Raises UserError where a processor of rasters has the statistics of other values than the records' rasters hold.

    Nothing is said of fewer than LEAST rasters, whose values may lie close together, nor of those that cannot be read
    or have other channels: the records with these are named where they are opened.
    """
    if not rasters.takes_rasters(processor):
        return
    few = chosen[:: max(1, len(chosen) // 16)]
    try:
        items = rasters.unique_windows((record, Path(media_root)) for record in few)
        known = len(processor.image_processor.image_mean)
        fits = len(items) >= LEAST and all(rasters.shape(path)[0] == known for path, _ in items)
        problem = rasters.misfit(processor, items) if fits else ""
    except UserError:
        return
    if problem:
        raise UserError(f"{problem}: take the data set that the checkpoint was trained on, or train it again")


def _batches(chosen: Sequence[dict], missing: Iterable[int], batch_size: int) -> list[list[int]]:
    """Row numbers in batches of like questions: the same task and language, then similar length of text.

    A batch is as slow as its longest prompt and its longest answer, and the task decides both.
    """
    def likeness(i: int) -> tuple:
        record = chosen[i]
        media = sum(len(records.media_names(record, kind)) for kind in records.PLACEHOLDERS)
        return str(record.get("task")), str(record.get("language")), media, len(last_turns(record)[0])

    order = sorted(missing, key=likeness)
    return [order[start:start + batch_size] for start in range(0, len(order), batch_size)]


# ---------------------------------------------------------------- interruption

def checkpoint_identity(checkpoint: str | Path, base_model: str | None = None, bits: int | None = None) -> str:
    """Digest of a checkpoint's files by name, size and time of change; of its name where it is not a folder.

    Args:
        base_model, bits: with which it is loaded.
    """
    folder = Path(checkpoint)
    files = sorted(path for path in folder.glob("*") if path.suffix in (".safetensors", ".bin", ".json"))
    rows = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files if path.name != "run.json"]
    words = json.dumps([str(folder.resolve()) if files else str(checkpoint), base_model, rows] + [bits] * bool(bits))
    return hashlib.sha256(words.encode()).hexdigest()


def record_keys(chosen: Sequence[dict], media_root: Path) -> list[str]:
    """Digest of each record with its media and scene, which count by size and time of change."""
    def state(path: Path) -> list:
        try:
            found = path.stat()
        except (OSError, ValueError):
            return [str(path)]
        return [str(path), found.st_size, found.st_mtime_ns]

    root, keys = str(media_root.resolve()), []
    for record in chosen:
        scene = (record.get("scene") or {}).get("metadata")
        paths = [*records.media_files(record, media_root), *([media_root / str(scene)] if scene else [])]
        words = json.dumps([root, record, list(map(state, paths))], sort_keys=True)
        keys.append(hashlib.sha256(words.encode()).hexdigest())
    return keys


# ---------------------------------------------------------------- prediction

def predict(model, processor, records: Sequence[dict], media_root: str | Path = ".", batch_size: int = 8,
            max_new_tokens: int = 128, out_path: str | Path | None = None, identity: str = "",
            note: Callable[[str], None] | None = None, keep: bool = False) -> list[dict]:
    """Answer every record greedily, in the order of the records, and write predictions.jsonl where `out_path` says so.

    Answers are kept in `<out_path>.partial` batch by batch; after an interruption the next call takes those to records
    that are the same, if checkpoint and length are. The output itself appears only when it is complete.

    Args:
        records: with media paths relative to `media_root`; the last human turn is asked, what follows it is the target.
        max_new_tokens: an answer is cut there.
        out_path: None writes nothing.
        identity: which checkpoint this is, see `checkpoint_identity`.
        note: told in one sentence when an interrupted prediction goes on.
        keep: leave the answers beside the output, so that a later call for more records takes them.

    Returns:
        Rows of the file: the records' keys without the conversation, and "question", "answer", "prediction".

    Raises:
        UserError: a medium is missing or broken, named with the record's id.
    """
    check_answers_in_words(extensions.settings(model), "this model")
    chosen, media_root = list(records), Path(media_root)
    if batch_size < 1 or max_new_tokens < 1:
        raise UserError(f"batch size and answer length must be at least 1, not {batch_size} and {max_new_tokens}")
    keys = record_keys(chosen, media_root)
    size = processor.image_processor.size
    answers = Answers(out_path, f"{identity} {max_new_tokens} thinking {thinking_of(processor)} pixels "
                                f"{size['shortest_edge']} {size['longest_edge']}")
    missing = [i for i, key in enumerate(keys) if key not in answers]
    kept = len(chosen) - len(missing)
    if kept and note:
        note(f"{kept} of {len(chosen)} answers are there from an earlier run; going on")

    if missing:
        check_statistics(processor, chosen, media_root)
    batches = _batches(chosen, missing, batch_size)
    loader = prompt_loader(chosen, batches, processor, media_root, next(model.parameters()).is_cuda, max_depth_m(model))
    bar = tqdm(total=len(chosen), initial=kept, desc="answering", unit="question", file=sys.stderr)
    with answers, bar:
        for rows, batch in zip(batches, loader, strict=True):
            texts = answer_batch(model, processor, batch, max_new_tokens)
            answers.add(zip([keys[row] for row in rows], texts, strict=True))
            bar.update(len(rows))
    found = [prediction_row(record, answers[key]) for record, key in zip(chosen, keys, strict=True)]
    if out_path is not None:
        write_jsonl(out_path, found)
    if not keep:
        answers.remove()
    return found


@torch.inference_mode()
def predict_values(model: torch.nn.Module, processor, records: Sequence[Mapping], media_root: str | Path,
                   batch_size: int = 8) -> list[dict[str, float]]:
    """Predictions of the head: target's name -> number in its own units, in the order of the records.

    Args:
        model: from `load.load_for_inference`, with a regression head.

    Raises:
        UserError: the model has no head, or a medium cannot be opened (named with the record's id).
    """
    from overlays.model import heads

    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    if not hasattr(base, "regression"):
        raise UserError("this model has no regression head: train with --head vision or --head text")
    check_statistics(processor, records, media_root)
    device, found = next(base.parameters()).device, []
    order = list(range(len(records)))
    batches = [order[start:start + batch_size] for start in range(0, len(records), batch_size)]
    loader = prompt_loader(records, batches, processor, media_root, cuda=device.type == "cuda")
    with tqdm(total=len(records), desc="measuring", unit="record", file=sys.stderr) as bar:
        for rows, batch in zip(batches, loader, strict=True):
            batch = {key: value.to(device) for key, value in batch.items() if torch.is_tensor(value)}
            numbers = base.regression.restore(heads.values(base, count=len(rows), **batch)).tolist()
            found += [dict(zip(base.regression.names, row, strict=True)) for row in numbers]
            bar.update(len(rows))
    return found


def main(words: Sequence[str] | None = None) -> None:
    """Command line of the module."""
    parser = Parser(prog="python -m overlays.predict", description=__doc__.split("\n")[0].removeprefix("Entry: "))
    parser.add_argument("--checkpoint", help="run folder, checkpoint or model; default: the newest run")
    parser.add_argument("--base-model", help="base of an adapter, where it is not the one it names")
    parser.add_argument("--dataset-use", required=True, help="one data set: a name or a file")
    parser.add_argument("--output", required=True, type=Path, help="predictions.jsonl")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--limit", type=int, help="only the first N records")
    parser.add_argument("--attn-implementation", default="auto")
    parser.add_argument("--load-in-4bit", dest="bits", action="store_const", const=4,
                        help="quantise the language model (NF4); default: full precision")
    parser.add_argument("--load-in-8bit", dest="bits", action="store_const", const=8, help="the same in 8 bits")
    parser.add_argument("--thinking", default="auto", choices=["auto", "on", "off"],
                        help="ask with room for reasoning before the answer, or without; auto: the checkpoint's form")
    parser.add_argument("--allow-symlinks", action="store_true", help=paths.SYMLINKS_HELP)
    flags = parser.parse_args(words)
    paths.allow_symlinks(flags.allow_symlinks)

    from overlays.model.load import load_for_inference
    from overlays.runs import find_checkpoint

    if not flags.output.name or flags.output.is_dir():
        raise UserError(f"--output must name a file such as predictions.jsonl, not {str(flags.output)!r}")
    chosen, media_root = load_records(flags.dataset_use, flags.limit)
    checkpoint = flags.checkpoint
    if checkpoint is None or Path(checkpoint).is_dir():
        checkpoint = find_checkpoint(checkpoint, paths.OUTPUTS)
    check_answers_in_words(extensions.read(checkpoint), checkpoint)
    print(f"checkpoint {checkpoint}, {len(chosen)} records of {flags.dataset_use}")
    model, processor = load_for_inference(checkpoint, flags.base_model, flags.attn_implementation, flags.thinking,
                                          flags.bits)
    predict(model, processor, chosen, media_root, flags.batch_size, flags.max_new_tokens, flags.output,
            checkpoint_identity(checkpoint, flags.base_model, flags.bits), note=print)
    print(f"wrote {flags.output}")


callable_module(__name__)

if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    run(main)
