"""The domain of docs/adding-a-domain.md: pictures of one colour, and the question which it is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from overlays import paths
from overlays.data.splits import parse_fractions, split_groups
from overlays.domains.base import SPLITS, Domain, Metric, prepared_folder, write_metadata
from overlays.errors import UserError
from overlays.files import write_jsonl
from overlays.flags import option
from overlays.report import Cards, Sample, Section

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (40, 40, 230)}


@dataclass(frozen=True)
class Settings:
    """Prepare pictures of one colour; without --raw, the sample."""

    raw: Path | None = option(None, "folder of <number>-<colour>.png (default: the sample)")
    output: Path | None = option(None, "folder (default: data/prepared/hello)")
    side_px: int = option(64, "side of a prepared picture")
    split_fractions: tuple[float, float, float] = option((0.6, 0.2, 0.2), "train,val,test",
                                                         parse=parse_fractions)


class Hello(Domain):
    """One picture, one question, one word."""

    name, title, Settings = "hello", "Colours of pictures", Settings
    records, groups = "pictures", "pictures"
    metrics = (Metric("accuracy", "accuracy", over="{n} pictures"),)

    def sample(self, folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(30):
            name = list(COLOURS)[number % 3]
            Image.new("RGB", (96, 96), COLOURS[name]).save(folder / f"{number:02d}-{name}.png")
        return folder

    def prepare(self, settings: Settings) -> dict:
        raw = settings.raw or self.sample(paths.RAW / self.name / "sample")
        files = sorted(raw.glob("*-*.png"))
        if not files:
            raise UserError(f"{raw} holds no <number>-<colour>.png: give another --raw")
        with prepared_folder(settings.output, self.name) as folder:
            rows = list(self._records(files, folder, settings.side_px))
            splits = split_groups(rows, dict(zip(SPLITS, settings.split_fractions, strict=True)))
            for split, members in splits.items():
                write_jsonl(folder / f"{split}.jsonl", members)
            counts = {split: len(members) for split, members in splits.items()}
            return write_metadata(folder, self.name, {"counts": counts, "side_px": settings.side_px})

    def _records(self, files: Sequence[Path], folder: Path, side_px: int) -> Iterator[dict]:
        for file in files:
            with Image.open(file) as picture:
                picture.resize((side_px, side_px)).save(folder / file.name)
            yield {"id": file.stem, "group": file.stem, "image": file.name, "conversations": [
                {"from": "human", "value": "<image>\nWhich colour is this?"},
                {"from": "gpt", "value": file.stem.split("-")[1]}]}

    def score(self, predictions: Sequence[dict], train: Sequence[dict], data: Path) -> dict:
        usual = Counter(record["conversations"][-1]["value"] for record in train).most_common(1)[0][0]
        majority = self._accuracy([row | {"prediction": usual} for row in predictions])
        return {"n": len(predictions), "accuracy": self._accuracy(predictions),
                "baseline": {"majority": {"accuracy": majority}}}

    def _accuracy(self, rows: Sequence[dict]) -> float:
        return sum(row["prediction"] == row["answer"] for row in rows) / len(rows)

    def sections(self, predictions: Sequence[dict], metrics: dict, data: Path, out: Path) -> list[Section]:
        return [Section("Pictures", [Cards([
            Sample(row["id"], row["question"], row["prediction"], row["answer"], row["prediction"] == row["answer"],
                   [data / row["image"]]) for row in predictions])])]


HELLO = Hello()
