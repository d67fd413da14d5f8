"""The commands pass on what they are told, explain themselves, and fail in one line with their own status."""

import inspect
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

from vaecourse.cli import EXAMPLES, app, main, runs
from vaecourse.cli.configuration import RunConfig
from vaecourse.cli.runs import evaluate, train
from vaecourse.training import CheckpointError, load_checkpoint, processes

TINY = ["--data", "digits", "--hidden-dims", "8", "--latent-dim", "2", "--batch-size", "500"]
RESULT = {
    "loss": [3.0, 2.0],
    "test": {"elbo": -2.5, "nll": 2.0, "kl": 0.5},
    "unit": "nats per image",
}
# every setting of a run, none at its default, and what it must come to
ALL_OPTIONS = """
--data digits --likelihood laplace --scale 0.5 --latent-dim 3 --hidden-dims 9 8 --activation tanh --binarize
--beta 0.5 --epochs 3 --batch-size 500 --learning-rate 2e-3 --schedule one-cycle --precision bf16
--micro-batch-size 250 --seed 9
"""
ALL_SETTINGS = {
    "data": "digits",
    "likelihood": "laplace",
    "scale": 0.5,
    "latent_dim": 3,
    "hidden_dims": (9, 8),
    "activation": "tanh",
    "binarize": True,
    "beta": 0.5,
    "num_epochs": 3,
    "batch_size": 500,
    "learning_rate": 0.002,
    "schedule": "one-cycle",
    "precision": "bf16",
    "micro_batch_size": 250,
    "seed": 9,
}
ALONE = {"pixel_bias": True, "importance_samples": 2, "num_processes": 2}  # these exclude one of the others


def failure(capsys, *arguments: str) -> tuple[int, str]:
    """Status and the one line on standard error of a command that fails."""
    status = main(arguments)
    (line,) = capsys.readouterr().err.splitlines()
    return status, line


# ---- options ----


def test_every_option_reaches_the_run(tmp_path, capsys):
    """A whole run: what was asked for stands in config.json, and the machine's options act."""
    machine = ["--device", "cpu", "--checkpoint-every", "1", "--keep", "2"]
    assert main(["train", str(tmp_path), *ALL_OPTIONS.split(), *machine]) == 0
    written = (tmp_path / "config.json").read_text("utf-8")
    assert RunConfig.from_json(written) == RunConfig(**ALL_SETTINGS)
    assert [path.name for path in sorted((tmp_path / "checkpoints").iterdir())] == [
        f"step-{step:09}.ckpt" for step in (8, 9)
    ]
    saved = load_checkpoint(tmp_path / "checkpoints" / "step-000000009.ckpt")["settings"]
    expected = {"batch_size": "500", "micro_batch_size": "250", "precision": "bf16", "seed": "9"}
    expected |= {"scheduler": "OneCycleLR", "max_lr of parameter group 0": "0.002"}
    assert saved | expected == saved
    assert {*ALL_SETTINGS, *ALONE} == set(RunConfig.__dataclass_fields__)
    default = RunConfig()
    assert [name for name, value in ALL_SETTINGS.items() if getattr(default, name) == value] == []


def parsed(*words: str) -> dict:
    """What the command's function would be given."""
    _, given, _ = app.parse_args(words, exit_on_error=False, print_error=False)
    given.apply_defaults()
    return given.arguments


@pytest.mark.parametrize(
    ("options", "config"),
    [
        ("", {}),
        ("--pixel-bias", {"pixel_bias": True}),
        ("--importance-samples 2", {"importance_samples": 2}),
        ("--processes 2", {"num_processes": 2}),
        ("--likelihood gaussian --scale learned", {"likelihood": "gaussian", "scale": "learned"}),
    ],
)
def test_train_option_is_read(options, config):
    given = parsed("train", "run", *options.split())
    assert given["config"] == RunConfig(**config)
    assert (given["device"], given["compile"], given["checkpoint_every"]) == ("auto", False, None)


