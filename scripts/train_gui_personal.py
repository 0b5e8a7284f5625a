"""Personal stage of GUI grounding: K folds for each user, a small adapter each, on the global model."""

import argparse
import os
from pathlib import Path

import _bootstrap  # noqa: F401  (re-runs in .venv, puts the repository on the path)

from overlays import errors, runs
from overlays.errors import UserError

OUTPUTS = runs.ROOT / "outputs"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Train and test an adapter for each user and fold, from the global checkpoint. An interrupted "
                    "run goes on where it was.")
    parser.add_argument("--checkpoint", help="global model (default: the newest GUI run)")
    parser.add_argument("--data", type=Path, default=runs.ROOT / "data" / "prepared" / "gui")
    parser.add_argument("--split", default="test", help="whose users")
    parser.add_argument("--users", nargs="+", help="only these: ranges and lists such as 1-10 15")
    parser.add_argument("--output_dir", type=Path, default=OUTPUTS / "gui-personal")
    parser.add_argument("--folds", type=int, default=3, help="K, of each user")
    parser.add_argument("--folds_by", nargs="+", default=["episode", "sample"], choices=("episode", "sample"))
    parser.add_argument("--lora_r", type=int, default=8)
    parser.add_argument("--lora_alpha", type=int, default=32)
    parser.add_argument("--lora_dropout", type=float, default=0.05)
    parser.add_argument("--learning_rate", type=float, default=2e-5)
    parser.add_argument("--num_train_epochs", type=float, default=3)
    parser.add_argument("--per_device_train_batch_size", type=int, default=1)
    parser.add_argument("--gradient_accumulation_steps", type=int, default=4)
    parser.add_argument("--warmup_steps", type=float, default=5)
    parser.add_argument("--weight_decay", type=float, default=0.01)
    parser.add_argument("--max_pixels", type=int, default=28 * 28 * 1280)
    parser.add_argument("--min_pixels", type=int, default=28 * 28 * 16)
    parser.add_argument("--max_new_tokens", type=int, default=96)
    parser.add_argument("--eval_batch_size", type=int, default=16)
    parser.add_argument("--seed", type=int, default=42)
    return parser.parse_args()


def main() -> None:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    flags = parse()
    from overlays.domains.gui import personal
    from overlays.domains.gui.selection import of_users
    from overlays.predict import checkpoint_identity, load_records

    file = flags.data / f"{flags.split}.jsonl"
    if not file.is_file():
        raise UserError(f"there is no {file}: run scripts/prepare_gui.py, or give --data")
    records, media_root = load_records(str(file))
    records = of_users(records, flags.users, file)
    settings = personal.Settings(
        folds=flags.folds, kinds=tuple(dict.fromkeys(flags.folds_by)), lora_r=flags.lora_r,
        lora_alpha=flags.lora_alpha, lora_dropout=flags.lora_dropout, lr=flags.learning_rate,
        epochs=flags.num_train_epochs, batch_size=flags.per_device_train_batch_size,
        grad_accum=flags.gradient_accumulation_steps, warmup_steps=flags.warmup_steps,
        weight_decay=flags.weight_decay, max_new_tokens=flags.max_new_tokens, eval_batch_size=flags.eval_batch_size,
        min_pixels=flags.min_pixels, max_pixels=flags.max_pixels, seed=flags.seed,
    )
    work = personal.jobs(records, settings)
    checkpoint = runs.find_checkpoint(flags.checkpoint, OUTPUTS, "gui")
    print(f"{len(work)} adapters on {checkpoint} into {flags.output_dir}", flush=True)
    personal.run(work, checkpoint, media_root, flags.output_dir, settings, checkpoint_identity(checkpoint),
                 lambda text: print(text, flush=True))
    print(f"score them beside the global model: python scripts/evaluate_gui.py --personal {flags.output_dir}")


if __name__ == "__main__":
    errors.run(main)
