"""Command of the personal stage: K folds for each user, a small adapter each, on the global model."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from overlays import paths
from overlays.domains.gui import personal
from overlays.domains.gui.users import of_users
from overlays.errors import UserError
from overlays.flags import Parser, add_settings, read_settings


def main(words: Sequence[str] | None = None) -> None:
    """Command line of scripts/train_gui_personal.py."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    parser = Parser(description=personal.Settings.__doc__, allow_abbrev=False)
    parser.add_argument("--checkpoint", help="global model (default: the newest GUI run)")
    parser.add_argument("--data", type=Path, default=paths.PREPARED / "gui")
    parser.add_argument("--split", default="test", help="whose users")
    parser.add_argument("--users", nargs="+", help="only these: ranges and lists such as 1-10 15")
    parser.add_argument("--output-dir", type=Path, default=paths.OUTPUTS / "gui-personal")
    add_settings(parser, personal.Settings)
    flags, training = parser.parse_known_args(words)
    from overlays.domains.gui import adapters
    from overlays.predict import load_records
    from overlays.runs import find_checkpoint, lock

    file = flags.data / f"{flags.split}.jsonl"
    if not file.is_file():
        raise UserError(f"there is no {file}: run python -m overlays.prepare gui, or give --data")
    records, media_root = load_records(str(file))
    settings = read_settings(flags, personal.Settings)
    checkpoint = find_checkpoint(flags.checkpoint, paths.OUTPUTS, "gui")
    seed = adapters.read_flags(training, checkpoint)["seed"]
    work = personal.jobs(of_users(records, flags.users, file), settings, seed=seed)
    print(f"{len(work)} adapters on {checkpoint} into {flags.output_dir}", flush=True)
    with lock(flags.output_dir):
        adapters.run(work, checkpoint, media_root, flags.output_dir, settings, training,
                     lambda text: print(text, flush=True))
    print(f"score them beside the global model: python scripts/evaluate_gui.py --personal {flags.output_dir}")
