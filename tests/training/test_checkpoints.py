import ast
import errno
import os
import pickle
import random
from pathlib import Path

import pytest
import torch
from torch.utils._pytree import tree_flatten

import vaecourse
from vaecourse.training import CheckpointError, Checkpoints, load_checkpoint, save_checkpoint

STATE = {
    "weights": torch.arange(6.0).reshape(2, 3),
    "nested": {0: {"moment": torch.tensor(1.5, dtype=torch.float64)}, "betas": (0.9, 0.999)},
    "words": ["a", None],
    "half": torch.tensor([1.0, 2.0], dtype=torch.bfloat16),
    "empty": torch.empty(0, 4),
    "random": torch.get_rng_state(),
    "tiny": 1e-300,
    "is_done": True,
}  # fmt: skip


def assert_same(first, second):
    """Equal in structure, type, dtype and every bit."""
    (ours, structure), (theirs, other_structure) = map(tree_flatten, (first, second))
    assert structure == other_structure
    for a, b in zip(ours, theirs, strict=True):
        assert type(a) is type(b)
        assert torch.equal(a, b) and a.dtype == b.dtype if isinstance(a, torch.Tensor) else a == b


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "state.ckpt"
    save_checkpoint(path, STATE)
    return path


# --- one file --------------------------------------------------------------------------------------------


def test_checkpoint_returns_what_was_saved(saved):
    assert_same(load_checkpoint(saved), STATE)


def test_checkpoint_of_real_optimizer_and_schedules_can_be_loaded_into_them(tmp_path):
    def make():
        torch.manual_seed(0)
        layer = torch.nn.Linear(2, 1)
        optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1)
        first = torch.optim.lr_scheduler.LinearLR(optimizer, total_iters=3)
        second = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 4])
        return layer, optimizer, torch.optim.lr_scheduler.SequentialLR(optimizer, [first, second], [3])

    def train(layer, optimizer, schedule, steps):
        for _ in range(steps):
            optimizer.zero_grad()
            layer(torch.ones(4, 2)).square().mean().backward()
            optimizer.step()
            schedule.step()

    through, stopped, resumed = make(), make(), make()
    train(*through, 9)
    train(*stopped, 4)
    save_checkpoint(tmp_path / "a.ckpt", dict(enumerate(part.state_dict() for part in stopped)))
    for position, part_state in load_checkpoint(tmp_path / "a.ckpt").items():
        resumed[position].load_state_dict(part_state)
    train(*resumed, 5)
    assert torch.equal(resumed[0].weight, through[0].weight)
    assert resumed[1].param_groups[0]["lr"] == through[1].param_groups[0]["lr"]


def test_checkpoint_keeps_tied_weights_apart_and_leaves_them_alone(tmp_path):
    weight = torch.ones(2, 2)
    save_checkpoint(tmp_path / "a.ckpt", {"first": weight, "second": weight.T, "row": weight[0]})
    loaded = load_checkpoint(tmp_path / "a.ckpt")
    assert torch.equal(loaded["first"], loaded["second"])
    weight.zero_()
    assert loaded["row"].tolist() == [1.0, 1.0]


def test_checkpoint_names_that_look_alike_do_not_collide(tmp_path):
    state = {"a.b": torch.tensor(1), "a": {"b": torch.tensor(2)}, "0": torch.tensor(3), 0: torch.tensor(4)}
    save_checkpoint(tmp_path / "a.ckpt", state)
    assert_same(load_checkpoint(tmp_path / "a.ckpt"), state)


@pytest.mark.parametrize(
    ("state", "place"),
    [
        ({"f": {"g": [1, max]}}, r"state\.f\.g\[1\], which is of type builtin_function"),
        ({"path": Path("x")}, r"state\.path, which is of type PosixPath|WindowsPath"),
        ({1.5: 2}, r"keys of state must be words or integers, got 1\.5"),
        ({"a": {True: 2}}, r"keys of state\.a must be words or integers, got True"),
    ],
    ids=["function", "object", "float-key", "bool-key"],
)
def test_checkpoint_refuses_what_it_could_not_give_back(state, place, tmp_path):
    with pytest.raises(ValueError, match=place):
        save_checkpoint(tmp_path / "a.ckpt", state)
    assert list(tmp_path.iterdir()) == []


# --- damage ----------------------------------------------------------------------------------------------


def test_checkpoint_with_one_changed_byte_is_refused(saved):
    """Each of 1,000 random single-byte changes is noticed (reliability, figure 10)."""
    content, chance = saved.read_bytes(), random.Random(0)
    for _ in range(1000):
        damaged = bytearray(content)
        damaged[chance.randrange(len(content))] ^= chance.randrange(1, 256)
        saved.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"state\.ckpt"):
            load_checkpoint(saved)
    saved.write_bytes(content)
    assert_same(load_checkpoint(saved), STATE)


def test_checkpoint_cut_short_is_refused(saved):
    content, chance = saved.read_bytes(), random.Random(0)
    for length in [0, 1, len(content) - 1, *(chance.randrange(len(content)) for _ in range(97))]:
        saved.write_bytes(content[:length])
        with pytest.raises(CheckpointError, match="damaged"):
            load_checkpoint(saved)


def test_checkpoint_with_bytes_added_is_refused(saved):
    saved.write_bytes(saved.read_bytes() + b"\0")
    with pytest.raises(CheckpointError, match="does not have the checksum that was written with it"):
        load_checkpoint(saved)


