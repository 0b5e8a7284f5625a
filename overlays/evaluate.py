"""Entry: score a checkpoint on a split: predictions.jsonl, metrics.json and report.html in <run>/<split>.

    python -m overlays.evaluate --domain gui --checkpoint outputs/gui-global --split val
"""

import logging
import os
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from overlays import callable_module, domains, paths, report, runs
from overlays.domains.base import (
    Domain,
    Evaluation,
    data_of,
    intervals,
    prepared_domain,
    read_metadata,
    training_sources,
)
from overlays.errors import UserError, run
from overlays.files import sha256, write_json
from overlays.flags import Parser, at_least

log = logging.getLogger(__name__)


def evaluate(checkpoint: str | Path | None = None, domain: str | Domain | None = None, split: str = "test",
             **options) -> dict:
    """Score a checkpoint on a split of a domain's prepared data.

    Args:
        checkpoint: run folder, checkpoint or model; None takes the newest run of the domain.
        domain: its name; None takes the one that the run was trained on.
        options: the other flags of the command line, such as data, limit, batch_size and the domain's own.

    Returns:
        what metrics.json holds.

    Raises:
        UserError: no such checkpoint or data, or records that the domain cannot score.
    """
    checkpoint = None if checkpoint is None else str(checkpoint)
    data = Path(options["data"]) if options.get("data") else None
    if not isinstance(domain, Domain):
        domain = domains.get(domain or domain_of(checkpoint, data))
    flags = vars(_parser(domain).parse_args([]))
    unknown = set(options) - set(flags)
    if unknown:
        raise TypeError(f"evaluate of {domain.name} has no option {', '.join(sorted(unknown))}")
    return _evaluate(domain, Namespace(**flags | options | {"checkpoint": checkpoint, "split": split, "data": data}))


