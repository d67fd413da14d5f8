"""A file is, at any moment, the old one or the new one."""

import pytest

from vaecourse._files import replace_file


@pytest.mark.parametrize("step", ["os.fsync", "pathlib.Path.replace"])
def test_file_keeps_its_content_when_it_cannot_be_replaced(step, tmp_path, monkeypatch):
    path = tmp_path / "history.json"
    replace_file(path, b"old")
    monkeypatch.setattr(step, lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        replace_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
