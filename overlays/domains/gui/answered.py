"""Answers that are there already: of an earlier evaluation, of finished folds, of the global model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from overlays.domains.base import Evaluation
from overlays.domains.gui import rows as stored
from overlays.errors import UserError
from overlays.files import write_jsonl


def answer_missing(evaluation: Evaluation) -> list[dict]:
    """Rows of the records. What the same model was asked before is not asked again.

    Every row says which model answered it and what was asked, so that predictions.jsonl needs nothing beside it. A
    user's answers are written when they are complete; what is complete or under way is found again, whichever users
    are asked for then.
    """
    from overlays.predict import checkpoint_identity

    flags, out, root = evaluation.flags, evaluation.out, evaluation.media_root
    identity = (f"{checkpoint_identity(evaluation.checkpoint, flags.base_model)} {flags.min_pixels} {flags.max_pixels} "
                f"{flags.max_new_tokens} {root.resolve()}")
    file, model_name = out / "predictions.jsonl", stored.digest(identity)
    asked = [stored.marked(record, root, model_name) for record in evaluation.records]
    ids, questions = {record["id"] for record in asked}, {record["asked"] for record in asked}
    parts = sorted(out.glob("user_*.new.jsonl"))
    done = {row["asked"]: row for place in (file, *parts) for row in stored.read(place)
            if row.get("answered_by") == model_name and (row["id"] not in ids or row["asked"] in questions)}
    missing = [record for record in asked if record["asked"] not in done]
    if len(missing) < len(asked):
        print(f"{len(asked) - len(missing)} of {len(asked)} answers are there from an earlier evaluation")
    if parts:
        write_jsonl(file, done.values())
        for part in parts:
            part.unlink()
    if missing:
        _answer(evaluation, missing, identity, done)
    return [done[record["asked"]] for record in asked]


def _answer(evaluation: Evaluation, missing: Sequence[dict], identity: str, done: dict[str, dict]) -> None:
    """Answer user by user and add the rows to `done` and to predictions.jsonl."""
    from overlays.data.media import MediaOptions, apply_resolution
    from overlays.domains.gui.coordinates import check_seen
    from overlays.predict import predict

    flags, (model, processor) = evaluation.flags, evaluation.loaded
    if flags.min_pixels or flags.max_pixels:
        apply_resolution(processor, MediaOptions(min_pixels=flags.min_pixels, max_pixels=flags.max_pixels))
    check_seen(missing, evaluation.media_root, processor)
    for user in dict.fromkeys(str(record["user"]) for record in missing):
        part = evaluation.out / f"user_{user}.new.jsonl"
        new = predict(model, processor, [record for record in missing if str(record["user"]) == user],
                      evaluation.media_root, flags.batch_size, evaluation.answer_length(processor), part, identity,
                      print)
        done |= {row["asked"]: row for row in new}
        write_jsonl(evaluation.out / "predictions.jsonl", done.values())
        part.unlink()


def current_folds(folder: Path, records: Sequence[dict]) -> dict[str, list[dict]]:
    """Rows of the records in the finished folds, by kind; folds and taps that are missing are reported.

    Raises:
        UserError: there is none.
    """
    from overlays.domains.gui import personal
    from overlays.predict import prediction_row

    asked = stored.by_id(prediction_row(record, "") for record in records)
    kinds = {kind: [row for row in rows if row["id"] in asked and stored.same_question(row, asked[row["id"]])]
             for kind, rows in personal.read(folder).items()}
    if not any(kinds.values()):
        raise UserError(f"{folder} holds no fold of these users' taps as they are now: run "
                        "scripts/train_gui_personal.sh")
    left = personal.unfinished(folder)
    if left:
        print(f"note: {len(left)} folds are not finished: {', '.join(left[:10])}")
    for kind, rows in kinds.items():
        present = {row["id"] for row in rows}
        missing = [record for record in records if record["id"] not in present]
        if missing:
            users = ", ".join(dict.fromkeys(str(record["user"]) for record in missing))
            print(f"note: {len(missing)} of {len(records)} taps are in no finished fold by {kind}: user {users}")
    return kinds


def global_rows(folder: Path, rows: Sequence[dict]) -> list[dict]:
    """The global model's predictions of the same taps, from its own evaluation; empty where it has none."""
    file = folder / "predictions.jsonl"
    answered = stored.by_id(stored.read(file))
    if all(row["id"] in answered and stored.same_question(row, answered[row["id"]]) for row in rows):
        return [answered[row["id"]] for row in rows]
    print(f"note: no predictions of the global model for all these taps in {file}: run python scripts/evaluate_gui.py "
          f"--checkpoint {folder.parent} --split {folder.name} first to see both side by side")
    return []