def main(words: Sequence[str] | None = None, domain: str | None = None) -> None:
    """Command line of the module; with `domain`, that of the script which evaluates it."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    words = list(sys.argv[1:] if words is None else words)
    if domain is None:
        first = Parser(add_help=False, allow_abbrev=False)
        for name in ("--domain", "--checkpoint", "--data"):
            first.add_argument(name)
        named = first.parse_known_args(words)[0]
        asks_for_help = {"-h", "--help"} & set(words)
        if named.domain is None and asks_for_help:
            _parser(None).parse_args(words)
        chosen = domains.get(named.domain or domain_of(named.checkpoint, named.data and Path(named.data)))
    else:
        chosen = domains.get(domain)
    flags = _parser(chosen, is_script=domain is not None).parse_args(words)
    if not chosen.handle(flags):
        _evaluate(chosen, flags)


def _parser(domain: Domain | None, is_script: bool = False) -> Parser:
    parser = Parser(prog=None if is_script else "python -m overlays.evaluate",
                    description=__doc__.split("\n")[0].removeprefix("Entry: "))
    if not is_script:
        parser.add_argument("--domain", help=f"{', '.join(domains.DOMAINS)}, or module:object (default: that of the "
                            "run); with --help it lists the domain's own flags")
    parser.add_argument("--checkpoint", help="run folder, checkpoint, model or hub name (default: the domain's newest "
                        "run)")
    parser.add_argument("--base-model", help="base of an adapter, where it is not the one it names")
    parser.add_argument("--data", type=Path, help="prepared folder (default: the one the run was trained on)")
    parser.add_argument("--split", default="test", help="train, val or test (default: test)")
    parser.add_argument("--compare-base", action="store_true", help="score the base model without training as well")
    parser.add_argument("--output-dir", type=Path, help="results go into its <split>/ (default: the run's; "
                        "below outputs/ for a model that is not a run)")
    parser.add_argument("--limit", type=at_least(1), help="only the first N records")
    parser.add_argument("--batch-size", type=at_least(1), default=domain.batch_size if domain else 32)
    parser.add_argument("--max-new-tokens", type=at_least(1), default=domain.max_new_tokens if domain else None,
                        help="of an answer (default: " + (str(domain.max_new_tokens) if domain and domain.max_new_tokens
                                                          else "the longest true answer and a quarter more") + ")")
    parser.add_argument("--allow-symlinks", action="store_true", help=paths.SYMLINKS_HELP)
    if domain:
        domain.add_arguments(parser)
    return parser


# ---------------------------------------------------------------- checkpoint and data

def domain_of(checkpoint: str | None, data: Path | None) -> str:
    """The domain of prepared data, else of the data that a run was trained on. Raises UserError where neither says."""
    name = data and prepared_domain(data)
    if not name and (data is None or checkpoint):
        run_folder = runs.find_checkpoint(checkpoint, paths.OUTPUTS)
        names = [known for row in training_sources(run_folder) for known in domains.DOMAINS
                 if row["name"].startswith(f"{known}_")]
        described = read_metadata(run_folder) or read_metadata(run_folder.parent) or {}
        name = names[0] if names else described.get("domain")
    if not name:
        raise UserError(f"{data or checkpoint} does not say which domain it belongs to: give --domain")
    return name


def seen_data_warning(run_folder: Path, data: Path, split: str) -> str | None:
    """A sentence where a run may have seen the cases of a split in training, whether its data had a name or a path."""
    known = {row.get("sha256") for row in training_sources(run_folder)}
    if not known:
        return None
    if sha256(data / f"{split}.jsonl") in known:
        return f"this run was trained on {data / split}.jsonl itself, so it has seen the cases of this split"
    if sha256(data / "train.jsonl") in known:
        return None
    return (f"this run was trained on another file than {data / 'train.jsonl'}, so it may have seen cases of this "
            "split; train again, or give the data it was trained on with --data")


def _run_folder(checkpoint: str | Path, folder: Path) -> Path:
    """The folder that may hold run.json: the checkpoint, or the folder that stands in for one of the hub."""
    return checkpoint if isinstance(checkpoint, Path) else folder


def _collect(domain: Domain, flags: Namespace) -> Evaluation:
    """What is to be evaluated, checked as far as that goes without a model."""
    from overlays.data import records
    from overlays.predict import load_records

    paths.allow_symlinks(flags.allow_symlinks)
    checkpoint, folder = domain.locate(flags)
    data = flags.data or data_of(_run_folder(checkpoint, folder), domain.name)
    if Path(flags.split).name != flags.split:
        raise UserError(f"--split names a file of --data such as test, not {flags.split!r}")
    for name in ("train.jsonl", f"{flags.split}.jsonl"):
        if not (data / name).is_file():
            raise UserError(f"there is no {name} in {data}: run python -m overlays.prepare {domain.name}, or give "
                            "--data")
    asked, media_root = load_records(str(data / f"{flags.split}.jsonl"), flags.limit)
    train = list(records.read(data / "train.jsonl"))
    evaluation = Evaluation(checkpoint, folder, data, flags.split, asked, train, media_root,
                            (flags.output_dir or folder) / flags.split, flags)
    domain.check(evaluation)
    return evaluation


# ---------------------------------------------------------------- evaluation

def _evaluate(domain: Domain, flags: Namespace) -> dict:
    evaluation = _collect(domain, flags)
    warning = seen_data_warning(_run_folder(evaluation.checkpoint, evaluation.folder), evaluation.data, flags.split)
    rows, facts = domain.predict(evaluation)
    metrics = _metrics(domain, rows, evaluation) | facts
    if flags.compare_base:
        of_base = domain.score(evaluation.base_answers(), evaluation.train, evaluation.data)
        metrics["base"] = {key: value for key, value in of_base.items() if key != "baseline"}
    metrics |= {"domain": domain.name, "split": flags.split, "checkpoint": str(evaluation.checkpoint),
                "data": str(evaluation.data), "limit": flags.limit, "warning": warning}
    write_json(evaluation.out / "metrics.json", metrics)
    _write_report(domain, metrics, rows, evaluation)
    _print_table(domain, metrics)
    for note in domain.notes(metrics)[:1]:
        log.info("%s", note)
    log.info("report: %s", evaluation.out / "report.html")
    domain.finish(evaluation, rows, metrics)
    if warning:
        log.warning("%s", warning)
    return metrics


def _metrics(domain: Domain, rows: list[dict], evaluation: Evaluation) -> dict:
    """The domain's metrics with their intervals; none where there is a single group."""
    metrics = domain.score(rows, evaluation.train, evaluation.data)
    groups = [domain.group(row) for row in rows]
    metrics["n_groups"] = len(set(groups))
    if "interval" not in metrics and metrics["n_groups"] > 1:
        metrics["interval"] = intervals(domain.statistic(rows, evaluation.train, evaluation.data), groups,
                                        [metric.key for metric in domain.metrics])
    return metrics


