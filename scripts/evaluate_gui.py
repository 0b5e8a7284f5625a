"""Score a model on users' taps: click accuracy within 140 of the 0-1000 grid, L2 distances, per user and overall."""

import argparse
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import _bootstrap  # noqa: F401  (re-runs in .venv, puts the repository on the path)

from overlays import errors, report, runs
from overlays.errors import UserError
from overlays.files import write_json, write_jsonl

OUTPUTS = runs.ROOT / "outputs"
SHOWN = 8  # screens in the report
KEYS = (("click_accuracy", "click accuracy", "distance at most 140 of the 0-1000 grid, {n} taps", False),
        ("mean_l2", "mean L2", "grid units, {n} taps, an unread answer and one farther off count 1414", True),
        ("median_l2", "median L2", "grid units, {n} taps", True),
        ("parse_rate", "readable answers", "all {n} taps", False))


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", help="run, checkpoint, model folder or hub name (default: the newest GUI run)")
    parser.add_argument("--personal", type=Path, help="folder of the personal stage; its folds are scored instead")
    parser.add_argument("--users", nargs="+", help="only these: ranges and lists such as 1-10 15")
    parser.add_argument("--data", type=Path, default=runs.ROOT / "data" / "prepared" / "gui")
    parser.add_argument("--split", default="test")
    parser.add_argument("--output_dir", type=Path, help="its test/ takes the results (default: the checkpoint's own)")
    parser.add_argument("--base_model", help="base of an adapter, where it is not the one it names")
    parser.add_argument("--min_pixels", type=int, help="for a model without a run of ours")
    parser.add_argument("--max_pixels", type=int)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--max_new_tokens", type=int, default=96)
    flags = parser.parse_args(words)
    if flags.personal and flags.checkpoint:
        raise UserError("--personal and --checkpoint exclude each other: the folds name their own global model")
    return flags


def main() -> None:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    flags = parse()
    from overlays.data import records
    from overlays.domains.gui.selection import of_users
    from overlays.predict import load_records

    for name in ("train.jsonl", f"{flags.split}.jsonl"):
        if not (flags.data / name).is_file():
            raise UserError(f"there is no {name} in {flags.data}: run scripts/prepare_gui.py, or give --data")
    file = flags.data / f"{flags.split}.jsonl"
    chosen, media_root = load_records(str(file))
    chosen, train = of_users(chosen, flags.users, file), list(records.read(flags.data / "train.jsonl"))
    if flags.personal:
        score_personal(flags, chosen, train, media_root)
    else:
        score_checkpoint(flags, chosen, train, media_root)


# ---------------------------------------------------------------- one model

def score_checkpoint(flags: argparse.Namespace, chosen: list[dict], train: list[dict], media_root: Path) -> None:
    """Answer what is not answered yet, score, and write the report."""
    from overlays.domains.gui.score import score
    from overlays.predict import checkpoint_identity

    named = flags.checkpoint
    is_folder = named is None or Path(named).is_dir()
    checkpoint = runs.find_checkpoint(named, OUTPUTS, "gui") if is_folder else named
    if flags.output_dir:
        out = flags.output_dir / "test"
    else:
        out = (Path(checkpoint) if is_folder else OUTPUTS / str(checkpoint).replace("/", "--")) / "test"
    identity = (f"{checkpoint_identity(checkpoint, flags.base_model)} {flags.min_pixels} {flags.max_pixels} "
                f"{flags.max_new_tokens} {media_root.resolve()}")
    rows = answer_missing(flags, checkpoint, identity, chosen, media_root, out)
    metrics = score(rows, train) | {"checkpoint": str(checkpoint), "data": str(flags.data), "identity": identity}
    write_json(out / "metrics.json", metrics)
    print_table({"model": metrics, "best constant point": metrics["baseline"].get("constant")}, metrics)
    run = Path(checkpoint) if is_folder else None
    write_report(out / "report.html", metrics, rows, media_root, "GUI grounding: held-out users",
                 f"{metrics['n']} taps of {len(metrics['users'])} users. Checkpoint {shown(checkpoint)}.", run, {})
    print(f"report: {out / 'report.html'}")


