"""The sandbox that tests of the grader need."""

import os

import pytest

from tests.coursework.attacks import SLOT
from vaecourse.coursework.box.sandbox import SandboxError, self_test

collect_ignore_glob = ["answers/ps*.py", "attacks/hostile.py", "attacks/forging.py"]  # cells, not modules


@pytest.fixture(scope="session")
def sandbox() -> None:
    """Tests that ask for it are skipped where there is no sandbox, and fail where there has to be one."""
    try:
        self_test(SLOT)
    except SandboxError as error:
        if os.environ.get("CI"):
            pytest.fail(f"this machine has to have a sandbox: {error}")
        pytest.skip(f"no sandbox: {error}")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep tests together whose fixture takes long, so that pytest-xdist makes it only once."""
    for item in items:
        for fixture in {"everybody", "course"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.xdist_group(fixture))