def _table(domain: Domain, metrics: dict) -> tuple[list[str], list[list]]:
    """(headings, rows of `report.Cell`): the model, its interval, what stands beside it, difference to the best."""
    beside = ({"base model": metrics["base"]} if "base" in metrics else {}) | domain.columns(metrics)
    headings = ["metric", "model", "95 % interval", *beside, *(["difference to the best"] if beside else [])]
    rows = []
    for metric in domain.metrics:
        def shown(value: float | None, decimals: int = metric.decimals) -> str:
            return report.number(value if value is None else float(value), decimals)

        value, interval = metrics.get(metric.key), metrics.get("interval", {}).get(metric.key)
        others = [column.get(metric.key) for column in beside.values()]
        known = [other for other in others if other is not None]
        note = ", ".join(filter(None, (_over(metric, metrics), "lower is better" if metric.lower_is_better else "")))
        row = [report.Cell(f"{metric.label}{f', {metric.unit}' if metric.unit else ''}", note=note),
               report.Cell(shown(value)), report.Cell(" to ".join(map(shown, interval)) if interval else ""),
               *(report.Cell(shown(other)) for other in others)]
        if beside:
            best = (min if metric.lower_is_better else max)(known) if known else None
            gain = None if value is None or best is None else value - best
            tone = "" if not gain or not float(shown(gain)) else (
                "better" if (gain < 0) == metric.lower_is_better else "worse")
            row.append(report.Cell("" if gain is None else f"{gain:+.{metric.decimals}f}".replace("-", "−"), tone))
        rows.append(row)
    return headings, rows


def _over(metric, metrics: dict) -> str:
    return metric.over.format(**metrics) if metric.over else ""


def _print_table(domain: Domain, metrics: dict) -> None:
    headings, rows = _table(domain, metrics)
    lines = [headings[:-1] if len(headings) > 3 else headings]
    lines += [[cell.text for cell in row[:len(lines[0])]] for row in rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    for line in lines:
        log.info("%s", "  ".join(text.ljust(width) if i == 0 else text.rjust(width)
                                 for i, (text, width) in enumerate(zip(line, widths, strict=True))).rstrip())


def _write_report(domain: Domain, metrics: dict, rows: list[dict], evaluation: Evaluation) -> None:
    """The page: warning, table, what the domain shows, the loss curve."""
    run_folder = _run_folder(evaluation.checkpoint, evaluation.folder)
    if not (run_folder / "run.json").is_file():
        run_folder = run_folder.parent
    base = (runs.read_run(run_folder) or {}).get("base_model")
    resampled = (f"Intervals: 95 % bootstrap over {metrics['n_groups']} {domain.groups}." if metrics.get("interval")
                 else f"No intervals: there is a single one of its {domain.groups}.")
    sections = [
        report.Section("", [report.Paragraph(f"Warning: {metrics['warning']}." if metrics["warning"] else "")]),
        report.Section("Metrics", [report.Table(*_table(domain, metrics)),
                                   report.Paragraph(" ".join([*domain.notes(metrics), resampled]), True)]),
        *domain.sections(rows, metrics, evaluation.data, evaluation.out),
        report.Section("Training", [report.Picture(run_folder / "training_loss.png", "Loss during training.")]),
    ]
    checkpoint = paths.relative(evaluation.checkpoint) if isinstance(evaluation.checkpoint, Path) else (
        evaluation.checkpoint)
    report.write(evaluation.out / "report.html", domain.title,
                 f"{metrics['n']} {domain.records} of the {metrics['split']} split, {metrics['n_groups']} "
                 f"{domain.groups}. Checkpoint {checkpoint}{f', fine-tuned from {base}' if base else ''}.", sections,
                 f"python -m overlays.evaluate --domain {domain.name} --checkpoint {checkpoint} --data "
                 f"{paths.relative(evaluation.data)} --split {metrics['split']}")


callable_module(__name__)

if __name__ == "__main__":
    run(main)
