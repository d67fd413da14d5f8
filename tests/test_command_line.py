"""The commands pass on what they are told, explain themselves, and fail in one line with their own status."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest

from vaecourse import _processes, _runs
from vaecourse.__main__ import HELP, main
from vaecourse._configuration import CHOICES, RunConfig
from vaecourse._runs import evaluate, train
from vaecourse.checkpoints import CheckpointError

TINY = ["--data", "digits", "--hidden-dims", "8", "--latent-dim", "2", "--batch-size", "500"]
RESULT = {
    "loss": [3.0, 2.0],
    "test": {"elbo": -2.5, "nll": 2.0, "kl": 0.5},
    "unit": "nats per image",
}


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """Run ``vaecourse train`` without training; return what `train` was given."""

    def call(*options: str) -> dict:
        given = {}

        def note(config, folder, **settings):
            given.update(settings, config=config, folder=folder)
            return RESULT

        monkeypatch.setattr(_runs, "train", note)
        assert main(["train", str(tmp_path / "run"), *options]) == 0
        return given

    return call


def failure(capsys, *arguments: str) -> tuple[int, str]:
    """Status and the one line on standard error of a command that fails."""
    status = main(arguments)
    (line,) = capsys.readouterr().err.splitlines()
    return status, line


# ---- options ----


@pytest.mark.parametrize(
    ("options", "name", "value"),
    [
        ("--data digits", "data", "digits"),
        ("--likelihood laplace", "likelihood", "laplace"),
        ("--likelihood gaussian --scale learned", "scale", "learned"),
        ("--likelihood gaussian --scale 0.5", "scale", 0.5),
        ("--latent-dim 5", "latent_dim", 5),
        ("--hidden-dims 30 20", "hidden_dims", (30, 20)),
        ("--activation tanh", "activation", "tanh"),
        ("--pixel-bias", "pixel_bias", True),
        ("--importance-samples 5", "importance_samples", 5),
        ("--binarize", "binarize", True),
        ("--beta 0.5", "beta", 0.5),
        ("--epochs 3", "num_epochs", 3),
        ("--batch-size 7", "batch_size", 7),
        ("--learning-rate 2e-3", "learning_rate", 0.002),
        ("--schedule one-cycle", "schedule", "one-cycle"),
        ("--precision bf16", "precision", "bf16"),
        ("--micro-batch-size 4", "micro_batch_size", 4),
        ("--seed 9", "seed", 9),
    ],
)
def test_train_option_reaches_the_configuration_alone(trained, options, name, value):
    config = trained(*options.split())["config"]
    others = {} if name != "scale" else {"likelihood": "gaussian"}
    assert config == RunConfig(**{name: value, **others})


@pytest.mark.parametrize(
    ("options", "name", "value"),
    [
        ("--device cpu", "device", "cpu"),
        ("", "device", "auto"),
        ("--compile", "compile", True),
        ("", "compile", False),
        ("--checkpoint-every 50", "checkpoint_every", 50),
        ("", "checkpoint_every", None),
        ("--keep 5", "keep", 5),
    ],
)
def test_train_option_about_the_machine_reaches_training(trained, tmp_path, options, name, value):
    given = trained(*options.split())
    assert given[name] == value
    assert (given["folder"], given["config"]) == (tmp_path / "run", RunConfig())


@pytest.mark.parametrize("options", [["--processes", "2"], ["--max-restarts", "1"]])
def test_many_processes_are_launched_with_the_same_words(tmp_path, monkeypatch, options):
    launched = []
    monkeypatch.setattr(_processes, "launch", lambda *arguments: launched.append(arguments) or 4)
    words = ["train", str(tmp_path), *options]
    assert main(words) == 4
    numbers = (2, 0) if "--processes" in options else (1, 1)
    assert launched == [(*numbers, words)]


def test_launched_process_trains_instead_of_launching(trained, monkeypatch, capsys):
    monkeypatch.setattr(_processes, "launch", None)
    for name, value in {"TORCHELASTIC_RUN_ID": "1", "WORLD_SIZE": "2", "RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    assert trained("--processes", "2", "--max-restarts", "1")["config"].num_processes == 2
    assert trained()["config"].num_processes == 2
    assert capsys.readouterr() == ("", "")  # the first process speaks for all


def test_evaluate_options_reach_the_evaluation(tmp_path, monkeypatch):
    given = {}

    def note(folder, **settings):
        given.update(settings, folder=folder)
        raise ValueError("enough")

    monkeypatch.setattr(_runs, "evaluate", note)
    main(["evaluate", str(tmp_path)])
    defaults = {"num_samples": 500, "num_images": 1000, "device": "auto", "seed": 0, "folder": tmp_path}
    assert given == defaults
    options = ["--num-samples", "5", "--num-images", "6", "--device", "cpu", "--seed", "7"]
    main(["evaluate", str(tmp_path), *options])
    assert given == {"num_samples": 5, "num_images": 6, "device": "cpu", "seed": 7, "folder": tmp_path}


# ---- help ----


def help_of(capsys, *command: str) -> str:
    with pytest.raises(SystemExit) as stop:
        main([*command, "--help"])
    assert stop.value.code == 0
    return " ".join(capsys.readouterr().out.split())


def test_help_lists_every_command(capsys):
    text = help_of(capsys)
    assert [name for name, entry in HELP.items() if f"{name} {entry.summary}" not in text] == []


@pytest.mark.parametrize("name", HELP)
def test_help_of_a_command_has_an_example_that_can_be_parsed(capsys, name):
    text = help_of(capsys, name)
    program, *words = HELP[name].example.splitlines()[0].split()
    assert f"example: {program} {' '.join(words)}" in text
    assert help_of(capsys, *words) == text  # argparse has read the words without complaint
    assert all(f"{word} " in text for word in words if word.startswith("-"))


def test_help_of_train_states_the_defaults_and_choices_of_a_configuration(capsys):
    text = help_of(capsys, "train")
    stated = dict(
        re.findall(r"--([a-z-]+)(?: [A-Z]+)*(?: \[[^]]*\])? (?:(?!--).)*?\(default: ([^)]*)\)", text)
    )
    config = RunConfig()
    names = {"epochs": "num_epochs", "processes": "num_processes"}
    words = {"hidden-dims": "400", "binarize": "no", "pixel-bias": "no"}
    words |= {"micro-batch-size": "the whole batch"}
    for option, default in stated.items():
        name = names.get(option, option.replace("-", "_"))
        if hasattr(config, name):
            assert default == words.get(option, str(getattr(config, name))), option
    assert len(stated) == 22
    assert [choices for choices in CHOICES.values() if f"{', '.join(choices)}: " not in text] == []


def test_help_and_mistakes_do_not_wait_for_torch():
    command = "import sys, vaecourse.__main__; print({'torch', 'matplotlib', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


# ---- failures ----


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--epochs 0", "num_epochs must be a whole number from 1 on, got 0"),
        ("--beta -1", "beta must be a positive number, got -1.0"),
        ("--scale wide --likelihood gaussian", "got 'wide'"),
        ("--scale 2", "a bernoulli likelihood has no scale, got 2.0"),
        ("--device quantum", "torch knows no device 'quantum'; available here"),
        ("--keep 1", "keep must be at least 2"),
        ("--checkpoint-every 0", "every counts optimiser steps and must be at least 1, got 0"),
        ("--max-restarts -1", "max_restarts must not be negative, got -1"),
    ],
)
def test_bad_input_is_status_2(capsys, tmp_path, options, message):
    words = ["train", str(tmp_path / "run"), "--binarize", "--data", "digits", *options.split()]
    status, line = failure(capsys, *words)
    assert status == 2 and line.startswith("vaecourse: ") and message in line
    assert not (tmp_path / "run").exists()


def test_unknown_option_is_status_2(capsys, tmp_path):
    with pytest.raises(SystemExit) as stop:
        main(["train", str(tmp_path), "--epoch", "3"])
    assert stop.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1] == "vaecourse: error: unrecognized arguments: --epoch 3"


def test_another_configuration_is_status_2_and_names_what_differs(capsys, tmp_path):
    (tmp_path / "config.json").write_text(RunConfig(latent_dim=3).to_json(), "utf-8")
    status, line = failure(capsys, "train", str(tmp_path), "--latent-dim", "5")
    assert status == 2 and "latent_dim was 3, is 5" in line and "choose another folder" in line


def test_folder_that_cannot_be_made_is_status_3(capsys, tmp_path):
    (tmp_path / "file").touch()
    status, line = failure(capsys, "train", str(tmp_path / "file" / "run"), "--binarize", *TINY)
    assert status == 3 and "file" in line


def test_damaged_checkpoint_is_status_3(capsys, tmp_path):
    train(RunConfig(data="digits", hidden_dims=[8], latent_dim=2, num_epochs=1), tmp_path, device="cpu")
    (path,) = (tmp_path / "checkpoints").glob("*.ckpt")
    path.write_bytes(path.read_bytes()[:-1])
    status, line = failure(capsys, "evaluate", str(tmp_path), "--device", "cpu")
    assert status == 3 and path.name in line and "damaged" in line


def test_divergence_is_status_4_and_names_step_and_checkpoint(capsys, tmp_path):
    words = ["train", str(tmp_path), "--binarize", *TINY, "--device", "cpu", "--learning-rate", "1e30"]
    status, line = failure(capsys, *words)
    assert status == 4 and "epoch 0, step" in line and "the last checkpoint is None" in line


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (ValueError("two\n  lines"), 2, "vaecourse: two lines"),
        (CheckpointError("bad file"), 3, "vaecourse: bad file"),
        (OSError(28, "No space left on device", "a.json"), 3, "No space left on device: 'a.json'"),
        (FloatingPointError("the loss is nan"), 4, "vaecourse: the loss is nan"),
        (KeyboardInterrupt(), 130, "vaecourse: stopped; the same command goes on where it was"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_each_kind_of_error_has_its_status(capsys, tmp_path, monkeypatch, error, status, line):
    def fail(*arguments, **settings):
        raise error

    monkeypatch.setattr(_runs, "train", fail)
    assert (found := failure(capsys, "train", str(tmp_path), "--binarize"))[0] == status
    assert line in found[1]


def test_errors_of_the_program_keep_their_traceback(tmp_path, monkeypatch):
    monkeypatch.setattr(_runs, "train", lambda *arguments, **settings: {}["loss"])
    with pytest.raises(KeyError):
        main(["train", str(tmp_path), "--binarize"])


def test_warnings_are_one_line(capsys, tmp_path, monkeypatch):
    def warn(*arguments, **settings):
        warnings.simplefilter("always")
        warnings.warn("another machine", stacklevel=2)
        return RESULT

    monkeypatch.setattr(_runs, "train", warn)
    assert main(["train", str(tmp_path), "--binarize"]) == 0
    assert capsys.readouterr().err == "vaecourse: warning: another machine\n"


def test_signal_handler_is_put_back(tmp_path):
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        main(["evaluate", str(tmp_path)])
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)


# ---- the commands as a student runs them ----


def test_train_and_evaluate_tell_the_same_as_their_files(capsys, tmp_path):
    words = ["train", str(tmp_path), *TINY, "--epochs", "2", "--device", "cpu"]
    assert main(words) == 0
    history = json.loads((tmp_path / "history.json").read_text("utf-8"))
    note, line = capsys.readouterr().out.splitlines()
    assert note.startswith("note: a Bernoulli likelihood on grey levels is a cross-entropy")
    assert f"2 epochs, training loss {history['loss'][-1]:.2f} nats per image" in line
    assert f"test ELBO {history['test']['elbo']:.2f} = -(nll {history['test']['nll']:.2f} + kl" in line
    assert main(words) == 0
    assert capsys.readouterr().out.startswith(f"{tmp_path} is finished: more --epochs prolong it")
    assert main(["evaluate", str(tmp_path), "--num-samples", "5", "--device", "cpu"]) == 0
    out, err = capsys.readouterr()
    result = json.loads((tmp_path / "evaluation.json").read_text("utf-8"))
    head, elbo, nll, units, note = out.splitlines()
    assert head == "297 test images, 5 importance samples, nats per image"
    assert f"{result['elbo']:.2f}   (nll {result['nll']:.2f}, kl {result['kl']:.2f})" in elbo
    assert f"{result['importance_weighted_nll']:.2f}   +- {result['standard_error']:.3f} by the draws" in nll
    assert nll.endswith(f"+- {result['sampling_error']:.2f} by the choice of images")
    assert units.split()[2:] == [str(result["active_units"]), "of", "2"]
    assert note.startswith("note: ") and err == ""


def start(folder: Path, *options: str) -> subprocess.Popen:
    """Start a training in a process of its own and wait for its first checkpoint."""
    command = [sys.executable, "-m", "vaecourse", "train", str(folder), *TINY, "--binarize", *options]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # even if it is ignored here
    )
    deadline = time.monotonic() + 120
    while not list(folder.glob("checkpoints/*.ckpt")) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return process


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_stopped_training_says_how_to_go_on_and_goes_on(tmp_path, signum, status):
    process = start(tmp_path, "--epochs", "100000", "--device", "cpu")
    process.send_signal(signum)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (status, "")
    assert err == "vaecourse: stopped; the same command goes on where it was\n"
    assert not list(tmp_path.glob("**/*.tmp")) and not (tmp_path / "history.json").exists()
    stopped_at = evaluate(tmp_path, num_samples=2, num_images=2, device="cpu")["checkpoint"]
    step = int(stopped_at.removeprefix("step-").removesuffix(".ckpt"))
    # 100,000 epochs would take too long: go on by hand to the end of the epoch after next
    text = (tmp_path / "config.json").read_text("utf-8").replace("100000", str(step // 3 + 2))
    (tmp_path / "config.json").write_text(text, "utf-8")
    history = train(RunConfig.from_json(text), tmp_path, device="cpu", progress=False)
    assert len(history["loss"]) == step // 3 + 2
    assert history["loss"][-1] < history["loss"][0]


def test_two_processes_train_what_one_would(tmp_path):
    words = ["--epochs", "3", "--device", "cpu", "--likelihood", "gaussian"]
    command = [sys.executable, "-m", "vaecourse", "train", str(tmp_path / "two"), *TINY, *words]
    done = subprocess.run([*command, "--processes", "2"], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == 1
    history = json.loads((tmp_path / "two" / "history.json").read_text("utf-8"))
    assert main(["train", str(tmp_path / "one"), *TINY, *words]) == 0
    alone = json.loads((tmp_path / "one" / "history.json").read_text("utf-8"))
    assert history["loss"] == pytest.approx(alone["loss"], rel=0.02)  # they differ by the noise of z
    assert json.loads((tmp_path / "two" / "config.json").read_text("utf-8"))["num_processes"] == 2


@pytest.mark.slow
def test_two_processes_fail_with_the_status_of_one(tmp_path):
    command = [sys.executable, "-m", "vaecourse", "train", str(tmp_path), *TINY, "--learning-rate", "1e30"]
    done = subprocess.run([*command, "--processes", "2"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 4
    assert done.stderr.count("training diverged") == 2 and "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_two_processes_start_again_after_one_was_killed(tmp_path):
    options = ["--epochs", "200", "--device", "cpu", "--processes", "2", "--max-restarts", "1"]
    process = start(tmp_path, *options)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGKILL)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0 and "200 epochs" in out and "Traceback" not in err
    assert len(json.loads((tmp_path / "history.json").read_text("utf-8"))["loss"]) == 200


@pytest.mark.slow
def test_two_processes_stop_together_and_save(tmp_path):
    process = start(tmp_path, "--epochs", "100000", "--device", "cpu", "--processes", "2")
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (143, "")
    assert err == "vaecourse: stopped; the same command goes on where it was\n"
