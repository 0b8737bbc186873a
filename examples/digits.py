# /// script
# requires-python = ">=3.11"
# dependencies = ["rhapsody-core", "scikit-learn>=1.4"]
# ///
"""Model selection on scikit-learn's handwritten digits, as an ensemble of tasks.

Each model is trained and scored on five folds, with one task per fold. Further tasks average the
scores and rank the models. A block then varies the settings of the best model until no variation
is better. The winner is tested on images that were not used before. A shell command writes the
ranking to a file and checks it, and the last task reads the file.

    python examples/digits.py                  # in worker processes, one per core
    rhapsody run examples/digits.py -b NAME    # on any backend

Requires scikit-learn: `pip install scikit-learn`.
"""

from __future__ import annotations

import asyncio
import csv
import importlib.util
import itertools
import os
import socket
import statistics
import sys
import threading
import time
from typing import Any

from rhapsody import InputFile, LocalExecutionBackend, OutputFile, WorkflowEngine

FOLDS = 5
STEPS = [4.0, 2.0]  # factors between neighbors
ENSEMBLE: dict[str, dict[str, list[Any]]] = {
    "support vectors": {"C": [0.1, 1.0, 10.0], "gamma": [1e-4, 1e-2]},
    "random forest": {"n_estimators": [20, 50], "max_features": [4, 8, 16]},
    "nearest neighbors": {"n_neighbors": [5, 10, 20]},
    "logistic": {"C": [0.1, 1.0, 10.0]},
}

Row = dict[str, Any]
"""One model in the ranking: family, settings, accuracy, spread, and its scores by fold."""


# Functions that run on workers. They import the libraries that they use.


def digits() -> tuple[Any, Any, Any, Any]:
    """Return the images for training, those for testing, and the labels of both."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    return tuple(train_test_split(images, labels, test_size=0.2, stratify=labels, random_state=0))


def make_model(family: str, settings: dict[str, Any]) -> Any:
    """Return an untrained classifier."""
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import MinMaxScaler
    from sklearn.svm import SVC

    match family:
        case "support vectors":
            return SVC(**settings)
        case "random forest":
            return RandomForestClassifier(**settings, random_state=0)
        case "nearest neighbors":
            return KNeighborsClassifier(**settings, weights="distance")
        case "logistic":
            return make_pipeline(MinMaxScaler(), LogisticRegression(**settings, max_iter=1000))
    raise ValueError(f"unknown family of models: {family!r}")


def train_and_score(family: str, settings: dict[str, Any], fold: int) -> dict[str, Any]:
    """Return the accuracy of a model trained on all folds except one, and scored on that one."""
    started = time.perf_counter()
    from sklearn.model_selection import StratifiedKFold
    from threadpoolctl import threadpool_limits  # a dependency of scikit-learn

    images, _, labels, _ = digits()
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0).split(images, labels)
    train, score = list(folds)[fold]
    model = make_model(family, settings)
    with threadpool_limits(1):  # a task has one core
        model.fit(images[train], labels[train])
    return {
        "accuracy": float(model.score(images[score], labels[score])),
        "seconds": time.perf_counter() - started,
        "worker": f"{socket.gethostname()}/{os.getpid()}/{threading.get_ident()}",
    }


def train_and_test(ranking: list[Row]) -> float:
    """Return the accuracy of the best model on the images that were not used for training."""
    train_images, test_images, train_labels, test_labels = digits()
    best = make_model(ranking[0]["family"], ranking[0]["settings"])
    return float(best.fit(train_images, train_labels).score(test_images, test_labels))


def summarize(family: str, settings: dict[str, Any], scores: list[dict[str, Any]]) -> Row:
    """Return a model's mean accuracy over its folds, and the spread."""
    accuracies = [score["accuracy"] for score in scores]
    return {
        "family": family,
        "settings": settings,
        "accuracy": statistics.mean(accuracies),
        "spread": statistics.stdev(accuracies),
        "scores": scores,
    }


def rank(rows: list[Row]) -> list[Row]:
    """Return the rows, best first; equal rows keep their order."""
    return sorted(rows, key=lambda row: row["accuracy"], reverse=True)


# The workflow.


