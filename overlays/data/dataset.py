"""Supervised samples from annotation files: memory-mapped, sampled by seed, checked and measured before training."""

import hashlib
import json
import logging
import os
import random
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from overlays import registry
from overlays.data import augment, chat, geometry, lengths, memory, records
from overlays.data.lengths import Lengths, Measured
from overlays.data.media import MediaOptions, open_media
from overlays.data.rendering import to_messages
from overlays.data.targets import target_values
from overlays.errors import UserError
from overlays.files import atomic_path, sha256, to_json
from overlays.paths import SYMLINKS, cache_folder

log = logging.getLogger(__name__)

TABLE = 2  # version of what annotation tables hold
WORKERS_ABOVE = 5000  # samples; fewer are measured faster than processes start


class SampleError(UserError):
    """A broken sample. A DataLoader worker wraps the sentence into a traceback; str() gives the sentence alone."""

    def __str__(self) -> str:
        return super().__str__().rpartition(f"{type(self).__name__}: ")[2].strip()


class SupervisedDataset(torch.utils.data.Dataset):
    """Samples (see `chat.encode`) with position_ids (3, L), "id" and, where the record has one, "target".

    Before training every record is checked and its length is computed from its text and the headers of its media;
    what was computed before is kept (see data/lengths.py).
    Over-long samples are dropped and counted; image tokens are never cut. A broken sample is an error, or is dropped
    and listed with on_bad_sample="skip" (media are then decoded once beforehand); it is never replaced by another.

    Args:
        datasets: what `registry.resolve` gives.
        processor: with the resolution already applied (`media.apply_resolution`).
        positions: `model.parts.position_function(config)`.
        options: only how videos are read counts here.
        seed: of `name%N` sampling; the same records on every rank and in every resumed run.
        model_max_length: tokens of a sample at most; None for no limit.
        on_bad_sample: "stop" or "skip".
        workers: processes that check and measure; None decides by the number of samples.
        max_depth_m: samples of a record with a scene get `coordinates` (see `geometry.token_coordinates`), depth
            beyond this being invalid; None for none.
        repeats: how often each record is taken, and whether the repetitions are changed; None: once.

    Attributes:
        target_names: numbers of the record's "target" that a sample has as `targets` (K,) float32; none at first.
        lengths: (len(self),) int64 tokens of each sample.
        visual: (len(self),) int64, how many of them are of images and videos.
        report: {"datasets": [{name, file, records, sampled, kept}], "kept", "too_long", "bad", "empty_answers",
            "tokens": {max, mean, total}, "dropped": [{id, file, row, reason}]}.

    Raises:
        UserError: a broken record or sample under "stop", or nothing is left.
    """

    def __init__(self, datasets: Sequence[registry.Dataset], processor, positions: Callable, options: MediaOptions,
                 seed: int = 0, model_max_length: int | None = None, on_bad_sample: str = "stop",
                 workers: int | None = None, max_depth_m: float | None = None,
                 repeats: augment.Repeats | None = None):
        if on_bad_sample not in ("stop", "skip"):
            raise UserError(f"on_bad_sample is stop or skip, not {on_bad_sample!r}")
        repeats = repeats or augment.Repeats()
        if repeats.samples_per_file > 1 and repeats.changed and max_depth_m is not None:
            raise UserError("--samples_per_file crops and turns images, and their depth would no longer fit: give "
                            "--no_augment True or --samples_per_file 1")
        self.sources, self.processor, self.positions = list(datasets), processor, positions
        self.reader, self.on_bad_sample, self.max_depth_m = options.reader, on_bad_sample, max_depth_m
        self._tables = [open_table(source.annotation) for source in self.sources]
        self.target_names: tuple[str, ...] = ()
        chosen = [sample_rows(len(table), source.rate, f"{seed}:{source.name}")
                  for table, source in zip(self._tables, self.sources, strict=True)]
        self._index = np.concatenate(  # (samples, 2): number of the source, row of its table
            [np.stack([np.full(len(rows), number), np.array(rows, dtype=np.int64)], axis=1)
             for number, rows in enumerate(chosen)])
        tokens, visual, problems = self._measure(workers)
        self._keep(tokens, visual, problems, model_max_length, [len(rows) for rows in chosen])
        self._repeat(repeats)

    def __len__(self) -> int:
        return len(self._index)

    def record(self, i: int) -> dict:
        """The annotation record of sample `i`."""
        source, row = self._index[i]
        return json.loads(self._tables[source][int(row)]["json"])

    def media_root(self, i: int) -> Path:
        """The folder that the media of sample `i` lie in."""
        return self.sources[self._index[i][0]].media_root

    def __getitem__(self, i: int) -> dict:
        memory.settle_worker()
        record = self.record(i)
        try:
            return self._sample(i, record)
        except UserError as error:
            sentence = f"{self._where(i, record)}: {error}"
            if self.on_bad_sample == "stop":
                raise SampleError(sentence) from None
            log.warning("skipped: %s", sentence)
            return {"id": self._id(i, record), "skipped": str(error)}
        except Exception as error:  # no user's mistake: keep the traceback, and say which sample it was
            raise RuntimeError(f"{self._where(i, record)}: {error}") from error

    def _sample(self, i: int, record: dict) -> dict:
        media_root = self.sources[self._index[i][0]].media_root
        media = open_media(record, media_root, self.processor, self.reader)
        media = self.repeats.apply(media, i // self.report["kept"], *map(int, self._index[i]))
        sample = chat.encode_messages(to_messages(record, media), media, self.processor, record.get("tools"))
        geometry.add_coordinates(sample, record, self.processor, media_root, self.max_depth_m, self.reader)
        sample["position_ids"] = self.positions(
            input_ids=sample["input_ids"][None], mm_token_type_ids=sample["mm_token_type_ids"][None],
            image_grid_thw=sample.get("image_grid_thw"), video_grid_thw=sample.get("video_grid_thw"),
            second_per_grid_ts=sample.get("second_per_grid_ts"),
        )[:, 0]
        sample["id"] = self._id(i, record)
        if record.get("target") is not None:
            sample["target"] = record["target"]
        if self.target_names:
            sample["targets"] = target_values(record, self.target_names)
        return sample

    def _line(self, i: int) -> int:
        source, row = self._index[i]
        return self._tables[source][int(row)]["row"]

    def _id(self, i: int, record: dict) -> str:
        own = record.get("id")
        return f"{self.sources[self._index[i][0]].annotation.stem}:{self._line(i)}" if own is None else str(own)

    def _where(self, i: int, record: dict) -> str:
        return f"{self.sources[self._index[i][0]].annotation}, row {self._line(i)} (id {self._id(i, record)})"

    # ---- before training

    def inspect(self, i: int) -> tuple[Measured, list[tuple[str, tuple[int, int]]]]:
        """Length and problem of sample `i`, and its files with what `lengths.stat_of` says of each."""
        number, row = self._index[i]
        source, entry = self.sources[number], self._tables[number][int(row)]
        if entry["problem"]:
            return Measured(0, 0, entry["problem"]), []
        record = self.record(i)
        problems = records.check_trained(record, source.media_root)
        if problems:
            return Measured(0, 0, "; ".join(problems)), []
        try:
            files = records.media_files(record, source.media_root)
            kept = [(str(file), lengths.stat_of(file)) for file in files]
            if self.max_depth_m is not None and record.get("scene") is not None:
                files = geometry.check_scene(record, source.media_root)
                kept += [(str(file), lengths.stat_of(file)) for file in files]
            if self.on_bad_sample == "skip":
                open_media(record, source.media_root, self.processor, self.reader)
            return Measured(*chat.count_tokens(record, self.processor, source.media_root, self.reader)), kept
        except UserError as error:
            return Measured(0, 0, str(error)), []

    def _kept_lengths(self) -> list[Lengths]:
        """What is known of each source's lengths."""
        how = lengths.digest(type(self).__name__, lengths.of_processor(self.processor), self.reader, self.max_depth_m,
                             self.on_bad_sample, os.environ.get(SYMLINKS))
        return [Lengths(lengths.digest(how, table_key(source.annotation), source.media_root.absolute()), len(table))
                for source, table in zip(self.sources, self._tables, strict=True)]

    def _measure(self, workers: int | None) -> tuple[np.ndarray, np.ndarray, dict[int, str]]:
        """(tokens, tokens of media, problem by sample); under "stop" the first problem is raised."""
        kept = self._kept_lengths()
        tokens, visual = (np.zeros(len(self._index), dtype=np.int64) for _ in range(2))
        for number, known in enumerate(kept):
            mine = self._index[:, 0] == number
            rows = self._index[mine, 1]
            tokens[mine], visual[mine] = known.tokens[rows], known.visual[rows]
        waiting, problems = np.flatnonzero(tokens == lengths.UNKNOWN), {}
        if workers is None:
            workers = min(8, os.cpu_count() or 1) if len(waiting) > WORKERS_ABOVE else 0
        loader = torch.utils.data.DataLoader(
            _Inspection(self, waiting), batch_size=64 if workers > 1 else 1, num_workers=workers if workers > 1 else 0,
            collate_fn=list,
        )
        quiet = len(waiting) < 200 or int(os.environ.get("LOCAL_RANK", 0)) != 0
        try:
            with tqdm(total=len(waiting), desc="checking samples", unit="", disable=quiet, file=sys.stderr) as bar:
                for i, (found, files) in zip(waiting, (row for batch in loader for row in batch), strict=True):
                    if found.problem and self.on_bad_sample == "stop":
                        raise UserError(f"{self._where(i, self.record(i))}: {found.problem} (scripts/check_data.py "
                                        "lists every bad row, --on_bad_sample skip leaves them out)")
                    tokens[i], visual[i] = found.tokens, found.visual
                    if found.problem:
                        problems[int(i)] = found.problem
                    else:
                        number, row = map(int, self._index[i])
                        kept[number].add(row, found, files)
                    bar.update()
        finally:
            for source in kept:
                source.save()
        return tokens, visual, problems

    def _keep(self, tokens: np.ndarray, visual: np.ndarray, problems: dict[int, str], limit: int | None,
              sampled: list[int]) -> None:
        too_long = [] if limit is None else np.flatnonzero(tokens > limit).tolist()
        reasons = problems | {i: f"{tokens[i]} tokens, more than {limit}" for i in too_long}
        dropped = [{"id": self._id(i, self.record(i)), "file": str(self.sources[self._index[i][0]].annotation),
                    "row": self._line(i), "reason": reason} for i, reason in sorted(reasons.items())]
        keep = np.ones(len(tokens), dtype=bool)
        keep[list(reasons)] = False
        self._index, self.lengths, self.visual = self._index[keep], tokens[keep], visual[keep]
        names = ", ".join(source.name for source in self.sources)
        if not len(self._index):
            raise UserError(f"no sample is left of {names}: {len(too_long)} have more than {limit} tokens "
                            f"(--model_max_length) and {len(problems)} are broken")
        kept = np.bincount(self._index[:, 0], minlength=len(self.sources))
        self.report = {
            "datasets": [
                {"name": source.name, "file": str(source.annotation), "records": len(table), "sampled": taken,
                 "kept": int(left)}
                for source, table, taken, left in zip(self.sources, self._tables, sampled, kept, strict=True)
            ],
            "kept": len(self._index), "too_long": len(too_long), "bad": len(problems),
            "empty_answers": self._count_empty_answers(),
            "tokens": {"max": int(self.lengths.max()), "mean": round(float(self.lengths.mean()), 1),
                       "total": int(self.lengths.sum())},
            "dropped": dropped,
        }

    def _count_empty_answers(self) -> int:
        """Answers without words in the samples that are kept; says so once, on the first process."""
        counts = [table.data.column("empty_answers").to_numpy() for table in self._tables]
        starts = np.cumsum([0, *map(len, counts)])
        found = np.concatenate(counts)[starts[self._index[:, 0]] + self._index[:, 1]]
        if found.any() and int(os.environ.get("LOCAL_RANK", 0)) == 0:
            first = int(np.flatnonzero(found)[0])
            log.warning("%d answers of %d samples are empty, which teaches to say nothing; the first is %s",
                        found.sum(), np.count_nonzero(found), self._where(first, self.record(first)))
        return int(found.sum())

    def _repeat(self, repeats: augment.Repeats) -> None:
        """Let sample i be repetition i // kept of record i % kept; a change leaves the number of tokens as it is."""
        self.repeats, times = repeats, repeats.samples_per_file
        self._index = np.tile(self._index, (times, 1))
        self.lengths, self.visual = np.tile(self.lengths, times), np.tile(self.visual, times)
        if times > 1:
            self.report |= {"samples_per_file": times, "augmented": repeats.changed, "samples": len(self._index)}


class _Inspection(torch.utils.data.Dataset):
    """`SupervisedDataset.inspect` of some samples as a data set, so that DataLoader workers can share the work."""

    def __init__(self, dataset: SupervisedDataset, samples: np.ndarray):
        self.dataset, self.samples = dataset, samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, i: int) -> tuple[Measured, list]:
        return self.dataset.inspect(int(self.samples[i]))


