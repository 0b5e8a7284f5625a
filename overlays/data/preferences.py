"""Preference pairs: records with `chosen` and `rejected` beside a conversation that ends with the question.

    {"id": "a", "image": "a.npy", "conversations": [{"from": "human", "value": "<image>\\nHow many?"}],
     "chosen": "1.19", "rejected": "2.40"}
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence

import torch

from overlays.data import chat, records
from overlays.data.collate import PaddedCollator
from overlays.data.dataset import SupervisedDataset
from overlays.data.lengths import Measured
from overlays.data.thinking import reasons, thinking_of
from overlays.files import atomic_path, sha256
from overlays.paths import cache_folder

SIDES = ("chosen", "rejected")


def with_answer(record: Mapping, side: str) -> dict:
    """The record as a conversation that ends with one of its two answers."""
    answer = {"from": "gpt", "value": record.get(side) or ""}
    return {key: value for key, value in record.items() if key not in SIDES} | {
        "conversations": [*(record.get("conversations") or []), answer]
    }


def check_pair(record: Mapping) -> list[str]:
    """What is wrong with a record's two answers, each as a clause; the rest is for `records.check_record`."""
    problems = [f"{side} must be an answer in words" for side in SIDES
                if not isinstance(record.get(side), str) or not record[side].strip()]
    if not problems and record["chosen"].strip() == record["rejected"].strip():
        problems.append("chosen and rejected are the same answer")
    turns = record.get("conversations")
    last = turns[-1] if isinstance(turns, list) and turns else {}
    if isinstance(last, dict) and records.ROLES.get(str(last.get("from"))) == "assistant":
        problems.append("conversations must end with the question, before the answers")
    return problems


def choose_pairs(answers: Sequence[str], truth: float, parse: Callable[[str], float | None], count: int = 1,
                 min_gap: float = 0.0) -> tuple[list[tuple[str, str]], str]:
    """(chosen, rejected) answers of one question, the chosen one nearer to the truth; why there are none.

    The nearest answer goes with the farthest, the next nearest with the next farthest, and so on.

    Args:
        parse: the number of an answer, None where it holds none; such answers are left out.
        count: pairs at most.
        min_gap: difference of the two errors at least, in the unit of the truth.
    """
    numbers: dict[float, str] = {}
    for text in answers:
        value = parse(text)
        if value is not None:
            numbers.setdefault(value, text)
    if not numbers:
        return [], "no answer holds a number"
    if len(numbers) == 1:
        return [], "all answers are the same"
    order = sorted(numbers, key=lambda value: (abs(value - truth), value))
    pairs = [
        (numbers[near], numbers[far])
        for near, far in zip(order[:min(count, len(order) // 2)], reversed(order), strict=False)
        if abs(far - truth) - abs(near - truth) >= max(min_gap, 1e-9)
    ]
    return pairs, "" if pairs else f"no two answers differ by {min_gap:g} in their error"


class PreferenceDataset(SupervisedDataset):
    """Pairs of samples that share their prompt: {"chosen": sample, "rejected": sample}, see `chat.encode`.

    Checks, lengths (of the longer answer), drops and `report` are those of SupervisedDataset. A pair that breaks later
    stops the run, with on_bad_sample="skip" as well: a batch must hold both sides of every pair.
    """

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.on_bad_sample = "stop"

    def record(self, i: int) -> dict:
        """Record of pair `i` with its chosen answer as last turn."""
        return with_answer(super().record(i), "chosen")

    def inspect(self, i: int) -> tuple[Measured, list]:
        """As of one sample, with the tokens of the longer side."""
        raw = super().record(i)
        problems = check_pair(raw) if raw.keys() - {"id"} else []
        if problems:
            return Measured(0, 0, "; ".join(problems)), []
        found, files = super().inspect(i)
        if found.problem:
            return found, []
        sides = {side: reasons(with_answer(raw, side)) for side in SIDES}
        if thinking_of(self.processor) is not None and len(set(sides.values())) > 1:
            return Measured(0, 0, "one of chosen and rejected has reasoning and the other has not, so they have "
                                  "different prompts"), []
        other, _ = chat.count_tokens(with_answer(raw, "rejected"), self.processor, self.media_root(i), self.reader)
        return found._replace(tokens=max(found.tokens, other)), files

    def __getitem__(self, i: int) -> dict[str, dict]:
        rejected = with_answer(super().record(i), "rejected")
        return {"chosen": super().__getitem__(i), "rejected": self._sample(i, rejected)}

    def fingerprint(self) -> str:
        """Digest of the pairs and of how they become tokens and pixels."""
        sources = [[str(source.annotation.resolve()), sha256(source.annotation)] for source in self.sources]
        tools = [str(getattr(self.processor, name, None)) for name in ("image_processor", "video_processor")]
        words = json.dumps([sources, self._index.tolist(), tools, self.processor.chat_template, str(self.reader)])
        return hashlib.sha256(words.encode()).hexdigest()[:24]


def last_answers(labels: torch.Tensor) -> torch.Tensor:
    """(B, L) int64, 1 at the tokens of each row's last supervised run: an earlier answer belongs to the prompt."""
    learned = labels != chat.IGNORE
    opened = learned & ~torch.nn.functional.pad(learned, (1, 0))[:, :-1]
    run = opened.cumsum(dim=1)
    return (learned & (run == run[:, -1:])).long()


class PreferenceCollator:
    """Rows that name pairs -> one padded batch, first the chosen side of each pair, then the rejected.

    Two pairs become PaddedCollator's batch of four samples, without labels, and

        completion_mask                        (4, L) 1 at the tokens of the two answers of each pair
        ref_chosen_logps, ref_rejected_logps   (2,) log-probabilities under the reference, where the rows have them

    Args:
        sets: PreferenceDataset by the name that rows have as "split".
    """

    def __init__(self, processor, sets: Mapping[str, PreferenceDataset]):
        self.collate, self.sets = PaddedCollator(processor), dict(sets)

    def __call__(self, rows: Sequence[Mapping]) -> dict[str, torch.Tensor]:
        pairs = [self.sets[row["split"]][int(row["index"])] for row in rows]
        batch = self.collate([pair[side] for side in SIDES for pair in pairs])
        batch.pop("targets", None)
        batch["completion_mask"] = last_answers(batch.pop("labels"))
        for key in ("ref_chosen_logps", "ref_rejected_logps"):
            if key in rows[0]:
                batch[key] = torch.tensor([float(row[key]) for row in rows])
        return batch


def pair_table(split: str, pairs: PreferenceDataset):
    """datasets.Dataset of rows {"split", "index"}, one for each pair: what TRL's trainer takes for a data set.

    It lies in data/cache under the fingerprint of the pairs, so that processes share what TRL stores beside it.
    """
    import datasets
    from datasets.arrow_writer import ArrowWriter

    file = cache_folder() / f"pairs-{split}-{pairs.fingerprint()}.arrow"
    if not file.is_file():
        features = datasets.Features({"split": datasets.Value("string"), "index": datasets.Value("int64")})
        with atomic_path(file) as temporary, ArrowWriter(path=str(temporary), features=features) as writer:
            for index in range(len(pairs)):
                writer.write({"split": split, "index": index})
            writer.finalize()
    return datasets.Dataset.from_file(str(file))
