"""Dataset names -> annotation file, media root and sampling rate."""

import difflib
import pkgutil
import re
from dataclasses import dataclass
from pathlib import Path

from overlays.errors import UserError
from overlays.files import read_json
from overlays.paths import PACKAGE, ROOT
from overlays.upstream import tree as upstream

USER_FILE = Path("data") / "datasets.json"
SPLITS = ("train", "val", "test")
ANNOTATION_SUFFIXES = (".json", ".jsonl", ".parquet")
_ELSEWHERE = re.compile(rf"(.+(?:{'|'.join(map(re.escape, ANNOTATION_SUFFIXES))}))@(.+)")
# By their folders: the domains themselves are a layer above and are not imported here.
DOMAINS = sorted(module.name for module in pkgutil.iter_modules([str(PACKAGE / "domains")]) if module.ispkg)


@dataclass(frozen=True)
class Dataset:
    """One data set of a run. `rate` is the share of its records that is used, in (0, 1].

    `annotation` is a .json, .jsonl or .parquet file, or a folder that `datasets.save_to_disk` wrote.
    """

    name: str
    annotation: Path
    media_root: Path
    rate: float = 1.0


def resolve(names: str, root: Path = ROOT) -> list[Dataset]:
    """Data sets of a comma-separated list such as "cuprite_train,mine%30,path/to/file.jsonl".

    A name is `<domain>_<train|val|test>` (a prepared domain), a key of data/datasets.json or of upstream's data_dict,
    or the path of an annotation file or saved data set, whose media are then relative to the folder it lies in;
    "file.jsonl@folder" names another folder. `%N` behind it takes N percent of the records.

    Raises:
        UserError: an unknown name (the near misses are given), a missing file, a rate outside (0, 100].
    """
    words = [word.strip() for word in names.split(",") if word.strip()]
    if not words:
        raise UserError(f"no data set is named in {names!r}; known names: {', '.join(known(root)) or 'none'}")
    return [_resolve_one(word, Path(root)) for word in words]


def available(root: Path = ROOT) -> list[Dataset]:
    """Data sets that can be used by name right now: those of `known` whose annotation file is there."""
    named = _named(Path(root))
    return [Dataset(name, *named[name]) for name in known(root) if named[name][0].exists()]


def known(root: Path = ROOT) -> list[str]:
    """Names that can be used without a path: splits of every domain, the user's own, upstream's whose file is there."""
    theirs = upstream.data_sets(Path(root))
    return sorted(name for name, paths in _named(Path(root)).items() if name not in theirs or paths[0].is_file())


def _named(root: Path) -> dict[str, tuple[Path, Path]]:
    """name -> (annotation file, media root). A prepared domain goes before upstream's, the user's own before both."""
    return upstream.data_sets(root) | _prepared_sets(root) | _user_sets(root)


def _prepared_sets(root: Path) -> dict[str, tuple[Path, Path]]:
    prepared = root / "data" / "prepared"
    domains = {*DOMAINS} | {path.name for path in prepared.glob("*") if path.is_dir()}
    return {
        f"{domain}_{split}": (prepared / domain / f"{split}.jsonl", prepared / domain)
        for domain in domains for split in SPLITS
    }


def _resolve_one(word: str, root: Path) -> Dataset:
    name, rate = _split_rate(word)
    named = _named(root)
    if name in named:
        annotation, media_root = named[name]
        if not annotation.is_file() and name in _prepared_sets(root) and name not in _user_sets(root):
            raise UserError(f"data set {name} is not prepared: {annotation} is missing; "
                            f"run python -m overlays.prepare {name.rpartition('_')[0]} first")
    elif match := _ELSEWHERE.fullmatch(name):
        annotation, media_root = Path(match[1]), Path(match[2])
    elif name.endswith(ANNOTATION_SUFFIXES) or Path(name).is_dir():
        annotation = Path(name)
        media_root = upstream.media_root(annotation, root) or annotation.parent
    else:
        near = difflib.get_close_matches(name, known(root), n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known names: {', '.join(known(root))}"
        raise UserError(f"unknown data set {name!r}; {hint} (own ones go into {USER_FILE})")
    if not annotation.exists():
        raise UserError(f"data set {name}: there is no annotation file {annotation}")
    if not media_root.is_dir():
        raise UserError(f"data set {name}: there is no media folder {media_root}")
    return Dataset(name, annotation, media_root, rate)


def _split_rate(word: str) -> tuple[str, float]:
    """("name", share) of "name%30"; the share of a bare name is 1."""
    match = re.search(r"%(\d+(?:\.\d+)?)$", word)
    if not match:
        return word, 1.0
    rate = float(match[1]) / 100
    if not 0 < rate <= 1:
        raise UserError(f"{word!r}: the number behind % must be above 0 and at most 100")
    return word[: match.start()], rate


def _user_sets(root: Path) -> dict[str, tuple[Path, Path]]:
    """name -> (annotation file, media root) of data/datasets.json; relative paths start at the repository."""
    file = root / USER_FILE
    if not file.is_file():
        return {}
    rows = read_json(file, {str: {"annotation_path": str, "data_path?": str}},
                     'write {"name": {"annotation_path": ..., "data_path": ...}}')
    return {name: (root / row["annotation_path"],
                   root / (row.get("data_path") or Path(row["annotation_path"]).parent)) for name, row in rows.items()}
