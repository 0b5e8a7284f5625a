"""Asks a fine-tuned model about a picture, a window of a cube, or whatever the user types."""

from __future__ import annotations

import os
import sys
import tempfile
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from overlays.data.matlab import parse_shape
from overlays.domains.base import data_of
from overlays.domains.cuprite import questions as q
from overlays.domains.cuprite.composites import USUAL
from overlays.domains.cuprite.domain import DOMAIN
from overlays.errors import UserError
from overlays.files import read_json
from overlays.flags import Parser, at_least


def parse(words: Sequence[str] | None = None) -> Namespace:
    """Flags of the command line."""
    parser = Parser(description="Ask a fine-tuned model about mineral tiles: a picture, a window of a cube, or with "
                    "scores the held-out area. With nothing to do it asks you.")
    parser.add_argument("--test", action="store_true", help="predict and score the test split, write a report; takes "
                        "the flags of python -m overlays.evaluate as well")
    parser.add_argument("--image", nargs="+", type=Path, metavar="FILE", help="PNG tile, one or all its composites; "
                        "for a model of all bands its .npy")
    parser.add_argument("--cube", type=Path, help="raw cube; with --window")
    parser.add_argument("--window", nargs=2, type=int, metavar=("ROW", "COL"), help="upper left pixel of the tile")
    parser.add_argument("--wavelengths", type=Path, help="of --cube: file of band centres, for cubes that name none")
    parser.add_argument("--scale", type=float, help="of --cube: reflectance = stored value / scale (default: the "
                        "cube's own)")
    parser.add_argument("--mat-variable", help="of --cube: name of the cube in a MATLAB file")
    parser.add_argument("--mat-shape", type=parse_shape, help="of --cube: rows,columns of a MATLAB matrix of bands x "
                        "pixels")
    parser.add_argument("--question", help="default: the three questions of the data set")
    parser.add_argument("--language", choices=("en", "zh"), default="en", help="of the default questions")
    parser.add_argument("--checkpoint", help="run folder, checkpoint or model (default: the newest cuprite run)")
    parser.add_argument("--base-model", help="base of the adapter, where it is not the one it names")
    parser.add_argument("--data", type=Path, help="prepared folder with the metadata.json of the training (default: "
                        "the run's own copy)")
    parser.add_argument("--max-new-tokens", type=at_least(1), default=DOMAIN.max_new_tokens)
    flags = parser.parse_args(words)
    if flags.image and flags.cube:
        raise UserError("--image and --cube exclude each other")
    if bool(flags.cube) != bool(flags.window):
        raise UserError("--cube and --window ROW COL belong together")
    if not flags.cube and any(value is not None for value in cube_options(flags).values()):
        raise UserError("--wavelengths, --scale, --mat-variable and --mat-shape belong to --cube")
    return flags


def cube_options(flags: Namespace) -> dict:
    """How --cube is read, as `open_cube` takes it."""
    return {key: getattr(flags, key) for key in ("wavelengths", "scale", "mat_variable", "mat_shape")}


class Answerer:
    """The model, loaded at the first question, so that a mistake in the files is told at once."""

    def __init__(self, flags: Namespace):
        self.flags, self._loaded = flags, None
        self.checkpoint, self.folder = DOMAIN.locate(flags)

    def load(self) -> tuple:
        """(model, processor)."""
        if self._loaded is None:
            from overlays.model.load import load_for_inference

            self._loaded = load_for_inference(self.checkpoint, self.flags.base_model)
            print(f"checkpoint {self.checkpoint} on {next(self._loaded[0].parameters()).device}")
        return self._loaded

    def ask(self, images: Sequence[Path], question: str, language: str = "en") -> str:
        """The model's answer to a question about images that lie anywhere."""
        from overlays.predict import answer

        files = [path.resolve() for path in images]
        root = Path(os.path.commonpath([path.parent for path in files]))
        names = [path.relative_to(root).as_posix() for path in files]
        turn = {"from": "human", "value": q.ask(question, names, language)}
        record = {"id": names[0], "image": names, "conversations": [turn]}
        return answer(*self.load(), record, root, self.flags.max_new_tokens)

    def metadata(self) -> dict:
        """metadata.json that the run holds, else that of --data or the usual data; {} where there is none."""
        for folder in (self.folder, self.folder.parent, self.flags.data or data_of(self.folder, "cuprite")):
            if (folder / "metadata.json").is_file():
                return read_json(folder / "metadata.json", {"parameters?": {"alteration_threshold?": float,
                                                                            "min_share?": float}})
        return {}


