"""What a domain is: the two ends of the data flow, and the types that it shares with `prepare` and `evaluate`."""

from __future__ import annotations

import logging
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import cached_property
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Self

import numpy as np

from overlays import paths, registry, runs
from overlays.errors import UserError
from overlays.files import OWN_JSON_BYTES, complete_folder, read_json, write_json
from overlays.paths import relative
from overlays.report import Section

log = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")
KIND = "prepared data"
DRAWS = 2000  # of a bootstrap


@dataclass(frozen=True)
class Metric:
    """One row of the table of metrics.

    Attributes:
        key: in what `Domain.score` returns.
        over: the denominator in words; {n} and the like are taken from the metrics.
    """

    key: str
    label: str
    unit: str = ""
    decimals: int = 3
    lower_is_better: bool = False
    over: str = ""


@dataclass(frozen=True)
class Conventions:
    """How raw files are read; each field of a domain's subclass is a flag of prepare."""

    @classmethod
    def of(cls, settings) -> Self:
        """Those of a domain's `Settings`."""
        return cls(**{item.name: getattr(settings, item.name) for item in fields(cls)})

    def flags(self, other: Conventions) -> tuple[str, ...]:
        """("--name value", ...) of the fields that differ from those of `other`."""
        return tuple(f"--{name.replace('_', '-')} {f'{value:g}' if isinstance(value, float) else value}"
                     for name, value in vars(self).items() if value != getattr(other, name))


@dataclass
class Evaluation:
    """A checkpoint, the records that it answers, and where the results go.

    Attributes:
        checkpoint: a folder, or a name on the hub.
        folder: where the results of this checkpoint lie; the checkpoint itself where it is a folder.
        data: folder of the prepared data; `records` are those of its `split`, `train` its training records.
        out: <folder>/<split>.
        flags: those of the command line, the domain's own among them.
    """

    checkpoint: str | Path
    folder: Path
    data: Path
    split: str
    records: list[dict]
    train: list[dict]
    media_root: Path
    out: Path
    flags: Namespace

    @cached_property
    def loaded(self) -> tuple:
        """(model, processor) of the checkpoint."""
        from overlays.model import load

        model, processor = load.load_for_inference(self.checkpoint, self.flags.base_model)
        log.info("checkpoint %s on %s", self.checkpoint, next(model.parameters()).device)
        return model, processor

    def answers(self, keep: bool = False) -> list[dict]:
        """Rows of predictions.jsonl: every record with the text that the model answers; resumed where interrupted.

        Args:
            keep: as in `predict.predict`.
        """
        from overlays import predict

        return predict.predict(*self.loaded, self.records, self.media_root, self.flags.batch_size,
                               self.answer_length(self.loaded[1]), self.out / "predictions.jsonl",
                               predict.checkpoint_identity(self.checkpoint, self.flags.base_model), log.info, keep)

    def base_answers(self) -> list[dict]:
        """The same of the model that was fine-tuned, at the resolution it was fine-tuned with."""
        from overlays import predict
        from overlays.model import load

        base = self.flags.base_model or (runs.read_run(self.folder) or {}).get("base_model")
        if not base:
            raise UserError(f"--compare-base: {self.checkpoint} has no run.json that names its base model; give "
                            "--base-model")
        model, processor = load.load_for_inference(base)[0], load.load_processor(self.checkpoint)
        log.info("base model %s", base)
        return predict.predict(model, processor, self.records, self.media_root, self.flags.batch_size,
                               self.answer_length(processor), self.out / "base_predictions.jsonl",
                               predict.checkpoint_identity(base), log.info)

    def answer_length(self, processor) -> int:
        """--max-new-tokens, or the tokens of the longest true answer and a quarter more."""
        from overlays.predict import last_turns

        if self.flags.max_new_tokens:
            return self.flags.max_new_tokens
        texts = [last_turns(record)[1] for record in self.records]
        return int(1.25 * max(len(processor.tokenizer(text)["input_ids"]) for text in texts)) + 8