def sample_rows(count: int, rate: float, seed: str) -> list[int]:
    """Rows that `name%N` takes, ascending: the same for the same seed everywhere, and a larger N adds to a smaller."""
    if rate >= 1:
        return list(range(count))
    order = list(range(count))
    random.Random(seed).shuffle(order)
    return sorted(order[: max(1, int(count * rate))])


def table_key(annotation: Path) -> str:
    """Name of an annotation file's contents, as they are read."""
    return hashlib.sha256(f"{TABLE}:{annotation.suffix}:{sha256(annotation)}".encode()).hexdigest()[:24]


def open_table(annotation: Path):
    """Records of an annotation file as a memory-mapped table.

    The table is built once and kept in data/cache under the checksum of the file.

    Returns:
        datasets.Dataset with the columns `row` (its number in the file), `json` (the record), `problem` (why the row
        holds no record, `json` then having no more than its id; "" where it does) and `empty_answers` (how many answers
        of the record have no words).

    Raises:
        UserError: the file holds no rows.
    """
    import datasets
    from datasets.arrow_writer import ArrowWriter

    annotation = Path(annotation)
    file = cache_folder() / f"{annotation.stem}-{table_key(annotation)}.arrow"
    if not file.is_file():
        text = datasets.Value("large_string")
        number = datasets.Value("int64")
        features = datasets.Features({"row": number, "json": text, "problem": text, "empty_answers": number})
        with atomic_path(file) as temporary, ArrowWriter(path=str(temporary), features=features) as writer:
            count = 0
            for row, record in records.scan(annotation):
                problem = record.problem if isinstance(record, records.Defect) else ""
                if problem:
                    record = {} if record.id is None else {"id": record.id}
                text = to_json(record)
                empty = 0 if problem else len(records.empty_answers(record))
                writer.write({"row": row, "json": text, "problem": problem, "empty_answers": empty})
                count += 1
            if not count:
                raise UserError(f"annotation file {annotation} holds no records")
            writer.finalize()
    return datasets.Dataset.from_file(str(file))