def test_compile_reaches_training(tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert main(["train", str(tmp_path / "run"), *TINY, "--device", "cpu", "--compile"]) == 2


@pytest.mark.parametrize(
    ("options", "numbers"), [(["--processes", "2"], (2, 0)), (["--max-restarts", "1"], (1, 1))]
)
def test_many_processes_are_launched_with_the_same_words(tmp_path, monkeypatch, options, numbers):
    launched = []
    monkeypatch.setattr(processes, "launch", lambda *arguments: launched.append(arguments) or 4)
    words = ["train", str(tmp_path), *options]
    assert main(words) == 4
    assert launched == [(*numbers, words)]


def test_launched_process_trains_instead_of_launching(tmp_path, monkeypatch, capsys):
    given = []
    monkeypatch.setattr(runs, "train", lambda config, *more, **settings: given.append(config) or RESULT)
    monkeypatch.setattr(processes, "launch", None)
    for name, value in {"TORCHELASTIC_RUN_ID": "1", "WORLD_SIZE": "2", "RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    assert main(["train", str(tmp_path), "--processes", "2", "--max-restarts", "1"]) == 0
    assert main(["train", str(tmp_path)]) == 0
    assert [config.num_processes for config in given] == [2, 2]
    assert capsys.readouterr() == ("", "")  # the first process speaks for all


# ---- help ----


def help_of(capsys, *command: str) -> str:
    assert main([*command, "--help"]) == 0
    return " ".join(re.sub("[│╭╮╰╯─]", " ", capsys.readouterr().out).split())


def test_help_lists_every_command(capsys):
    text = help_of(capsys)
    for function, example in EXAMPLES:
        assert f"{example.split()[0]} {inspect.getdoc(function).splitlines()[0]}" in text


@pytest.mark.parametrize(("function", "example"), EXAMPLES, ids=lambda value: str(value).split()[0])
def test_help_of_a_command_has_an_example_that_can_be_parsed(capsys, function, example):
    name, *words = example.split()
    assert f"Example: vaecourse {example} Exit status: 0 done;" in help_of(capsys, name)
    command, _, _ = app.parse_args([name, *words], exit_on_error=False, print_error=False)
    assert command is function


def test_help_of_train_states_every_setting_with_its_default(capsys):
    text = help_of(capsys, "train")
    for name, field in RunConfig.__dataclass_fields__.items():
        option = {"num_epochs": "epochs", "num_processes": "processes"}.get(name, name).replace("_", "-")
        default = {"hidden_dims": "400"}.get(name, field.default)
        shown = rf"--{option} (?:(?! --).)*\[default: {default}\]" if default is not None else f"--{option} "
        assert re.search(shown, text), (name, text)


def test_help_and_mistakes_do_not_wait_for_torch():
    command = """import sys, vaecourse.cli; vaecourse.cli.main(["--help"]); vaecourse.cli.main(["tran"])
print(sorted({'torch', 'matplotlib', 'numpy'} & set(sys.modules)))"""
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


# ---- failures ----


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--epochs 0", 'Invalid value "0" for --epochs. Must be >= 1.'),
        ("--epochs many", 'Invalid value for --epochs: "many" is not a whole number.'),
        ("--epochs 1.5", 'Invalid value for --epochs: "1.5" is not a whole number.'),
        ("--hidden-dims 8 8.6", '"8.6" is not a whole number.'),
        ("--keep 2.5", '"2.5" is not a whole number.'),
        ("--checkpoint-every 1e3", '"1e3" is not a whole number.'),
        ("--epoch 3", "Unknown option: --epoch. Did you mean --epochs?"),
        ("--likelihood normal", 'Invalid value "normal" for --likelihood. Choose from: "bernoulli"'),
        ("--beta -1", 'Invalid value "-1.0" for --beta. Must be >= 0.'),
        ("--scale wide --likelihood gaussian", 'unable to convert "wide" into float'),
        ("--scale 2", "a bernoulli likelihood has no scale, got 2.0"),
        ("--device quantum", "torch knows no device 'quantum'; available here"),
        ("--keep 1", "keep must be at least 2"),
        ("--checkpoint-every 0", "every must be at least 1, got 0"),
        ("--max-restarts -1", "max_restarts must not be negative, got -1"),
    ],
)
def test_bad_input_is_status_2(capsys, tmp_path, options, message):
    words = ["train", str(tmp_path / "run"), "--binarize", "--data", "digits", *options.split()]
    status, line = failure(capsys, *words)
    assert status == 2 and line.startswith("vaecourse: ") and message in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "a command is missing; vaecourse --help lists them"),
        (["tran"], 'Unknown command "tran". Did you mean "train"?'),
        (["train"], 'Command "train" parameter FOLDER requires an argument.'),
        (["grade", "submitted"], 'Command "grade" parameter --out requires an argument.'),
    ],
    ids=["nothing", "misspelt", "incomplete", "no-out"],
)
def test_mistake_is_one_line_and_status_2(capsys, words, message):
    status, line = failure(capsys, *words)
    assert status == 2 and line.startswith(f"vaecourse: {message}")