def answer_missing(flags: argparse.Namespace, checkpoint: str | Path, identity: str, chosen: list[dict],
                   media_root: Path, out: Path) -> list[dict]:
    """Rows of the chosen records. What the same model was asked before is not asked again.

    Every row says which model answered it and what was asked, so that predictions.jsonl needs nothing beside it. A
    user's answers are written when they are whole; what is whole or under way is found again, whichever users are
    asked for then.
    """
    from overlays.domains.gui import rows
    from overlays.predict import predict

    file, model_name = out / "predictions.jsonl", rows.digest(identity)
    asked = [rows.marked(record, media_root, model_name) for record in chosen]
    ids, questions = {record["id"] for record in asked}, {record["asked"] for record in asked}
    parts = sorted(out.glob("user_*.new.jsonl"))
    done = {row["asked"]: row for place in (file, *parts) for row in rows.read(place)
            if row.get("answered_by") == model_name and (row["id"] not in ids or row["asked"] in questions)}
    missing = [record for record in asked if record["asked"] not in done]
    if len(missing) < len(asked):
        print(f"{len(asked) - len(missing)} of {len(asked)} answers are there from an earlier evaluation")
    if parts:
        write_jsonl(file, done.values())
        for part in parts:
            part.unlink()
    if missing:
        from overlays.data.media import MediaOptions, apply_resolution
        from overlays.domains.gui.coordinates import check_seen
        from overlays.model.load import load_for_inference

        model, processor = load_for_inference(checkpoint, flags.base_model)
        if flags.min_pixels or flags.max_pixels:
            apply_resolution(processor, MediaOptions(min_pixels=flags.min_pixels, max_pixels=flags.max_pixels))
        check_seen(missing, media_root, processor)
        print(f"checkpoint {shown(checkpoint)}: {len(missing)} taps to answer", flush=True)
        for user in dict.fromkeys(str(record["user"]) for record in missing):
            part = out / f"user_{user}.new.jsonl"
            new = predict(model, processor, [record for record in missing if str(record["user"]) == user], media_root,
                          flags.batch_size, flags.max_new_tokens, part, identity, print)
            done |= {row["asked"]: row for row in new}
            write_jsonl(file, done.values())
            part.unlink()
    return [done[record["asked"]] for record in asked]


# ---------------------------------------------------------------- the personal stage

def score_personal(flags: argparse.Namespace, chosen: list[dict], train: list[dict], media_root: Path) -> None:
    """Score the held-out folds of every user beside the global model on the same taps."""
    from overlays.domains.gui.score import score

    kinds = current_folds(flags.personal, chosen)
    scores = {f"personal, folds by {kind}": score(rows, train) for kind, rows in sorted(kinds.items()) if rows}
    first = "episode" if kinds.get("episode") else next(iter(kinds))
    main_rows, metrics = kinds[first], scores[f"personal, folds by {first}"]
    before = global_rows(flags, main_rows)
    stages = ({"global": score(before, train)} if before else {}) | scores
    out = flags.output_dir / "test" if flags.output_dir else flags.personal / "test"
    out.mkdir(parents=True, exist_ok=True)
    metrics = metrics | {"folds_by": first, "stages": {
        name: {key: row[key] for key in ("n", *(key for key, *_ in KEYS), "interval")} for name, row in stages.items()}}
    write_json(out / "metrics.json", metrics)
    write_jsonl(out / "predictions.jsonl", main_rows)
    print_table(stages | {"best constant point": metrics["baseline"].get("constant")}, metrics)
    if "global" in stages:
        print_gain(stages["global"], before, main_rows)
    write_report(out / "report.html", metrics, main_rows, media_root, "GUI grounding: personal adapters",
                 f"{metrics['n']} taps of {len(metrics['users'])} users, each answered by the adapter of the fold that "
                 f"held it out. Folds by {first}.", None, {name: row["users"] for name, row in stages.items()})
    print(f"report: {out / 'report.html'}")


def current_folds(folder: Path, chosen: Sequence[dict]) -> dict[str, list[dict]]:
    """Rows of the chosen records in the finished folds, by kind; folds and taps that are not there are told.

    Raises:
        UserError: there is none.
    """
    from overlays.domains.gui import personal, rows
    from overlays.predict import prediction_row

    records = rows.by_id(prediction_row(record, "") for record in chosen)
    kinds = {kind: [row for row in own if row["id"] in records and rows.same_question(row, records[row["id"]])]
             for kind, own in personal.read(folder).items()}
    if not any(kinds.values()):
        raise UserError(f"{folder} holds no fold of these users' taps as they are now: run "
                        "scripts/train_gui_personal.sh")
    left = personal.unfinished(folder)
    if left:
        print(f"note: {len(left)} folds are not finished: {', '.join(left[:10])}")
    for kind, own in kinds.items():
        there = {row["id"] for row in own}
        missing = [record for record in chosen if record["id"] not in there]
        if missing:
            users = ", ".join(dict.fromkeys(str(record["user"]) for record in missing))
            print(f"note: {len(missing)} of {len(chosen)} taps are in no finished fold by {kind}: user {users}")
    return kinds


