"""The notebook in the examples, in a kernel of Jupyter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

NOTEBOOK = Path(__file__).parents[3] / "examples" / "notebook.ipynb"


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """The cells of the notebook, after it has run."""
    directory = tmp_path_factory.mktemp("notebook")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR"):
            patch.setenv(name, str(directory / name))
        notebook = nbformat.read(NOTEBOOK, as_version=4)
        resources = {"metadata": {"path": str(directory)}}
        nbclient.NotebookClient(notebook, timeout=120, resources=resources).execute()
    found: list[Any] = notebook.cells
    return found


def shown(cells: list[Any], kind: str) -> str:
    """Return all outputs of a kind: `text/html`, `text/plain`, `stdout` or `stderr`."""
    outputs = [output for cell in cells for output in cell.get("outputs", ())]
    texts = [output.get("data", {}).get(kind, "") for output in outputs]
    texts += [output.text for output in outputs if output.get("name") == kind]
    return "\n".join(texts)


@pytest.mark.one_python
def test_the_notebook_of_the_examples_runs(cells: list[Any]) -> None:
    assert "pi is about 3.1" in shown(cells, "stdout")
    assert "caught: division by zero" in shown(cells, "stdout")
    assert "'HELLO FROM A COMMAND'" in shown(cells, "text/plain")
    assert "rhapsody: 12 done, 1 failed in " in shown(cells, "stderr")


@pytest.mark.one_python
def test_engines_futures_and_summaries_are_shown_as_html(cells: list[Any]) -> None:
    html = shown(cells, "text/html")
    for title in ("WorkflowEngine engine.", "hits (task.000001)", "divide (task.000013)"):
        assert f"<strong>{title}" in html
    assert "ZeroDivisionError: division by zero" in html
    assert "12 done, 1 failed" in html


def test_the_notebook_contains_no_outputs() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.outputs for cell in code] == [[] for _ in code]
    assert [cell.execution_count for cell in code] == [None for _ in code]
