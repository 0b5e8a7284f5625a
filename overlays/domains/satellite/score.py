"""Scores of predicted numbers beside the training mean and ridge regression on mean embeddings. Pure.

A prediction that holds no number counts with the training mean in every error, and in `parse_rate`.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from overlays.domains.satellite.questions import parse_number
from overlays.errors import UserError

ALPHAS = np.logspace(-3, 4, 29)  # penalties of ridge regression, chosen by leave-one-out within the training cities


def r2(truth: Sequence[float], said: Sequence[float]) -> float | None:
    """Coefficient of determination; None for fewer than two values or truths that are all the same."""
    truth, said = np.asarray(truth, float), np.asarray(said, float)
    varies = len(truth) > 1 and np.ptp(truth) > 0  # of equal values the sum of squares can be a rounding error
    spread = float(((truth - truth.mean()) ** 2).sum()) if varies else 0.0
    return 1 - float(((truth - said) ** 2).sum()) / spread if spread else None


def figures(truth: Sequence[float], said: Sequence[float]) -> dict:
    """n, r2, rmse, mae and pearson (None where one of the two does not vary), in the unit of the label."""
    truth, said = np.asarray(truth, float), np.asarray(said, float)
    error = said - truth
    varies = len(truth) > 1 and min(np.ptp(truth), np.ptp(said)) > 0 and min(truth.std(), said.std()) > 1e-12
    rounded = {"r2": r2(truth, said), "rmse": float(np.sqrt((error**2).mean())), "mae": float(np.abs(error).mean()),
               "pearson": float(np.corrcoef(truth, said)[0, 1]) if varies else None}
    return {"n": len(truth)} | {name: None if value is None else round(value, 6) for name, value in rounded.items()}


def target_name(rows: Sequence[Mapping]) -> str:
    """The one number that the rows have as target. Raises UserError where they have none or several."""
    names = {tuple(row.get("target") or ()) for row in rows}
    if len(names) != 1 or len(next(iter(names))) != 1:
        raise UserError("every row needs one number as its target; predict on a satellite split")
    return next(iter(names))[0]


def said_value(row: Mapping) -> float | None:
    """What a row says: its "value", else the number in its "prediction"; None where there is none."""
    value = row["value"] if row.get("value") is not None else parse_number(row.get("prediction"))
    return value if value is not None and np.isfinite(value) else None


def said_values(rows: Sequence[Mapping], name: str, usual: float) -> tuple[np.ndarray, np.ndarray]:
    """(truth (n,), what was said (n,)); `usual` stands where nothing was."""
    said = [said_value(row) for row in rows]
    return (np.array([float(row["target"][name]) for row in rows]),
            np.array([usual if value is None else value for value in said]))


def ridge(train_means: np.ndarray, train_values: np.ndarray, means: np.ndarray) -> tuple[np.ndarray, float]:
    """Ridge regression from mean embeddings, scaled, its penalty by leave-one-out.

    Args:
        train_means, means: (n, bands) mean embeddings of the training cities and of those to predict.
        train_values: (n,) labels.

    Returns:
        (predictions, penalty).
    """
    from sklearn.linear_model import RidgeCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), RidgeCV(alphas=ALPHAS)).fit(train_means, train_values)
    return model.predict(means), float(model[-1].alpha_)


def score(predictions: Sequence[Mapping], train: Sequence[Mapping] = (),
          means: Mapping[str, np.ndarray] | None = None) -> dict:
    """Figures of prediction rows, and of the baselines on the same rows.

    Args:
        predictions: rows with "id", "target" {name: truth} and either "value" (a number) or "prediction" (text).
        train: records of the training split; their targets give the mean predictor.
        means: mean embedding (bands,) by id, of training and predicted rows; without it there is no ridge baseline.

    Returns:
        `n r2 rmse mae pearson`, `target`, `parsed`, `parse_rate`, `unparsed` (ids), and `baseline` with `mean` and
        `ridge`, each with the same five figures (None where there is nothing to fit it on).

    Raises:
        UserError: rows without one common target.
    """
    rows = list(predictions)
    name = target_name([*rows, *train])
    train_values = np.array([float(record["target"][name]) for record in train])
    usual = float(train_values.mean()) if len(train_values) else 0.0
    truth, said = said_values(rows, name, usual)
    unparsed = [row["id"] for row in rows if said_value(row) is None]
    metrics = figures(truth, said)
    metrics |= {"target": name, "parsed": len(rows) - len(unparsed),
                "parse_rate": round(1 - len(unparsed) / len(rows), 6), "unparsed": unparsed,
                "baseline": {"mean": None, "ridge": None}}
    if len(train_values):
        metrics["baseline"]["mean"] = figures(truth, np.full(len(truth), usual)) | {"value": usual}
    if len(train_values) > 2 and means is not None:
        known, asked = (np.stack([means[row["id"]] for row in part]) for part in (train, rows))
        fitted, penalty = ridge(known, train_values, asked)
        metrics["baseline"]["ridge"] = figures(truth, fitted) | {"penalty": penalty}
    return metrics