class Domain:
    """A domain: raw data -> records with `prepare`, predictions -> metrics with `score`. A subclass is one domain.

    `name`, `title`, `Settings`, `metrics`, `sample`, `prepare` and `score` are what every domain has. The others have
    defaults that suit records with one true answer in words.

    Attributes:
        name: of its data sets, <name>_train and so on, and of its folders.
        title: of its reports.
        Settings: dataclass of `flags.option` fields, among them `output`; each is a flag of `overlays.prepare`.
        metrics: rows of its table.
        records: what one record is called, in the plural.
        groups: what is drawn with replacement for the intervals, in the plural; see `group`.
        max_new_tokens: of an answer; None takes the longest true answer and a quarter more.
        baselines: headings of what `score` returns under "baseline", where the key does not serve.
    """

    name: str
    title: str
    Settings: type
    metrics: Sequence[Metric]
    records: str = "records"
    groups: str = "groups"
    batch_size: int = 32
    max_new_tokens: int | None = None
    baselines: Mapping[str, str] = MappingProxyType({})

    def sample(self, folder: Path) -> Path:
        """Write a small raw data set into a folder, the same every time; the path that `prepare` reads."""
        return import_module(f"overlays.samples.{self.name}").write(folder)

    def prepare(self, settings) -> dict:
        """Write {train,val,test}.jsonl, media and metadata.json to `settings.output`; the metadata."""
        raise NotImplementedError

    def score(self, predictions: Sequence[dict], train: Sequence[dict], data: Path) -> dict:
        """Metrics of rows of predictions.jsonl: `n`, a value for each of `metrics`, and `baseline`."""
        raise NotImplementedError

    # ---- prepare

    def output(self, settings) -> Path:
        """Folder of the prepared data where --output names none."""
        return paths.PREPARED / self.name

    def summary(self, metadata: dict, output: Path) -> Iterable[str]:
        """What `overlays.prepare` prints of the metadata, line by line."""
        return [f"{split}: {count}" for split, count in metadata.get("counts", {}).items()]

    # ---- evaluate

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Add the domain's own flags to those of `overlays.evaluate`."""

    def handle(self, flags: Namespace) -> bool:
        """Do what the domain's own flags ask for in place of an evaluation; whether they did."""
        return False

    def locate(self, flags: Namespace) -> tuple[str | Path, Path]:
        """(the checkpoint that is meant, folder for its results)."""
        named = flags.checkpoint
        if named and not Path(named).is_dir() and named.count("/") == 1 and not named.startswith("."):
            return named, paths.OUTPUTS / named.replace("/", "--")
        checkpoint = runs.find_checkpoint(named, paths.OUTPUTS, self.name)
        if runs.is_run(checkpoint):
            return checkpoint, checkpoint
        return checkpoint, paths.OUTPUTS / "--".join(checkpoint.resolve().parts[-2:])  # nothing into a user's model

    def check(self, evaluation: Evaluation) -> None:
        """Raise UserError for what cannot be scored, before a model is loaded. May narrow `evaluation.records`."""

    def predict(self, evaluation: Evaluation) -> tuple[list[dict], dict]:
        """(rows of predictions.jsonl, facts that go into metrics.json)."""
        return evaluation.answers(), {}

    def group(self, row: Mapping) -> str:
        """What a row belongs together with: rows of a group are not independent of each other."""
        return str(next((row[key] for key in ("group", "clip", "scene", "user", "id") if row.get(key)), ""))

    def statistic(self, predictions: Sequence[dict], train: Sequence[dict], data: Path) -> Callable:
        """Function: numbers of rows, which may repeat -> their metrics. For the intervals, so it should be fast."""
        return lambda rows: self.score([predictions[row] for row in rows], train, data)

    def columns(self, metrics: dict) -> dict[str, dict]:
        """Heading -> the metrics that stand beside the model's, the strongest baseline included."""
        return {self.baselines.get(name, name): row for name, row in metrics["baseline"].items() if row}

    def notes(self, metrics: dict) -> list[str]:
        """Sentences below the table; the first one is printed as well."""
        return []

    def sections(self, predictions: Sequence[dict], metrics: dict, data: Path, out: Path) -> list[Section]:
        """Pictures and tables of the report; files of their own go into `out`."""
        return []

    def finish(self, evaluation: Evaluation, predictions: Sequence[dict], metrics: dict) -> None:
        """What the domain's own flags ask for after the report."""


# ---------------------------------------------------------------- intervals