def global_rows(flags: argparse.Namespace, chosen: Sequence[dict]) -> list[dict]:
    """The global model's predictions of the same taps, from its own evaluation; empty where it has none."""
    from overlays.domains.gui import personal, rows

    base = personal.checkpoint_of(flags.personal)
    folder = Path(base) if Path(base).is_absolute() else runs.ROOT / base
    file = folder / "test" / "predictions.jsonl"
    found = rows.by_id(rows.read(file))
    if all(row["id"] in found and rows.same_question(row, found[row["id"]]) for row in chosen):
        return [found[row["id"]] for row in chosen]
    print(f"note: no predictions of the global model for all these taps in {file}: "
          f"run python scripts/evaluate_gui.py --checkpoint {base} first to see both side by side")
    return []


def print_gain(before: dict, before_rows: list[dict], after_rows: list[dict]) -> None:
    """Paired gain in click accuracy with its 95 % bootstrap interval over episodes."""
    from overlays.domains.gui.score import gain

    value, (low, high) = gain(before_rows, after_rows)
    print(f"personal above global: {value:+.3f} (95 % interval {low:+.3f} to {high:+.3f}, by episode)")


# ---------------------------------------------------------------- output

def print_table(stages: dict[str, dict | None], metrics: dict) -> None:
    width = max(map(len, stages)) + 2
    print(f"{'':<{width}}{'n':>6}{'click accuracy':>16}{'95 % interval':>18}{'mean L2':>10}{'median L2':>11}"
          f"{'readable':>10}")
    for name, row in stages.items():
        if row:
            span = row.get("interval", {}).get("click_accuracy")
            between = f"{span[0]:.3f} to {span[1]:.3f}" if span else ""
            print(f"{name:<{width}}{row['n']:>6}{row['click_accuracy']:>16.3f}{between:>18}{row['mean_l2']:>10.1f}"
                  f"{row['median_l2']:>11.1f}{row['parse_rate']:>10.3f}")


def shown(checkpoint: str | Path) -> str:
    path = Path(checkpoint)
    return str(path.relative_to(runs.ROOT) if path.is_relative_to(runs.ROOT) else path)


def write_report(path: Path, metrics: dict, rows: list[dict], media_root: Path, title: str, lead: str,
                 run: Path | None, stages: dict[str, dict]) -> None:
    from overlays.data import records
    from overlays.domains.gui import pictures
    from overlays.domains.gui.score import RADIUS, distances, predicted_point

    constant = metrics["baseline"].get("constant", {})
    shown_rows = pictures.chosen(rows, SHOWN)
    users = [[f"user {user}", row["n"], row["click_accuracy"],
              "{:.3f} to {:.3f}".format(*row["interval"]["click_accuracy"]), row["mean_l2"], row["median_l2"],
              row["parse_rate"]] for user, row in metrics["users"].items()]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        cards = []
        for number, (row, distance) in enumerate(zip(shown_rows, distances(shown_rows), strict=True)):
            file = folder / f"{number}.png"
            screenshot = media_root / records.media_names(row, "image")[0]
            pictures.draw_tap(screenshot, row["grid"], predicted_point(row)).save(file)
            cards.append(report.Sample(f"user {row['user']}, {row['episode']}", row["question"].split("\n")[0],
                                       row["prediction"], row["answer"], bool(distance <= RADIUS), [file]))
        bars = folder / "users.png"
        pictures.draw_users(stages or {"model": metrics["users"]}, bars)
        interval = metrics["interval"]["click_accuracy"]
        sections = [
            report.section("Figures", report.figures(
                [report.Figure(label, over.format(**metrics), metrics[key], constant.get(key), lower)
                 for key, label, over, lower in KEYS]),
                report.paragraph(f"95 % bootstrap interval of the click accuracy over episodes: {interval[0]:.3f} to "
                                 f"{interval[1]:.3f}. The baseline is the point within {RADIUS} of which most taps of "
                                 "the training users lie.", True)),
            report.section("Stages", report.table(
                ["stage", "n", "click accuracy", "from", "to", "mean L2", "median L2", "readable"],
                [[name, row["n"], row["click_accuracy"], *row["interval"]["click_accuracy"], row["mean_l2"],
                  row["median_l2"], row["parse_rate"]] for name, row in metrics.get("stages", {}).items()])
                           if metrics.get("stages") else ""),
            report.section("Users", report.picture(bars, "Click accuracy by user, with 95 % intervals."), report.table(
                ["user", "taps", "click accuracy", "95 % interval", "mean L2", "median L2", "readable"], users)),
            report.section("Training", report.picture(run / "training_loss.png", "Loss during training.")
                           if run else ""),
            report.section("Screens", report.paragraph(
                f"Evenly spread over the taps, not picked by result. Cross: the true tap; ellipse: {RADIUS} grid units "
                "around it, as measured; dot: the prediction.", True), report.samples(cards)),
        ]
        report.write(path, title, lead, sections, "python scripts/evaluate_gui.py")


if __name__ == "__main__":
    errors.run(main)
