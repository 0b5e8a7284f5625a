"""Scores of predicted numbers beside the training mean and ridge regression on mean embeddings. Pure.

A prediction that holds no number counts with the training mean in every error, and in `parse_rate`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from overlays.domains.satellite.questions import parse_number
from overlays.errors import UserError

ALPHAS = np.logspace(-3, 4, 29)  # penalties of ridge regression, chosen by leave-one-out within the training cities


def r2(target: Sequence[float], predicted: Sequence[float]) -> float | None:
    """Coefficient of determination; None for fewer than two values or targets that are all the same."""
    target, predicted = np.asarray(target, float), np.asarray(predicted, float)
    varies = len(target) > 1 and np.ptp(target) > 0  # of equal values the sum of squares can be a rounding error
    spread = float(((target - target.mean()) ** 2).sum()) if varies else 0.0
    return 1 - float(((target - predicted) ** 2).sum()) / spread if spread else None


def regression_metrics(target: Sequence[float], predicted: Sequence[float]) -> dict:
    """n, r2, rmse, mae and pearson (None where one of the two does not vary), in the unit of the label."""
    target, predicted = np.asarray(target, float), np.asarray(predicted, float)
    error = predicted - target
    varies = len(target) > 1 and min(np.ptp(target), np.ptp(predicted)) > 0 and (
        min(target.std(), predicted.std()) > 1e-12)
    values = {"r2": r2(target, predicted), "rmse": float(np.sqrt((error**2).mean())),
              "mae": float(np.abs(error).mean()),
              "pearson": float(np.corrcoef(target, predicted)[0, 1]) if varies else None}
    return {"n": len(target)} | {name: None if value is None else round(value, 6) for name, value in values.items()}


def target_name(rows: Sequence[Mapping]) -> str:
    """The one number that the rows have as target. Raises UserError where they have none or several."""
    names = {tuple(row.get("target") or ()) for row in rows}
    if len(names) != 1 or len(next(iter(names))) != 1:
        raise UserError("every row needs one number as its target; predict on a satellite split")
    return next(iter(names))[0]


def predicted_value(row: Mapping) -> float | None:
    """What a row answers: its "value", else the number in its "prediction"; None where there is none."""
    value = row["value"] if row.get("value") is not None else parse_number(row.get("prediction"))
    return value if value is not None and np.isfinite(value) else None


def predicted_values(rows: Sequence[Mapping], name: str, default: float) -> tuple[np.ndarray, np.ndarray]:
    """(target (n,), predicted (n,)); `default` stands where a row has no number."""
    predicted = [predicted_value(row) for row in rows]
    return (np.array([float(row["target"][name]) for row in rows]),
            np.array([default if value is None else value for value in predicted]))


def training_values(train: Sequence[Mapping], name: str) -> tuple[np.ndarray, float]:
    """((n,) labels of the training records, their mean or 0)."""
    values = np.array([float(record["target"][name]) for record in train])
    return values, float(values.mean()) if len(values) else 0.0


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


def ridge_of(rows: Sequence[Mapping], train: Sequence[Mapping], means: Mapping[str, np.ndarray] | None
             ) -> tuple[np.ndarray, float] | None:
    """`ridge` for prediction rows; None without mean embeddings by id or with fewer than three training records."""
    if len(train) < 3 or means is None:
        return None
    known, asked = (np.stack([means[row["id"]] for row in part]) for part in (train, rows))
    return ridge(known, training_values(train, target_name([*rows, *train]))[0], asked)


def score(predictions: Sequence[Mapping], train: Sequence[Mapping] = (),
          means: Mapping[str, np.ndarray] | None = None) -> dict:
    """Metrics of prediction rows, and of the baselines on the same rows.

    Args:
        predictions: rows with "id", "target" {name: number} and either "value" (a number) or "prediction" (text).
        train: records of the training split; their targets give the mean predictor.
        means: mean embedding (bands,) by id, of training and predicted rows; without it there is no ridge baseline.

    Returns:
        `n r2 rmse mae pearson`, `target`, `parsed`, `parse_rate`, `unparsed` (ids), and `baseline` with `mean` and
        `ridge`, each with the same five (None where there is nothing to fit it on).

    Raises:
        UserError: rows without one common target.
    """
    rows = list(predictions)
    name = target_name([*rows, *train])
    values, mean = training_values(train, name)
    target, predicted = predicted_values(rows, name, mean)
    unparsed = [row["id"] for row in rows if predicted_value(row) is None]
    metrics = regression_metrics(target, predicted)
    metrics |= {"target": name, "parsed": len(rows) - len(unparsed),
                "parse_rate": round(1 - len(unparsed) / len(rows), 6), "unparsed": unparsed,
                "baseline": {"mean": None, "ridge": None}}
    if len(values):
        metrics["baseline"]["mean"] = regression_metrics(target, np.full(len(target), mean)) | {"value": mean}
    if fitted := ridge_of(rows, train, means):
        metrics["baseline"]["ridge"] = regression_metrics(target, fitted[0]) | {"penalty": fitted[1]}
    return metrics


def statistic(predictions: Sequence[Mapping], train: Sequence[Mapping]) -> Callable[[Iterable[int]], dict]:
    """Function: numbers of rows, which may repeat -> their metrics."""
    name = target_name([*predictions, *train])
    target, predicted = predicted_values(predictions, name, training_values(train, name)[1])
    parsed = np.array([predicted_value(row) is not None for row in predictions])
    return lambda rows: regression_metrics(target[rows], predicted[rows]) | {"parse_rate": float(parsed[rows].mean())}
