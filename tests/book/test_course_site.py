"""The book's extension executes notebooks side by side, keeps what they printed, and forgets it in time."""

import runpy
from types import SimpleNamespace

from jupyter_cache import get_cache
from nbformat import v4

from tests.book.notebook_rules import NOTEBOOK_METADATA, ROOT

site = SimpleNamespace(**runpy.run_path(str(ROOT / "book/_ext/course_site.py")))


def test_notebooks_are_executed_in_their_folders_and_one_that_fails_is_left_to_sphinx(tmp_path):
    sources = {"one": "import os; print(os.path.basename(os.getcwd()))", "bad": "1 / 0", "page": None}
    for name, source in sources.items():
        (tmp_path / name).mkdir()
        cells = [v4.new_code_cell(source, id="only")] if source else []
        text = v4.writes(v4.new_notebook(cells=cells, metadata=NOTEBOOK_METADATA)) if source else "# A page"
        (tmp_path / name / (f"{name}.ipynb" if source else f"{name}.md")).write_text(text, "utf-8")
    folder = tmp_path / "cache"
    config = {"mode": "cache", "cache_path": str(folder), "timeout": 60}
    app = SimpleNamespace(config=SimpleNamespace(**{f"nb_execution_{key}": v for key, v in config.items()}))
    env = SimpleNamespace(doc2path=lambda name: next((tmp_path / name).iterdir()))
    site.execute_notebooks(app, env, list(sources))
    cache = get_cache(str(folder))
    (record,) = cache.list_cache_records()
    (cell,) = cache.get_cache_bundle(record.pk).nb.cells
    assert cell.outputs[0].text == "one\n"
    paths = {name: tmp_path / name / f"{name}.ipynb" for name in ("one", "bad")}
    assert {name: site.is_cached(path, cache) for name, path in paths.items()} == {"one": True, "bad": False}


def test_executions_of_another_state_of_the_package_are_forgotten(tmp_path):
    package = tmp_path / "vaecourse"
    package.mkdir()
    (package / "densities.py").write_text("one = 1\n")
    first = site.execution_cache(tmp_path)
    first.mkdir(parents=True)
    (package / "coursework").mkdir()
    (package / "coursework" / "grading.py").touch()  # no chapter uses it
    assert site.execution_cache(tmp_path) == first and first.exists()
    (package / "densities.py").write_text("one = 2\n")
    assert site.execution_cache(tmp_path) != first and not first.exists()