def test_another_configuration_is_status_2_and_names_what_differs(capsys, tmp_path):
    (tmp_path / "config.json").write_text(RunConfig(latent_dim=3).to_json(), "utf-8")
    (tmp_path / "history.json").touch()
    status, line = failure(capsys, "train", str(tmp_path), "--latent-dim", "5")
    assert status == 2 and "latent_dim was 3, is 5" in line and "choose another folder" in line


def test_folder_that_cannot_be_made_is_status_3(capsys, tmp_path):
    (tmp_path / "file").touch()
    status, line = failure(capsys, "train", str(tmp_path / "file" / "run"), "--binarize", *TINY)
    assert status == 3 and "file" in line


def test_folder_that_holds_something_else_is_status_2(capsys, tmp_path, monkeypatch):
    (tmp_path / "notes.txt").touch()
    status, line = failure(capsys, "train", str(tmp_path), "--binarize", *TINY)
    assert status == 2 and f"{tmp_path} holds other files and no config.json" in line
    monkeypatch.chdir(tmp_path)
    status, line = failure(capsys, "train", "", "--binarize", *TINY)  # the name of a variable that is not set
    assert status == 2 and f"{tmp_path} holds other files" in line
    status, line = failure(capsys, "train", "notes.txt", "--binarize", *TINY)
    assert status == 2 and line == "vaecourse: notes.txt is a file; a run needs a folder"
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("options", ["--latent-dim 1000000000", "--hidden-dims 1000000 1000000"])
def test_model_that_does_not_fit_into_memory_is_status_2(capsys, tmp_path, options):
    status, line = failure(capsys, "train", str(tmp_path / "run"), *options.split(), "--binarize")
    assert status == 2 and re.search(r"training this model needs \S+ GB and this machine has", line)
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(os.name != "posix", reason="pipes break otherwise on Windows")
def test_output_that_nobody_reads_ends_the_command_in_silence(tmp_path):
    (tmp_path / "mine.py").write_text("def loss(y, x, m, v):\n    return (y - x).square().mean()\n", "utf-8")
    place, sizes = f"{tmp_path}/mine.py:loss", ["--data-dim", "4", "--latent-dim", "2"]
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "vaecourse", "diagnose", place, *sizes]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, f"executing {tmp_path}/mine.py\n")


