# /// script
# requires-python = ">=3.11"
# dependencies = ["rhapsody-core", "scikit-learn>=1.4"]
# ///
"""A search for proteins with a unique fold, steered by a model that is retrained during the run.

In the HP model, a protein is a chain of hydrophobic (H) and polar (P) amino acids on a square grid.
A simulation tries all folds of a chain, and counts those with the most contacts between H and H.
Only one chain in 50 has a unique best fold, as natural proteins do. A model predicts this number
from the chain, and selects the chains to simulate.

The model is served over HTTP (`model_server.py`), with the endpoints of OpenAI's interface. Tasks
send it chains in batches, with at most two requests at a time. In the same round, the next model is
trained on all results so far. When it is ready and the old model has answered its last request, the
next model replaces the old one.

With `--without-server`, each worker loads the model once instead, and the tasks call it directly.

    python examples/lattice_proteins.py                  # in worker processes, one per core
    python examples/lattice_proteins.py --without-server
    rhapsody run examples/lattice_proteins.py -b NAME    # on any backend

Requires scikit-learn: `pip install scikit-learn`.
"""

from __future__ import annotations

import asyncio
import importlib.util
import itertools
import json
import math
import random
import sys
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rhapsody import InputFile, LocalExecutionBackend, OutputFile, WorkflowEngine

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

SERVER = Path(__file__).with_name("model_server.py")
LENGTH = 12  # amino acids in a chain
ROUNDS = 6
CANDIDATES = 600  # chains that a round selects from
BATCH = 100  # chains in a request
SIMULATED = 30  # chains that a round simulates


# Functions that run on workers. They import the libraries that they use.


def simulate(chain: str) -> int:
    """Return the number of best folds of a chain; 1 means that the fold is unique."""
    sides = (1, 1j, -1, -1j)  # complex numbers are places on the grid
    folds = [0] * 2 * len(chain)  # indexed by the number of contacts

    def grow(fold: dict[complex, str], end: complex, contacts: int) -> None:
        if len(fold) == len(chain):
            folds[contacts] += 1
            return
        acid = chain[len(fold)]
        for place in (end + side for side in sides):
            if place in fold:
                continue
            new = 0
            if acid == "H":
                new = sum(fold.get(place + side) == "H" for side in sides) - (fold[end] == "H")
            grow({**fold, place: acid}, place, contacts + new)

    grow({0: chain[0], 1: chain[1]}, 1, 0)
    best = next(filter(None, reversed(folds)))
    return math.ceil(best / 2)  # a fold and its mirror image are the same


def train(results: dict[str, int], model: OutputFile) -> None:
    """Fit a model that predicts the logarithm of the number of best folds from the chain."""
    import joblib
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.pipeline import make_pipeline
    from sklearn.svm import SVR

    features = CountVectorizer(analyzer="char", ngram_range=(1, 5))  # numbers of H, P, HH, HP, ...
    values = [math.log(count) for count in results.values()]
    joblib.dump(make_pipeline(features, SVR(C=10)).fit(list(results), values), model)


def ask(server: tuple[str, int], prompts: list[str]) -> list[float]:
    """Return the prediction of the model on a server for each prompt."""
    host, port = server
    url = f"http://{host}:{port}/v1"
    with urllib.request.urlopen(f"{url}/models", timeout=60) as reply:
        model = json.load(reply)["data"][0]["id"]
    content = json.dumps({"model": model, "prompt": prompts}).encode()
    request = urllib.request.Request(
        f"{url}/completions", content, {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as reply:
        return [float(choice["text"]) for choice in json.load(reply)["choices"]]


def predict(model: Pipeline, chains: list[str]) -> list[float]:
    """Return the prediction of a model for each chain."""
    return [float(value) for value in model.predict(chains)]


def load(file: InputFile) -> Pipeline:
    """Return the model in a file."""
    import joblib

    model: Pipeline = joblib.load(file)
    return model


# The workflow.


async def main(flow: WorkflowEngine) -> None:
    """Alternate between selecting chains and simulating them, and replace the model meanwhile."""
    if importlib.util.find_spec("sklearn") is None:
        sys.exit("missing: scikit-learn; install it with: pip install scikit-learn")
    simulation = flow.function_task(simulate)
    training = flow.function_task(train)
    request = flow.function_task(limit="requests:2")(ask)
    prediction = flow.function_task(predict)
    loaded = flow.worker_value(load)
    without_server = "--without-server" in sys.argv

    @flow.executable_task(service=True, ready="tcp", ready_timeout="1 min")
    def serve(program: InputFile, model: InputFile) -> list[str | InputFile]:
        return [sys.executable, program, model, "{port}"]

    chains = ["".join(acids) for acids in itertools.product("HP", repeat=LENGTH)]
    random.Random(0).shuffle(chains)
    results: dict[str, int] = {}
    server: Any = None  # the future of the current model's service, or the model in the workers

    print("round  chains from  unique folds")
    for number in range(ROUNDS):
        candidates = chains[number * CANDIDATES : (number + 1) * CANDIDATES]

        # Train and start the next model while the current one answers.
        next_server: Any = None
        if 0 < number < ROUNDS - 1:
            file = f"model-{number}.joblib"
            training(dict(results), OutputFile(file))
            if without_server:
                next_server = loaded(InputFile(file))
            else:
                next_server = serve(InputFile(SERVER), InputFile(file))

        if server is None:
            selected = candidates[:SIMULATED]
        else:
            batches = [candidates[at : at + BATCH] for at in range(0, CANDIDATES, BATCH)]
            if without_server:
                answers = await asyncio.gather(*(prediction(server, batch) for batch in batches))
                await server.close()
            else:
                answers = await asyncio.gather(*(request(server, batch) for batch in batches))
                server.cancel()  # it has answered its last request
            ranking = sorted(zip(itertools.chain(*answers), candidates, strict=True))
            selected = [chain for _, chain in ranking[:SIMULATED]]

        counts = await asyncio.gather(*flow.map(simulation, selected))
        results.update(zip(selected, counts, strict=True))
        source = "chance" if server is None else f"model {number - 1}"
        print(f"{number:5}  {source:11}  {counts.count(1):5} of {SIMULATED}")
        server = next_server

    print(f"\ntasks  {flow.stats.done} done, {flow.stats.failed} failed")


async def on_this_machine() -> None:
    """Run the workflow in worker processes, one per core."""
    async with WorkflowEngine.create(LocalExecutionBackend("process")) as flow:
        await main(flow)


if __name__ == "__main__":
    asyncio.run(on_this_machine())
