"""Running chapters with other parameters: executed copies are kept aside, the sources stay as they are."""

import ast
import contextlib
import multiprocessing
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from types import FrameType
from typing import Any

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
PATIENCE = 15  # seconds that a stopped notebook gets to shut its kernel down


@dataclass(frozen=True)
class NotebookRun:
    """How the execution of one notebook ended.

    Attributes
    ----------
    path, output : Path
        The source, and the executed copy.
    seconds : float
        Wall time.
    cell : str or None
        Id of the cell that failed.
    error : str or None
        What went wrong, on one line; None for a run without error.
    """

    path: Path
    output: Path
    seconds: float
    cell: str | None = None
    error: str | None = None

    def __str__(self) -> str:
        """One line for the terminal."""
        if self.error is None:
            return f"{self.path.name}: done in {self.seconds:.0f} s, see {self.output}"
        place = "" if self.cell is None else f" in cell {self.cell}"
        return f"{self.path.name}: FAILED{place} after {self.seconds:.0f} s: {self.error}; see {self.output}"


@dataclass(frozen=True)
class _Task:
    """What the process that executes one notebook must know."""

    path: Path
    output: Path
    parameters: dict[str, Any]
    timeout: int | None
    is_single_threaded: bool
    num_cells: int


def run_notebooks(
    paths: Sequence[Path],
    output_folder: Path,
    *,
    parameters: Mapping[str, Any] | None = None,
    num_jobs: int = 1,
    timeout: int | None = None,
    report: Callable[[NotebookRun], None] | None = None,
) -> list[NotebookRun]:
    """Execute notebooks, each in a process of its own and with its own folder as working directory.

    A bar counts the cells if standard error is a terminal.  However this function is left,
    no kernel stays behind.

    Parameters
    ----------
    paths : sequence of Path
        Notebooks, with different file names.
    output_folder : Path
        Where the executed copies go; made if missing, not the folder of a notebook.
    parameters : mapping of str to object, optional
        Values that replace those of the cell tagged ``parameters``, in every notebook.
    num_jobs : int
        Notebooks at a time; above 1, each computes with one thread.
    timeout : int, optional
        Seconds that a cell may take; no limit if left out.
    report : callable, optional
        Called with each result as soon as it is there.

    Returns
    -------
    list of NotebookRun
        In the order of `paths`.  A failing cell ends its own notebook only.

    Raises
    ------
    ValueError
        Before anything runs: if a path is no notebook, a name is unknown to one of them, an
        executed copy would replace a source or another copy, or a number is below 1.
    ModuleNotFoundError
        If papermill is not installed.

    Examples
    --------
    >>> run_notebooks([Path("absent.ipynb")], Path("executed"))
    Traceback (most recent call last):
    ValueError: there is no notebook absent.ipynb
    """
    from tqdm import tqdm

    if num_jobs < 1 or (timeout is not None and timeout < 1):
        raise ValueError(f"jobs and timeout must be at least 1, got {num_jobs} and {timeout}")
    _check_sources(paths, output_folder)
    values = dict(parameters or {})
    tasks = [
        _Task(
            path.resolve(),
            output_folder.resolve() / path.name,
            values,
            timeout,
            is_single_threaded=num_jobs > 1,
            num_cells=_check_notebook(path, values),
        )
        for path in paths
    ]
    output_folder.mkdir(parents=True, exist_ok=True)
    results: dict[Path, NotebookRun] = {}
    with tqdm(total=sum(task.num_cells for task in tasks), unit="cell", disable=None, leave=False) as bar:

        def on_cell(task: _Task, cell: str) -> None:
            bar.set_postfix_str(f"{task.path.name}: {cell}", refresh=False)
            bar.update()

        def on_end(result: NotebookRun) -> None:
            results[result.path] = result
            if report is not None:
                with bar.external_write_mode():
                    report(result)

        _supervise(tasks, num_jobs, on_cell, on_end)
    return [results[task.path] for task in tasks]


def parse_value(text: str) -> Any:
    """Value of a parameter as it is written on the command line.

    Parameters
    ----------
    text : str
        A number, ``True``, ``False`` or ``None`` (in any case, and YAML's ``null``), a Python
        list, tuple, dictionary or quoted string; anything else stands for itself.

    Returns
    -------
    object
        The value; a tuple becomes a list.

    Examples
    --------
    >>> [parse_value(text) for text in ["30", "1e-3", "false", "[1, 2]", "mnist", "'30'"]]
    [30, 0.001, False, [1, 2], 'mnist', '30']
    """
    words = {"true": True, "false": False, "none": None, "null": None}
    if text.lower() in words:
        return words[text.lower()]
    for read in (int, float, ast.literal_eval):
        try:
            value = read(text)
        except (ValueError, SyntaxError):
            continue
        if isinstance(value, tuple):
            return list(value)
        return value if isinstance(value, int | float | list | dict | str) else text
    return text


def _papermill() -> Any:
    try:
        import papermill  # type: ignore[import-untyped]
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"notebooks are run by papermill, which cannot be imported ({error}): "
            "install it with  pip install 'vaecourse[book]'"
        ) from error
    return papermill


def _check_sources(paths: Sequence[Path], output_folder: Path) -> None:
    """Refuse what would overwrite a source or another copy."""
    names = [path.name for path in paths]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"give at least one notebook, and no file name twice, got {names}")
    for path in paths:
        if not path.is_file():
            raise ValueError(f"there is no notebook {path}")
        if output_folder.resolve() == path.resolve().parent:
            raise ValueError(
                f"the output folder {output_folder} holds the source {path.name}, which would be "
                "overwritten: choose another folder"
            )