@pytest.mark.parametrize(
    ("scale", "sigma", "best", "line"),
    [
        (
            "learned",
            0.1001,
            0.1,
            "sigma 0.1001, the best value for this decoder's errors on the training images",
        ),
        ("learned", 0.2, 0.1, "sigma 0.2, still moving: the best value for this .* training images is 0.1"),
        ("optimal", 0.2, 0.1, "sigma 0.2, averaged over the last batches: the best value .* is 0.1"),
        (0.2, 0.2, 0.1, "sigma 0.2, fixed: the best value .* is 0.1"),
    ],
)
def test_train_says_whether_sigma_has_come_to_rest(capsys, tmp_path, monkeypatch, scale, sigma, best, line):
    result = RESULT | {"scale": {"sigma": sigma, "best_sigma": best}}
    monkeypatch.setattr(runs, "train", lambda *arguments, **settings: result)
    assert main(["train", str(tmp_path), "--likelihood", "gaussian", "--scale", str(scale)]) == 0
    assert re.fullmatch(line, capsys.readouterr().out.splitlines()[-1])


def test_damaged_checkpoint_is_status_3(capsys, tmp_path):
    train(RunConfig(data="digits", hidden_dims=[8], latent_dim=2, num_epochs=1), tmp_path, device="cpu")
    (path,) = (tmp_path / "checkpoints").glob("*.ckpt")
    path.write_bytes(path.read_bytes()[:-1])
    status, line = failure(capsys, "evaluate", str(tmp_path), "--device", "cpu")
    assert status == 3 and path.name in line and "damaged" in line


def test_divergence_is_status_4_and_names_step_and_checkpoint(capsys, tmp_path):
    words = ["train", str(tmp_path), "--binarize", *TINY, "--device", "cpu", "--learning-rate", "1e30"]
    status, line = failure(capsys, *words)
    assert status == 4 and "epoch 0, step" in line and line.endswith("there is no checkpoint")


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

    monkeypatch.setattr(runs, "train", fail)
    assert (found := failure(capsys, "train", str(tmp_path), "--binarize"))[0] == status
    assert line in found[1]


def test_errors_of_the_program_keep_their_traceback(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "train", lambda *arguments, **settings: {}["loss"])
    with pytest.raises(KeyError):
        main(["train", str(tmp_path), "--binarize"])


def test_warnings_are_one_line(capsys, tmp_path, monkeypatch):
    def warn(*arguments, **settings):
        warnings.simplefilter("always")
        warnings.warn("another machine", stacklevel=2)
        return RESULT

    monkeypatch.setattr(runs, "train", warn)
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
    note, *epochs, line = capsys.readouterr().out.splitlines()
    assert [
        re.fullmatch(r"epoch (\d) of 2: loss (.*) nats per image, .* s", text).groups() for text in epochs
    ] == [(str(number), f"{loss:.2f}") for number, loss in enumerate(history["loss"], start=1)]
    assert note.startswith("note: a Bernoulli likelihood on grey levels is a cross-entropy")
    assert f"2 epochs, training loss {history['loss'][-1]:.2f} nats per image" in line
    assert f"test ELBO {history['test']['elbo']:.2f} = -(nll {history['test']['nll']:.2f} + kl" in line
    assert main(words) == 0
    assert capsys.readouterr().out.startswith(f"{tmp_path} is finished: more --epochs prolong it")
    assert main(["evaluate", str(tmp_path), "--num-samples", "5", "--device", "cpu"]) == 0
    out, err = capsys.readouterr()
    result = json.loads((tmp_path / "evaluation.json").read_text("utf-8"))
    state, head, elbo, nll, units, note = out.splitlines()
    assert state == "step-000000006.ckpt: 2 epochs completed; the run is finished"
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
    assert process.returncode == status and out.startswith("epoch 1 of 100000: loss ")
    assert err == "vaecourse: stopped; the same command goes on where it was\n"
    assert not list(tmp_path.glob("**/*.tmp"))
    assert "test" not in json.loads((tmp_path / "history.json").read_text("utf-8"))
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
    assert [line.partition(" ")[0] for line in done.stdout.splitlines()] == [
        *["epoch"] * 3,
        f"{tmp_path / 'two'}:",
        "sigma",
    ]
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
    assert process.returncode == 143 and out.startswith("epoch 1 of 100000: loss ")
    assert err == "vaecourse: stopped; the same command goes on where it was\n"