def intervals(statistic: Callable[[np.ndarray], Mapping], groups: Sequence, keys: Sequence[str], seed: int = 0,
              draws: int = DRAWS) -> dict[str, list[float]]:
    """95 % percentile bootstrap intervals, {key: [low, high]}; a key without a value in any draw is left out.

    Args:
        statistic: (m,) numbers of rows -> values by key, None where there is none.
        groups: the group of each row. Groups are drawn with replacement, as many as there are.
    """
    generator = np.random.default_rng(seed)
    numbers = np.unique(np.asarray(groups), return_inverse=True)[1]
    members = [np.flatnonzero(numbers == number) for number in range(numbers.max() + 1)]
    drawn: dict[str, list[float]] = {key: [] for key in keys}
    for _ in range(draws):
        groups_drawn = generator.integers(len(members), size=len(members))
        values = statistic(np.concatenate([members[group] for group in groups_drawn]))
        for key in keys:
            if values.get(key) is not None:
                drawn[key].append(values[key])
    return {key: [float(end) for end in np.percentile(column, [2.5, 97.5])] for key, column in drawn.items() if column}


# ---------------------------------------------------------------- prepared data

def read_metadata(folder: Path) -> dict | None:
    """metadata.json of a folder; None where there is none or it is damaged."""
    try:
        return read_json(folder / "metadata.json", limit=OWN_JSON_BYTES)
    except UserError:
        return None


def prepared_domain(folder: Path) -> str | None:
    """The domain whose prepared data a folder holds; None for anything else, such as a run with its copy of metadata.

    Data prepared before version 0.2 name no kind, and those of the domain gui no domain either.
    """
    metadata = read_metadata(folder)
    annotated = any((folder / f"{name}.jsonl").is_file() for name in (*SPLITS, "motion"))
    if metadata is None or not annotated or (folder / "run.json").exists() or metadata.get("kind", KIND) != KIND:
        return None
    return metadata.get("domain") or ("gui" if "convention" in metadata else None)


def unfinished_mark(folder: Path, domain: str) -> Path:
    """The file that says that an interrupted `prepare` of this domain began to fill a folder."""
    return Path(folder) / f".{domain}"


def check_output(output: Path, domain: str) -> None:
    """Raise UserError where `output` is a file, or a folder that holds anything but prepared data of the domain."""
    if output.exists() and not output.is_dir():
        raise UserError(f"output {output} is a file: give a folder")
    if not output.is_dir() or unfinished_mark(output, domain).is_file():
        return
    names = sorted(path.name for path in output.iterdir() if not path.name.startswith("."))
    owner = prepared_domain(output) if names else domain
    if owner != domain:
        what = (f"prepared data of the domain {owner}" if owner else "a training run" if "run.json" in names
                else f"other files ({names[0]})")
        raise UserError(f"output folder {output} holds {what}, which prepare does not replace: give an empty or new "
                        "folder")


@contextmanager
def prepared_folder(output: Path, domain: str) -> Iterator[Path]:
    """A new folder that takes the place of `output` at the end, complete or not at all; see `check_output`."""
    with complete_folder(output, lambda folder: check_output(folder, domain)) as folder:
        yield folder


def parameters(settings) -> dict:
    """Settings as metadata.json keeps them: paths inside the project relative to it; without `output` and `workers`."""
    values = {item.name: getattr(settings, item.name) for item in fields(settings)}
    return {name: relative(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
            for name, value in values.items() if name not in ("output", "workers")}


def write_metadata(folder: Path, domain: str, metadata: Mapping) -> dict:
    """Write metadata.json with the mark that says whose data the folder holds; what was written."""
    marked = {"kind": KIND, "domain": domain, **metadata}
    write_json(folder / "metadata.json", marked)
    return marked


# ---------------------------------------------------------------- what a run has seen

def training_sources(run: Path) -> list[dict]:
    """{"name", "sha256"} of the annotation files that a run was trained on, and those of the runs it started from."""
    sources, folders = [], []
    while run is not None and run.resolve() not in folders:
        folders.append(run.resolve())
        described = runs.read_run(run) or {}
        sources += described.get("data", {}).get("train") or []
        base = str(described.get("base_model") or "")
        candidates = [Path(base), paths.ROOT / base] if base else []
        run = next((folder for folder in candidates if folder.is_dir()), None)
    return sources


def data_of(run: Path, domain: str) -> Path:
    """The prepared folder that a run was trained on, where it is still there; else the domain's usual one."""
    for row in training_sources(run):
        name = row["name"]
        named = Path(name) if name.endswith(registry.ANNOTATION_SUFFIXES) else None
        folders = [named.parent, paths.ROOT / named.parent] if named else [paths.PREPARED / name.rpartition("_")[0]]
        for folder in folders:
            if prepared_domain(folder) == domain:
                return folder
    return paths.PREPARED / domain
