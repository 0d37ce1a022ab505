"""The example notebook, run as a researcher does: against RabbitMQ and a worker, then saved and opened again."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat as untyped
import pytest
from nbclient import NotebookClient
from services.rabbitmq import RabbitServer
from services.redis import RedisServer
from services.site import ROOT, Site, open_site

nbformat: Any = untyped

NOTEBOOK = ROOT / "examples" / "notebook.ipynb"
_SECRET = "a-value-that-must-not-be-seen"
_SECONDS_PER_CELL = 180


@pytest.fixture
def site(rabbitmq_server: RabbitServer, redis_server: RedisServer, tmp_path: Path) -> Iterator[Site]:
    with (
        open_site(tmp_path, broker=rabbitmq_server.url, registry=redis_server.url, runtime="process") as opened,
        opened.make_worker(),
    ):
        yield opened


@pytest.fixture
def in_kernel(site: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Give kernels, which are children of this process, the site's settings."""
    for name, value in {**site.environment, "PYTHONPATH": str(ROOT), "API_TOKEN": _SECRET}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))


def run(notebook: Any, folder: Path) -> Any:
    client = NotebookClient(notebook, timeout=_SECONDS_PER_CELL, resources={"metadata": {"path": str(folder)}})
    client.execute()
    return notebook


def outputs(notebook: Any) -> list[tuple[str, list[Any]]]:
    return [(cell.source, cell.outputs) for cell in notebook.cells if cell.cell_type == "code"]


def printed(cell: tuple[str, list[Any]]) -> str:
    return "".join(output.text for output in cell[1] if output.output_type == "stream" and output.name == "stdout")


def shown(cell: tuple[str, list[Any]], kind: str) -> str:
    return "".join(output.data.get(kind, "") for output in cell[1] if output.output_type == "execute_result")


def is_static(html: str) -> bool:
    """Tell whether it needs nothing but itself: no script, no handler, nothing fetched."""
    return not re.search(r"<script|<iframe|<link|<img|\son\w+\s*=|https?://|javascript:", html, re.IGNORECASE)


@pytest.mark.usefixtures("in_kernel")
def test_the_example_notebook_runs_and_its_saved_form_tells_how_it_went(tmp_path: Path) -> None:
    path = tmp_path / "saved.ipynb"
    nbformat.write(run(nbformat.read(NOTEBOOK, as_version=4), tmp_path), path)
    cells = outputs(nbformat.read(path, as_version=4))
    by_source = {source.splitlines()[0]: cell for cell in cells for source in [cell[0]]}

    assert printed(by_source["for line in exp.logs(follow=True):"]).splitlines()[0] == "epoch 1 loss 0.800"
    assert printed(by_source["for line in exp.logs(follow=True):"]).splitlines()[-1] == "epoch 10 loss 0.107"
    assert shown(by_source["exp.result()"], "text/plain") == "{'loss': 0.107}"
    assert shown(by_source["sorted(exp.outputs)"], "text/plain") == "['outputs/result.json']"
    assert shown(by_source["from concurrent.futures import as_completed"], "text/plain") == "[0.028, 0.349]"
    assert "no data" in printed(by_source["from jobqueue import ExperimentFailed"])

    html = shown(by_source["exp"], "text/html")
    assert "SUCCEEDED" in html
    assert "from-a-notebook" in html
    assert "progress=1 loss=0.107" in html
    assert all(is_static(shown(cell, "text/html")) for cell in cells)


@pytest.mark.usefixtures("in_kernel")
def test_a_saved_notebook_holds_no_secret(site: Site, tmp_path: Path) -> None:
    program = "import os; print('token', os.environ['API_TOKEN'])"
    notebook = nbformat.v4.new_notebook(
        cells=[
            nbformat.v4.new_code_cell(
                "from producers import submit_experiment\n"
                f'exp = submit_experiment(image="python:3.12-slim", command=["python", "-c", {program!r}],\n'
                '    secrets=["API_TOKEN"], memory="256MiB")\n'
                "exp"
            ),
            nbformat.v4.new_code_cell("print(*exp.logs(follow=True), exp.wait(), exp.why(), repr(exp), exp.look())"),
            nbformat.v4.new_code_cell("exp"),
        ]
    )
    saved = nbformat.writes(run(notebook, tmp_path))
    assert "EXITED_ZERO" in saved
    assert "token" in saved
    assert _SECRET not in saved
    passwords = [site.settings.broker_url, site.settings.registry_url]
    assert not any(url in saved for url in passwords)


def test_the_notebook_in_the_repository_has_no_outputs() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert not any(cell.outputs or cell.execution_count for cell in notebook.cells if cell.cell_type == "code")
