"""Convert a data set between Hugging Face `messages` and the training format, every row, without loss."""

from pathlib import Path

import _bootstrap  # noqa: F401  (re-runs in .venv, puts the repository on the path)

from overlays import errors
from overlays.flags import Parser


def main() -> None:
    parser = Parser(description="Convert a data set between Hugging Face messages and the training format; rows are "
                    "told apart by their keys unless --to says otherwise.")
    parser.add_argument("input", type=Path, help=".jsonl, .json, .parquet or a data set folder (save_to_disk)")
    parser.add_argument("--output", type=Path, required=True, help="the same forms, by suffix; none is a folder")
    parser.add_argument("--to", choices=("training", "messages"), help="what to write (default: the other one)")
    options = parser.parse_args()
    from overlays.data.convert import convert

    rows, form = convert(options.input, options.output, options.to)
    print(f"{rows} rows as {form}: {options.output}")


if __name__ == "__main__":
    errors.run(main)