async def main(flow: WorkflowEngine) -> None:
    """Rank the models, search around the best one, and print the results."""
    if importlib.util.find_spec("sklearn") is None:
        sys.exit("missing: scikit-learn; install it with: pip install scikit-learn")
    started = time.perf_counter()
    score_fold = flow.function_task(train_and_score)
    average = flow.function_task(summarize)
    rank_all = flow.function_task(rank)

    def evaluate(family: str, settings: dict[str, Any]) -> Any:
        """Call a task per fold and one that depends on them; return the future of a row."""
        scores = [score_fold(family, settings, fold) for fold in range(FOLDS)]
        return average(family, settings, scores)

    @flow.block
    async def refine(ranking: list[Row]) -> list[Row]:
        """Search around the best model, in smaller steps when no neighbor is better."""
        tried = [(row["family"], row["settings"]) for row in ranking]
        steps = iter(STEPS)
        step = next(steps)
        while step:
            best = ranking[0]
            around = [(best["family"], nearby) for nearby in neighbors(best["settings"], step)]
            new = [model for model in around if model not in tried]
            tried += new
            ranking = await rank_all([*ranking, *(evaluate(*model) for model in new)])
            if ranking[0] == best:
                step = next(steps, 0)
        return ranking

    @flow.executable_task
    async def write_report(ranking: list[Row], report: OutputFile) -> str:
        """Write a line for each model, and check their number and their order."""
        file = str(report)
        return "\n".join(
            [
                "set -e",
                f"cat > {file} <<'END'",
                *(f"{row['accuracy']:.6f},{name(row)}" for row in ranking),
                "END",
                f'test "$(wc -l < {file})" -eq {len(ranking)}',
                f"LC_ALL=C sort --check --reverse --stable --key=1,1 --field-separator=, {file}",
            ]
        )

    @flow.function_task
    def read_report(report: InputFile) -> list[str]:
        """Return the models of the report, in its order."""
        with open(report, newline="") as file:
            return [model for _, model in csv.reader(file)]

    first = rank_all([evaluate(*model) for model in ensemble()])
    refined = refine(first)
    tested = flow.function_task(train_and_test)(refined)
    write_report(refined, OutputFile("ranking.csv"))
    reported = read_report(InputFile("ranking.csv"))

    ranking = await refined
    assert await reported == [name(row) for row in ranking]
    print_ranking(ranking, (await first)[0], await tested)
    print_summary(flow, ranking, time.perf_counter() - started)


def ensemble() -> list[tuple[str, dict[str, Any]]]:
    """Return every family with every combination of its settings."""
    return [
        (family, dict(zip(grid, values, strict=True)))
        for family, grid in ENSEMBLE.items()
        for values in itertools.product(*grid.values())
    ]


def neighbors(settings: dict[str, Any], step: float) -> list[dict[str, Any]]:
    """Return the settings with one of them a step up or down; whole numbers stay whole."""
    return [
        {**settings, key: max(1, round(value * factor)) if type(value) is int else value * factor}
        for key, value in settings.items()
        for factor in (1 / step, step)
    ]


# Output.


def name(row: Row) -> str:
    """Return a model's description, such as `support vectors C=1 gamma=0.001`."""
    return " ".join(
        [row["family"], *(f"{key}={value:g}" for key, value in row["settings"].items())]
    )


def print_ranking(ranking: list[Row], first: Row, accuracy: float) -> None:
    """Print the ten best models, and the results of the search and the test."""
    print("rank  model                                          accuracy  spread")
    for place, row in enumerate(ranking[:10], start=1):
        print(f"{place:4}  {name(row):45}  {row['accuracy']:8.4f}  {row['spread']:6.4f}")
    gained = ranking[0]["accuracy"] - first["accuracy"]
    print(f"\nThe search around the best of the ensemble gained {gained:.4f}.")
    print(f"On the test images, the accuracy of the winner is {accuracy:.2%}.")


def print_summary(flow: WorkflowEngine, ranking: list[Row], wall: float) -> None:
    """Print the number of tasks, the duration, and the utilization of the workers."""
    scores = [score for row in ranking for score in row["scores"]]
    busy = sum(score["seconds"] for score in scores)
    workers = len({score["worker"] for score in scores})
    print(f"\ntasks        {flow.stats.done} done, {flow.stats.failed} failed")
    print(f"wall time    {wall:.1f} s")
    print(f"work         {busy:.1f} s of training in {len(scores)} tasks")
    print(f"utilization  {busy / (wall * workers):.0%} of {workers} slots")


async def on_this_machine() -> None:
    """Run the workflow in worker processes, one per core."""
    async with WorkflowEngine.create(LocalExecutionBackend("process")) as flow:
        await main(flow)


if __name__ == "__main__":
    asyncio.run(on_this_machine())