def with_siblings(images: Sequence[Path]) -> list[Path]:
    """The images; for a single composite whose other composites lie beside it, all of them, which it says.

    Raises:
        UserError: a file is not there.
    """
    for path in images:
        if not path.is_file():
            raise UserError(f"there is no image file {path}")
    tile, _, composite = images[0].stem.rpartition("_")
    if len(images) == 1 and composite in USUAL:
        family = [images[0].with_name(f"{tile}_{name}{images[0].suffix}") for name in USUAL]
        if all(path.is_file() for path in family):
            print(f"using all composites of {tile}: {', '.join(USUAL)}")
            return family
    return list(images)


def ask_all(answerer: Answerer, images: Sequence[Path], question: str | None, language: str) -> None:
    """Ask the user's question, or the three of the data set, and print the answers."""
    parameters = answerer.metadata().get("parameters", {})
    limits = {key: parameters[key] for key in ("alteration_threshold", "min_share") if key in parameters}
    for text in [question] if question else [q.question(task, language, **limits) for task in q.TASKS]:
        print(f"{text}\n  {answerer.ask(images, text, language)}")


def ask_about_window(answerer: Answerer, flags: Namespace) -> None:
    """Render a window of a raw cube as training saw it, and ask about it."""
    from overlays.domains.cuprite.prepare import render_window, window_raster

    metadata = answerer.metadata()
    if not metadata:
        raise UserError(f"there is no metadata.json in {answerer.folder}, which says how training rendered its tiles: "
                        "give --data, the folder of the prepared data")
    with tempfile.TemporaryDirectory() as folder:
        if metadata["parameters"].get("channels") == "all":
            files = [Path(folder) / "window.npy"]
            np.save(files[0], window_raster(flags.cube, *flags.window, metadata, **cube_options(flags)))
        else:
            pictures = render_window(flags.cube, *flags.window, metadata, **cube_options(flags))
            files = [Path(folder) / f"window_{name}.png" for name in pictures]
            for file, picture in zip(files, pictures.values(), strict=True):
                picture.save(file)
        ask_all(answerer, files, flags.question, flags.language)


def dialogue(answerer: Answerer, flags: Namespace) -> None:
    """Ask for a picture, then for questions about it, until `quit` or the end of the input."""
    try:
        import readline  # noqa: F401  (line editing)
    except ImportError:
        pass
    answerer.load()
    print("Give a PNG tile, then ask. An empty question asks the three of the data set, `image` takes another tile, "
          "`quit` ends.")
    images: list[Path] = []
    while True:
        try:
            line = input("question> " if images else "image> ").strip()
        except EOFError:
            print()
            return
        if line.lower() in ("quit", "exit"):
            return
        try:
            if line.lower() == "image":
                images = []
            elif images:
                ask_all(answerer, images, line, flags.language)
            elif line:
                images = with_siblings([Path(line.strip("'\"")).expanduser()])
        except UserError as error:
            print(f"error: {error}")


def main(words: Sequence[str] | None = None) -> None:
    """Command line without --test."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    flags = parse(sys.argv[1:] if words is None else words)
    images = with_siblings(flags.image) if flags.image else []
    answerer = Answerer(flags)
    if flags.cube:
        ask_about_window(answerer, flags)
    elif images:
        ask_all(answerer, images, flags.question, flags.language)
    else:
        dialogue(answerer, flags)
