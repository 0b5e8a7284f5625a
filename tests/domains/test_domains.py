"""What holds in every domain: flags, marks of prepared data, samples, warnings about seen data, where results lie."""

import json
from argparse import Namespace

import numpy as np
import pytest

from overlays import domains, evaluate, flags, manifest, paths, prepare, samples
from overlays.domains import base
from overlays.errors import UserError
from overlays.files import sha256, write_json, write_jsonl

NAMES = tuple(domains.DOMAINS)


def prepared(folder, domain, **metadata):
    """A folder with the files by which prepared data are known."""
    for split in base.SPLITS:
        write_jsonl(folder / f"{split}.jsonl", [{"id": split}])
    write_json(folder / "metadata.json", {"kind": base.KIND, "domain": domain} | metadata)
    return folder


def content(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---------------------------------------------------------------- flags

@pytest.mark.parametrize("name", NAMES)
def test_every_setting_is_a_flag_in_both_spellings_with_its_default(name):
    settings = domains.get(name).Settings
    parser = flags.Parser()
    flags.add_settings(parser, settings)
    assert flags.read_settings(parser.parse_args([]), settings) == settings()
    names = [option for action in parser._actions for option in action.option_strings]
    assert not any("_" in option for option in names) and "--output" in names
    long = next(action for action in parser._actions if "-" in action.option_strings[-1][2:] and action.type is int
                or action.type is float)
    for word in (long.option_strings[-1], "--" + long.option_strings[-1][2:].replace("-", "_")):
        assert getattr(parser.parse_args([word, "7"]), long.dest) == 7


@pytest.mark.parametrize("name", NAMES)
def test_evaluation_takes_both_spellings_and_refuses_what_it_does_not_know(name):
    parser = evaluate._parser(domains.get(name))
    assert parser.parse_args(["--batch_size", "3"]).batch_size == parser.parse_args(["--batch-size=3"]).batch_size == 3
    with pytest.raises(UserError, match="unrecognized arguments: --no-such-flag"):
        parser.parse_args(["--no_such_flag"])
    with pytest.raises(UserError, match="--max-new-tokens: must be at least 1, not 0"):
        parser.parse_args(["--max_new_tokens", "0"])


def test_help_shows_one_spelling_however_a_flag_was_declared():
    parser = flags.Parser(prog="x")
    parser.add_argument("--dataset_use", nargs="+")
    assert "--dataset-use" in parser.format_help() and "--dataset_use" not in parser.format_help()
    assert parser.parse_args(["--dataset_use", "a_b"]).dataset_use == ["a_b"]
    assert parser.parse_args(["--dataset-use=a_b"]).dataset_use == ["a_b"]


def test_a_value_that_is_not_a_choice_is_one_sentence():
    with pytest.raises(UserError, match="argument --channels: invalid choice: 'some'"):
        prepare.main(["--channels", "some"], domain="cuprite")
    with pytest.raises(UserError, match="there is no domain 'cuprit'; known are cuprite"):
        prepare.main(["cuprit"])


# ---------------------------------------------------------------- marks

@pytest.mark.parametrize("name", NAMES)
def test_only_prepared_data_of_the_same_domain_is_replaced(name, tmp_path):
    other = "gui" if name != "gui" else "cuprite"
    run = prepared(tmp_path / "run", name)
    write_json(run / "run.json", {})
    foreign, copied = tmp_path / "foreign", tmp_path / "copied"
    write_json(foreign / "thesis.json", {})
    write_json(copied / "metadata.json", {"kind": base.KIND, "domain": name})  # as a killed run leaves it
    cases = {run: "a training run", prepared(tmp_path / "data", other): f"prepared data of the domain {other}",
             foreign: "other files", copied: "other files", prepared(tmp_path / "kind", name, kind="x"): "other files"}
    for folder, words in cases.items():
        before = content(folder)
        with pytest.raises(UserError, match=f"holds {words}"):
            prepare.main(["--output", str(folder)], domain=name)
        assert content(folder) == before
    with base.prepared_folder(prepared(tmp_path / "own", name), name) as folder:
        (folder / "new").touch()
    assert [path.name for path in (tmp_path / "own").iterdir()] == ["new"]


def test_data_prepared_before_there_were_marks_are_known_by_their_files(tmp_path):
    old = {"cuprite": {"domain": "cuprite", "format": 1}, "gui": {"family": "x", "convention": "y"}}
    for name, metadata in old.items():
        folder = prepared(tmp_path / name, name)
        write_json(folder / "metadata.json", metadata)
        assert base.prepared_domain(folder) == name
        for split in base.SPLITS:
            (folder / f"{split}.jsonl").unlink()
        assert base.prepared_domain(folder) is None


def test_an_output_that_turns_into_something_else_meanwhile_is_left_alone(tmp_path):
    output = prepared(tmp_path / "data", "gui")
    with pytest.raises(UserError, match="holds a training run"), base.prepared_folder(output, "gui"):
        write_json(output / "run.json", {})
    assert (output / "run.json").is_file() and [path.name for path in tmp_path.iterdir()] == ["data"]


# ---------------------------------------------------------------- samples

@pytest.mark.parametrize("name", NAMES)
def test_a_missing_incomplete_or_old_sample_is_made_anew(name, tmp_path, monkeypatch, capsys):
    from importlib import import_module

    module, made = import_module(f"overlays.samples.{name}"), []
    monkeypatch.setattr(paths, "RAW", tmp_path)
    monkeypatch.setattr(module, "write", lambda folder: made.append(folder) or folder)
    folder = tmp_path / name / "sample"
    for version, calls in ((None, 1), (0, 2), (module.VERSION, 2)):
        if version is not None:
            write_json(folder / samples.NOTE, {"version": version})
        samples.ensure(name)
        assert made == [folder] * calls
    assert f"making the sample data in {folder}" in "".join(capsys.readouterr())


def test_samples_are_written_by_one_command(tmp_path, monkeypatch, capsys):
    from overlays.samples import __main__ as command

    monkeypatch.setattr("sys.argv", f"samples satellite --output {tmp_path} --cities 20 --seed 3".split())
    command.main()
    assert samples.read_note(tmp_path)["seed"] == 3 and len(list((tmp_path / "tiles").iterdir())) == 21
    assert capsys.readouterr().out == f"sample data: {tmp_path}\n"


def test_the_sample_scene_has_the_first_classes_of_the_domain():
    from overlays.domains.cuprite.classes import CLASSES
    from overlays.samples import cuprite

    assert tuple(mineral.name for mineral in CLASSES[:9]) == cuprite.CLASSES


# ---------------------------------------------------------------- what a run has seen

@pytest.mark.parametrize("by_file", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_data_that_a_run_may_have_seen_are_warned_of(name, by_file, tmp_path):
    data, run = prepared(tmp_path / "data", name), tmp_path / "run"

    def warning(*files, base_model=None):
        rows = [{"name": str(file) if by_file else f"{name}_{file.stem}", "sha256": sha256(file)} for file in files]
        write_json(run / "run.json", {"base_model": base_model and str(base_model), "data": {"train": rows}})
        return evaluate.seen_data_warning(run, data, "test")

    other = tmp_path / "other.jsonl"
    write_jsonl(other, [{"id": "other"}])
    assert warning(data / "train.jsonl") is None and warning(data / "train.jsonl", other) is None
    assert "may have seen cases of this split" in warning(other)
    assert "has seen the cases of this split" in warning(data / "train.jsonl", data / "test.jsonl")
    assert warning() is None
    first = tmp_path / "first"
    write_json(first / "run.json", {"data": {"train": [{"name": "x", "sha256": sha256(data / "train.jsonl")}]}})
    assert warning(other, base_model=first) is None  # as preferences drawn from the data of the first stage


@pytest.mark.parametrize("name", NAMES)
def test_a_run_says_its_domain_and_data(name, tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "PREPARED", tmp_path / "prepared")
    run = tmp_path / "run"
    write_json(run / "config.json", {})
    usual, mine = prepared(tmp_path / "prepared" / name, name), prepared(tmp_path / "mine", name)
    for source, folder in ((f"{name}_train", usual), (str(mine / "train.jsonl"), mine)):
        write_json(run / "run.json", {"data": {"train": [{"name": source, "sha256": ""}]}})
        write_json(run / "metadata.json", {"domain": name})
        assert evaluate.domain_of(str(run), None) == name and base.data_of(run, name) == folder
    (mine / "train.jsonl").unlink()
    (mine / "metadata.json").unlink()
    assert base.data_of(run, name) == usual and evaluate.domain_of(None, usual) == name


# ---------------------------------------------------------------- results

class Guess(base.Domain):
    """Answers without a model: the id of a record."""

    name, title, Settings = "guess", "Guesses", None
    metrics = (base.Metric("right", "right", over="{n} rows"),)

    def score(self, predictions, train, data):
        right = sum(row["prediction"] == "a" for row in predictions) / len(predictions)
        return {"n": len(predictions), "right": right, "baseline": {"none": {"right": 0.0}}}

    def predict(self, evaluation):
        return [record | {"prediction": record["id"][0]} for record in evaluation.records], {"method": "guess"}


@pytest.fixture
def guess(tmp_path):
    data = prepared(tmp_path / "data", "guess")
    turns = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
    for split in ("val", "test"):
        write_jsonl(data / f"{split}.jsonl", [{"id": f"{letter}{i}", "group": f"{i}", "conversations": turns}
                                              for letter in "ab" for i in range(3)])
    write_json(tmp_path / "run" / "config.json", {})
    write_json(tmp_path / "run" / "run.json", {})
    return tmp_path / "run", data


def test_each_split_has_its_own_results_which_name_split_data_and_checkpoint(guess, capsys):
    run, data = guess
    for split in ("test", "val"):
        evaluate.evaluate(run, Guess(), split, data=data)
    for split in ("test", "val"):
        metrics = json.loads((run / split / "metrics.json").read_text())
        assert (metrics["split"], metrics["data"], metrics["checkpoint"]) == (split, str(data), str(run))
        assert metrics["right"] == 0.5 and metrics["interval"]["right"] == [0.5, 0.5] and metrics["method"] == "guess"
        assert f"6 records of the {split} split" in (run / split / "report.html").read_text()
    assert "right   0.500  0.500 to 0.500  0.000" in capsys.readouterr().out
    evaluate.evaluate(run, Guess(), "val", data=data, output_dir=run.with_name("elsewhere"))
    assert (run.with_name("elsewhere") / "val" / "metrics.json").is_file()
    with pytest.raises(TypeError, match="no option personal"):
        evaluate.evaluate(run, Guess(), data=data, personal="x")
    with pytest.raises(UserError, match="--split names a file"):
        evaluate.evaluate(run, Guess(), "../test", data=data)
    with pytest.raises(UserError, match="there is no dev.jsonl in"):
        evaluate.evaluate(run, Guess(), "dev", data=data)


def test_a_gain_is_good_where_higher_or_lower_is_better():
    def tone(model, baseline, lower):
        domain = Guess()
        domain.metrics = (base.Metric("x", "x", lower_is_better=lower),)
        return evaluate._table(domain, {"x": model, "baseline": {"b": {"x": baseline}}})[1][0][-1].tone

    assert tone(0.9, 0.5, False) == tone(0.1, 0.5, True) == "better"
    assert tone(0.1, 0.5, False) == tone(0.9, 0.5, True) == "worse"
    assert tone(0.5, 0.5, False) == tone(None, 0.5, False) == tone(0.5, None, False) == ""


def test_intervals_draw_whole_groups():
    values = np.repeat([0.0, 1.0], 50)
    rows = base.intervals(lambda chosen: {"mean": values[chosen].mean(), "never": None}, range(100), ["mean", "never"])
    groups = base.intervals(lambda chosen: {"mean": values[chosen].mean()}, ["a"] * 50 + ["b"] * 50, ["mean"])
    assert groups["mean"] == [0.0, 1.0] and 0.3 < rows["mean"][0] < 0.5 < rows["mean"][1] < 0.7 and "never" not in rows


def test_the_fast_statistic_of_a_domain_agrees_with_its_score(tmp_path):
    times, past = [0.5, 1.0], {"times": [-0.5, 0.0], "v": [5, 6], "k": [0, 0.01]}
    texts = ["[(6, 0.01), (7, -0.02)]", "[(6.5, 0)]", "none"]
    rows = [{"id": str(i), "clip": f"c{i % 2}", "times": times, "past": past, "prediction": text,
             "future": {"v": [6 + i, 7], "k": [0.01] * 2}} for i, text in enumerate(texts)]
    domain = domains.get("driving")
    chosen = [2, 0, 0, 1]
    slow = domain.score([rows[i] for i in chosen], [], tmp_path)
    fast = domain.statistic(rows, [], tmp_path)(chosen)
    assert fast == pytest.approx({metric.key: slow[metric.key] for metric in domain.metrics})


def test_a_base_model_that_nobody_names_is_one_sentence(tmp_path):
    evaluation = base.Evaluation(tmp_path, tmp_path, tmp_path, "test", [], [], tmp_path, tmp_path,
                                 Namespace(base_model=None))
    with pytest.raises(UserError, match="--compare-base: .* give --base-model"):
        evaluation.base_answers()


def test_results_of_a_model_that_is_not_a_run_do_not_go_into_its_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "OUTPUTS", tmp_path / "outputs")
    model, run = tmp_path / "models" / "mine", tmp_path / "outputs" / "run"
    for folder in (model, run, run / "checkpoint-5"):
        write_json(folder / "config.json", {})
    write_json(run / "run.json", {})
    manifest.write(run / "checkpoint-5")
    for checkpoint, results in ((model, tmp_path / "outputs" / "models--mine"), (run, run),
                                (run / "checkpoint-5", run / "checkpoint-5")):
        assert domains.get("cuprite").locate(Namespace(checkpoint=str(checkpoint))) == (checkpoint, results)