def _check_notebook(path: Path, parameters: Mapping[str, Any]) -> int:
    """Number of cells that will be executed; the file must be a notebook and know the parameters."""
    papermill = _papermill()
    import nbformat

    try:
        notebook = nbformat.read(path, as_version=4)
    except Exception as error:  # nbformat has a class of its own for each kind of damage
        raise ValueError(f"{path} is not a notebook: {_first_line(str(error))}") from error
    if not parameters:
        return len(notebook.cells)
    known = papermill.inspect_notebook(_as_template(path))
    if not known:
        raise ValueError(f"{path.name} has no parameters: no cell tagged 'parameters' assigns any")
    if unknown := sorted(set(parameters) - set(known)):
        raise ValueError(f"{path.name} has no parameter {', '.join(unknown)}; it has {', '.join(known)}")
    return len(notebook.cells) + 1  # papermill inserts one


def _as_template(path: Path) -> str:
    """The path as papermill wants it: it takes braces for placeholders."""
    return str(path).replace("{", "{{").replace("}", "}}")


def _supervise(
    tasks: Sequence[_Task],
    num_jobs: int,
    on_cell: Callable[[_Task, str], None],
    on_end: Callable[[NotebookRun], None],
) -> None:
    """Keep `num_jobs` processes busy and pass on what they say; stop them all if this is left early."""
    waiting = deque(tasks)
    running: dict[Connection, tuple[_Task, SpawnProcess]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < num_jobs:
                task = waiting.popleft()
                connection, process = _start(task)
                running[connection] = task, process
            ready = wait(list(running))
            for connection in [connection for connection in running if connection in ready]:
                task, process = running[connection]
                message = _receive(connection, task, process)
                if isinstance(message, NotebookRun):
                    del running[connection]
                    on_end(message)
                else:
                    on_cell(task, message)
    finally:
        _stop([process for _, process in running.values()])


def _start(task: _Task) -> tuple[Connection, SpawnProcess]:
    context = multiprocessing.get_context("spawn")
    connection, childs_end = context.Pipe(duplex=False)
    process = context.Process(target=_execute, args=(task, childs_end), daemon=True)
    process.start()
    childs_end.close()
    return connection, process


def _receive(connection: Connection, task: _Task, process: SpawnProcess) -> str | NotebookRun:
    """The id of a cell that starts, or the result."""
    try:
        message: str | NotebookRun = connection.recv()
    except EOFError:
        process.join()
        return NotebookRun(
            task.path, task.output, 0.0, None, f"its process died with exit code {process.exitcode}"
        )
    return message


def _stop(processes: Sequence[SpawnProcess]) -> None:
    for process in processes:
        process.terminate()
    for process in processes:
        process.join(PATIENCE)
        process.kill()  # its kernel notices and ends too


def _execute(task: _Task, connection: Connection) -> None:
    """Execute one notebook; runs in a process of its own, because papermill changes the working directory."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides, and asks with SIGTERM
    os.environ["PYDEVD_DISABLE_FILE_VALIDATION"] = "1"  # the kernel's debugger would warn otherwise
    if task.is_single_threaded:
        os.environ.update(dict.fromkeys(THREAD_VARIABLES, "1"))
    papermill = _papermill()
    manager_class = _stoppable_kernel_manager()
    _silence_stderr()
    cells: list[str] = []

    def on_cell_start(cell: Any, cell_index: int) -> None:
        cells.append(cell.get("id", f"number {cell_index + 1}"))
        connection.send(cells[-1])

    start, place, problem = time.perf_counter(), None, None
    try:
        papermill.execute_notebook(
            _as_template(task.path),
            _as_template(task.output),
            parameters=task.parameters,
            kernel_name="python3",
            cwd=task.path.parent,
            execution_timeout=task.timeout,
            progress_bar=False,
            kernel_manager_class=manager_class,
            on_cell_start=on_cell_start,
        )
    except papermill.PapermillExecutionError as error:
        place, problem = cells[error.cell_index], _first_line(f"{error.ename}: {error.evalue}")
    except TimeoutError:
        place, problem = cells[-1] if cells else None, f"it took longer than {task.timeout} s"
    except Exception as error:  # a dead kernel, a full disk: the other notebooks go on
        place, problem = cells[-1] if cells else None, _first_line(f"{type(error).__name__}: {error}")
    connection.send(NotebookRun(task.path, task.output, time.perf_counter() - start, place, problem))


def _stoppable_kernel_manager() -> type:
    """A kernel manager whose kernel ends with this process if that is asked to end with SIGTERM."""
    from jupyter_client.manager import AsyncKernelManager

    class StoppableKernelManager(AsyncKernelManager):
        def __init__(self, **settings: Any) -> None:
            super().__init__(**settings)
            signal.signal(signal.SIGTERM, self._on_sigterm)

        def _on_sigterm(self, signum: int, frame: FrameType | None) -> None:
            # no exception from here, which asyncio might bring up anywhere, even in the shutting down
            pid = getattr(self.provisioner, "pid", None)
            if pid is not None:
                _end_process_group(pid)
            Path(self.connection_file).unlink(missing_ok=True)
            os._exit(128 + signum)

    return StoppableKernelManager


def _end_process_group(pid: int) -> None:
    """End a child and its group; `fit` saves a checkpoint on SIGTERM, so it comes first."""
    for signum in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.killpg(pid, signum)
            deadline = time.monotonic() + PATIENCE / 3
            while os.waitpid(pid, os.WNOHANG) == (0, 0) and time.monotonic() < deadline:
                time.sleep(0.05)


def _silence_stderr() -> None:
    """Drop what a kernel says about its own plumbing; what cells write goes into the notebook."""
    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), 2)


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0].removesuffix(":")