def test_checkpoint_of_another_version_says_so(saved):
    saved.write_bytes(saved.read_bytes().replace(b"vaecourse-checkpoint 1 ", b"vaecourse-checkpoint 2 ", 1))
    with pytest.raises(CheckpointError, match="has format version 2, this vaecourse reads version 1"):
        load_checkpoint(saved)


class Payload:
    """Runs code when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return (Path.touch, (self.target,))


def test_malicious_file_is_refused_and_never_runs(tmp_path):
    target = tmp_path / "executed"
    pickle.loads(pickle.dumps(Payload(target)))
    assert target.exists()  # the payload works where something unpickles it
    target.unlink()
    torch.save({"evil": Payload(target)}, tmp_path / "evil.pt")
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps(Payload(target)))
    for name in ("evil.pt", "evil.pkl"):
        with pytest.raises(CheckpointError, match="is not a checkpoint of vaecourse"):
            load_checkpoint(tmp_path / name)
    assert not target.exists()


def test_package_never_unpickles():
    """No module imports pickle or calls torch.load, numpy's allow_pickle, eval or exec (figure 6).

    One runs code: the runner, whose purpose is to run what students write.
    """
    bad = {"pickle", "dill", "cloudpickle", "joblib", "torch.load", "allow_pickle", "eval", "exec"}
    found = []
    for path in sorted(Path(vaecourse.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            words = []
            if isinstance(node, ast.Import | ast.ImportFrom):
                words = [getattr(node, "module", None), *(alias.name for alias in node.names)]
            elif isinstance(node, ast.Call):
                words = [ast.unparse(node.func), *(keyword.arg for keyword in node.keywords)]
            found += [f"{path.name}: {word}" for word in words if word in bad]
    assert found == ["runner.py: exec"]


# --- writing ---------------------------------------------------------------------------------------------


def test_failed_write_keeps_the_old_file_and_leaves_nothing_behind(saved, monkeypatch):
    def no_space(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.fsync", no_space)
    with pytest.raises(CheckpointError, match=r"could not write .*state\.ckpt .*No space left on device"):
        save_checkpoint(saved, {"other": torch.zeros(3)})
    assert names(saved.parent) == ["state.ckpt"]
    assert_same(load_checkpoint(saved), STATE)


def test_interrupted_write_keeps_the_old_file(saved, monkeypatch):
    """Between any two calls to the operating system the file is whole."""
    seen = []
    monkeypatch.setattr("os.fsync", lambda descriptor: seen.append(load_checkpoint(saved)))
    save_checkpoint(saved, {"other": 1})
    # the new file is synchronised before it takes the name, and the folder afterwards
    assert_same(seen, [STATE, {"other": 1}])


@pytest.mark.skipif(os.name != "posix", reason="limits the size of files the POSIX way")
def test_write_that_fails_half_way_keeps_the_old_file(saved):
    """The operating system refuses real bytes, as on a full disk."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(CheckpointError, match=r"could not write .* \(4\.0 MB\): File too large"):
            save_checkpoint(saved, {"large": torch.zeros(1_000_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert names(saved.parent) == ["state.ckpt"]
    assert_same(load_checkpoint(saved), STATE)


@pytest.mark.skipif(os.name != "posix", reason="takes away rights the POSIX way")
def test_read_only_folder_is_named_and_keeps_the_old_file(saved):
    saved.parent.chmod(0o555)
    if is_root := os.geteuid() == 0:
        os.seteuid(65534)  # rights do not bind the superuser
    try:
        with pytest.raises(CheckpointError, match=r"could not write .*state\.ckpt .*Permission denied"):
            save_checkpoint(saved, {"other": 1})
    finally:
        if is_root:
            os.seteuid(0)
        saved.parent.chmod(0o755)
    assert_same(load_checkpoint(saved), STATE)


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"could not write .*no.*a\.ckpt .*No such file or directory"):
        save_checkpoint(tmp_path / "no" / "a.ckpt", {})


# --- a folder of files -----------------------------------------------------------------------------------


def test_checkpoints_keeps_the_last_few_and_finds_the_newest(tmp_path):
    folder = tmp_path / "deep" / "run"
    checkpoints = Checkpoints(folder, keep=2)
    assert checkpoints.latest() is None
    for step in (9, 10, 100):
        assert checkpoints.save(step, {"step": step}) == checkpoints.latest()
    assert names(folder) == ["step-000000010.ckpt", "step-000000100.ckpt"]
    assert load_checkpoint(checkpoints.latest()) == {"step": 100}


def test_checkpoints_sweeps_up_after_dead_processes_but_nothing_else(tmp_path):
    for name in ("step-000000001.ckpt.77.tmp", "notes.tmp", "step-1.ckpt", "other.ckpt"):
        (tmp_path / name).touch()
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.latest() is None
    checkpoints.save(5, {})
    assert names(tmp_path) == ["notes.tmp", "other.ckpt", "step-000000005.ckpt", "step-1.ckpt"]


def test_checkpoints_says_that_its_folder_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="could not make the folder"):
        Checkpoints(tmp_path / "file" / "run").save(1, {})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"every": 0}, "every must be at least 1, got 0"),
        ({"keep": 1}, "keep must be at least 2, got 1"),
    ],
)
def test_checkpoints_rejects_numbers_without_sense(arguments, message):
    with pytest.raises(ValueError, match=message):
        Checkpoints("run", **arguments)
