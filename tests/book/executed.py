"""A plugin for nbval: a notebook whose cells have all passed goes into the cache of executions.

The site is built from that cache, so that no chapter is executed twice with the same parameters.
"""

import functools
import runpy

import nbformat
import pytest
from ipykernel.ipkernel import IPythonKernel
from jupyter_cache import get_cache
from jupyter_cache.base import CacheBundleIn

from tests.book.notebook_rules import ROOT

FAILED = pytest.StashKey[bool]()


@functools.cache
def cache_folder() -> str:
    """Where the book's own extension looks for executions with this state of the package."""
    return str(runpy.run_path(str(ROOT / "book/_ext/course_site.py"))["execution_cache"](ROOT))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let pytest-xdist keep the cells of a notebook together."""
    for item in items:
        if item.path.suffix == ".ipynb":
            item.add_marker(pytest.mark.xdist_group(item.path.name))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item):
    report = yield
    item.stash[FAILED] = item.stash.get(FAILED, False) or report.failed
    return report


def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """After the last cell of a notebook, keep what has been executed."""
    if item.path.suffix != ".ipynb" or (nextitem is not None and nextitem.path == item.path):
        return
    cells = [other for other in item.session.items if other.path == item.path]
    executed = {cell.cell.id: cell for cell in cells if hasattr(cell, "test_outputs")}
    notebook = nbformat.read(item.path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    if any(executed[cell.id].stash[FAILED] if cell.id in executed else cell.source for cell in code):
        return
    for number, cell in enumerate(code, 1):
        cell.outputs = executed[cell.id].test_outputs if cell.id in executed else []
        cell.execution_count = number
    # by which the site highlights the code: without it, "!git clone" is no Python
    notebook.metadata.language_info = IPythonKernel.language_info
    bundle = CacheBundleIn(nb=notebook, uri=str(item.path), data={"execution_seconds": 0.0})
    get_cache(cache_folder()).cache_notebook_bundle(bundle, check_validity=False, overwrite=True)
