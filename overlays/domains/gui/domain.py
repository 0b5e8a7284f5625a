"""GUI grounding: users' taps on their own screens -> questions and points, scores by user."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from overlays import paths, report
from overlays.data import records
from overlays.domains.base import Domain, Evaluation, Metric
from overlays.domains.gui import conventions, personal, plots, prepare, score
from overlays.domains.gui.users import of_users
from overlays.errors import UserError
from overlays.files import write_jsonl
from overlays.report import Cards, Paragraph, Picture, Section, Table

SHOWN = 8  # screens in the report
USERS_SHOWN = 10  # on the screen of prepare, those who agree least


class Gui(Domain):
    """Taps of users, answered with a point."""

    name, title, Settings = "gui", "GUI grounding: held-out users", prepare.Settings
    records, groups, max_new_tokens = "taps", "episodes", 96
    metrics = (
        Metric("click_accuracy", "click accuracy", over=f"distance at most {score.RADIUS} of the 0-1000 grid, "
               "{n} taps"),
        Metric("mean_l2", "mean L2", "grid units", 1, lower_is_better=True, over="{n} taps, an unread answer and one "
               "farther off count 1414"),
        Metric("median_l2", "median L2", "grid units", 1, lower_is_better=True, over="{n} taps"),
        Metric("parse_rate", "parse rate", over="all {n} taps"),
    )

    def prepare(self, settings: prepare.Settings) -> dict:
        return prepare.prepare(settings)

    def summary(self, metadata: dict, output: Path) -> Iterable[str]:
        for split, counts in metadata["counts"].items():
            yield f"{split:<6}{counts['taps']:>7} taps{counts['episodes']:>6} episodes{counts['users']:>5} users"
            missing = metadata["users_without_taps"][split]
            if missing:
                yield f"note: {split} users without taps: {', '.join(map(str, missing))}"
        other = ", ".join(f"{count} {name}" for name, count in metadata["other_actions"].items())
        if other:
            yield f"actions other than taps: {other}"
        yield from (f"note: {sentence}" for sentence in metadata["notes"])
        by_user = metadata["consistency"]
        yield f"consistency: {conventions.in_words(conventions.together(list(by_user.values())))}"
        worst = sorted(by_user, key=lambda user: conventions.disagreement(by_user[user]), reverse=True)
        for user in worst[:USERS_SHOWN]:
            yield f"  user {user}: {conventions.in_words(by_user[user])}"
        if len(by_user) > USERS_SHOWN:
            yield f"  {len(by_user) - USERS_SHOWN} more users, who agree at least as well, are in metadata.json"
        if broken := metadata["broken_view_hierarchies"]:
            yield (f"view hierarchies left out: {prepare.reasons(broken)} (each listed in metadata.json; the answer "
                   "names the part of the screen)")
        for what, name in (("taps of users in no split", "users_in_no_split"), ("turns of other roles", "other_roles")):
            if metadata[name]:
                named = ", ".join(f"{count} of {key}" for key, count in list(metadata[name].items())[:20])
                yield f"note: {what} are left out: {named}"
        if metadata["drops"]:
            yield f"dropped: {prepare.reasons(metadata['drops'])} (each listed in metadata.json)"
        yield "points on the " + ("0-1000 grid" if metadata["convention"] == "relative" else "pixels of the seen image")

    def score(self, predictions: Sequence[dict], train: Sequence[dict], data: Path) -> dict:
        return score.score(predictions, train)

    def group(self, row: dict) -> str:
        """Its episode: the steps of one are not independent."""
        return score.episode_of(row)

    def statistic(self, predictions: Sequence[dict], train: Sequence[dict], data: Path) -> Callable:
        return score.statistic(score.distances(predictions))

    # ---- evaluate

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--personal", type=Path, help="folder of the personal stage; its folds are scored instead")
        parser.add_argument("--users", nargs="+", help="only these: ranges and lists such as 1-10 15")
        parser.add_argument("--min-pixels", type=int, help="for a model without a run of ours")
        parser.add_argument("--max-pixels", type=int, help="as --min-pixels")

    def locate(self, flags: Namespace) -> tuple[str | Path, Path]:
        if not flags.personal:
            return super().locate(flags)
        if flags.checkpoint:
            raise UserError("--personal and --checkpoint exclude each other: the folds name their own global model")
        if flags.compare_base:
            raise UserError("--compare-base does not go with --personal: the global model stands beside the folds")
        personal.check_finished(flags.personal)
        return paths.ROOT / personal.checkpoint_of(flags.personal), flags.personal

    def check(self, evaluation: Evaluation) -> None:
        file = evaluation.data / f"{evaluation.split}.jsonl"
        evaluation.records = of_users(evaluation.records, evaluation.flags.users, file)

    def predict(self, evaluation: Evaluation) -> tuple[list[dict], dict]:
        flags = evaluation.flags
        if flags.personal:
            return self._personal_rows(evaluation)
        from overlays.data.media import MediaOptions, apply_resolution
        from overlays.domains.gui.coordinates import check_seen

        processor = evaluation.loaded[1]
        if flags.min_pixels or flags.max_pixels:
            apply_resolution(processor, MediaOptions(min_pixels=flags.min_pixels, max_pixels=flags.max_pixels))
        check_seen(evaluation.records, evaluation.media_root, processor)
        return evaluation.answers(keep=True), {}  # kept, so that an evaluation of more users goes on

    def _personal_rows(self, evaluation: Evaluation) -> tuple[list[dict], dict]:
        """(rows of the held-out folds by episode or sample, metrics of all stages on their taps)."""
        kinds = personal.current_folds(evaluation.flags.personal, evaluation.records)
        first = "episode" if kinds.get("episode") else next(iter(kinds))
        before = personal.global_rows(evaluation.checkpoint / evaluation.split, kinds[first])
        stages = ({"global": before} if before else {}) | {
            f"personal, folds by {kind}": rows for kind, rows in sorted(kinds.items()) if rows}
        keys = ("n", *(metric.key for metric in self.metrics), "interval", "users")
        facts = {"folds_by": first, "stages": {}}
        for name, rows in stages.items():
            scored = score.score(rows, evaluation.train)
            facts["stages"][name] = {key: scored[key] for key in keys}
        if before:
            value, (low, high) = score.gain(before, kinds[first])
            facts["gain"] = {"click_accuracy": value, "interval": [low, high]}
        write_jsonl(evaluation.out / "predictions.jsonl", kinds[first])
        return kinds[first], facts

    def columns(self, metrics: dict) -> dict[str, dict]:
        stages = {name: row for name, row in metrics.get("stages", {}).items()
                  if name != f"personal, folds by {metrics['folds_by']}"}
        constant = metrics["baseline"].get("constant")
        return stages | ({"best constant point": constant} if constant else {})

    def notes(self, metrics: dict) -> list[str]:
        sentences = [f"The baseline is the point within {score.RADIUS} of which most taps of the training users lie."
                     if metrics["baseline"] else "Without training users there is no baseline."]
        if "gain" in metrics:
            value, (low, high) = metrics["gain"]["click_accuracy"], metrics["gain"]["interval"]
            sentences.insert(0, f"Personal above global: {value:+.3f} click accuracy (95 % interval {low:+.3f} to "
                            f"{high:+.3f}, by episode).")
        if "folds_by" in metrics:
            sentences.append(f"Every tap is answered by the adapter of the fold that held it out; folds by "
                         f"{metrics['folds_by']}.")
        return sentences

    def sections(self, predictions: Sequence[dict], metrics: dict, data: Path, out: Path) -> list[Section]:
        stages = {name: row["users"] for name, row in metrics.get("stages", {}).items()}
        plots.draw_users(stages or {"model": metrics["users"]}, out / "plots" / "users.png")
        users = [[f"user {user}", row["n"], row["click_accuracy"],
                  "{:.3f} to {:.3f}".format(*row["interval"]["click_accuracy"]), row["mean_l2"], row["median_l2"],
                  row["parse_rate"]] for user, row in metrics["users"].items()]
        shown, cards = plots.shown_rows(predictions, SHOWN), []
        for number, (row, distance) in enumerate(zip(shown, score.distances(shown), strict=True)):
            file = out / "plots" / f"screen_{number:02d}.png"
            plots.draw_tap(data / records.media_names(row, "image")[0], row["grid"], score.predicted_point(row)).save(
                file)
            cards.append(report.Sample(f"user {row['user']}, {row['episode']}", row["question"].split("\n")[0],
                                       row["prediction"], row["answer"], bool(distance <= score.RADIUS), [file]))
        return [
            Section("Users", [Picture(out / "plots" / "users.png", "Click accuracy by user, with 95 % intervals."),
                              Table(["user", "taps", "click accuracy", "95 % interval", "mean L2", "median L2",
                                     "parse rate"], users)]),
            Section("Screens", [Paragraph(
                f"Evenly spread over the taps, not picked by result. Cross: the true tap; ellipse: {score.RADIUS} grid "
                "units around it, as measured; dot: the prediction.", True), Cards(cards)]),
        ]


DOMAIN = Gui()
