"""Notebooks that attack the grader, as data: what each tries, and what must come of it.

python -m tests.coursework.attacks   # run them all, and write the table of the instructors' page
"""

import contextlib
import io
import json
import os
import secrets
import socket
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

from tests.book.notebook_rules import ROOT
from tests.coursework.answers import answers, code_cell
from vaecourse.coursework import grading
from vaecourse.coursework.box.sandbox import MB, Limits, self_test
from vaecourse.coursework.grading import Grades, grade_submission
from vaecourse.coursework.intake import Cell, Submission, read_submission
from vaecourse.coursework.oracle import TASKS
from vaecourse.coursework.release import student_version

TABLE = ROOT / "book/coursework/attacks.md"
SOURCE = ROOT / "book/coursework/source"
BUILD = ROOT / "_build"
SLOT = 40  # of the boxes of these tests, far from those of somebody who grades on the same machine
LIMITS = Limits(wall=4.0, cpu=2.0, cell=2.0, task=2.0, memory=600 * MB)
FORGING_LIMITS = Limits(wall=60.0, cpu=30.0, task=3.0)  # these need torch
SECRET_NAME = "VAECOURSE_TEST_SECRET"


class Attack(NamedTuple):
    """A notebook that would rather break out than be marked.

    Hostile and forging ones have a cell of code; submissions have a function that changes a right
    notebook (as JSON data) and hands it in by writing into a folder.  `outcome` is what
    `what_came` must say.
    """

    name: str
    kind: str
    tries: str
    code: str
    outcome: str
    is_harmless: bool = False  # may be run without a box, where it must succeed
    hand_in: Callable[[dict[str, Any], Path], None] | None = None


# ---- hostile notebooks: the machine is to be reached, or the grader stopped ----
# `reached(...)` says that an attack has succeeded; capitals are names of what stands outside.

HOSTILE = [
    ("read a secret file", "open a file outside by its path",
     "reached(open(SECRET_FILE).read())",
     "FileNotFoundError, 4 of 4 points", True),
    ("read /etc/passwd", "list the users of the machine",
     "reached(open('/etc/passwd').read(40))",
     "FileNotFoundError, 4 of 4 points", True),
    ("write outside", "leave a file in a folder of the machine",
     "reached(open(OUTSIDE + '/left', 'w').write('x'))",
     "FileNotFoundError, 4 of 4 points", True),
    ("write into the submission", "change the notebook after it was handed in",
     "reached(open(SUBMISSION, 'a').write('x'))",
     "FileNotFoundError, 4 of 4 points", True),
    ("write into /usr", "change the system's programs",
     "reached(open('/usr/bin/vaecourse-test', 'w').write('x'))",
     "OSError, 4 of 4 points"),
    ("connect to this machine", "talk to a server on 127.0.0.1",
     "import socket\nsocket.create_connection(('127.0.0.1', PORT), 2).sendall(b'x')\nreached(PORT)",
     "ConnectionRefusedError, 4 of 4 points", True),
    ("connect to an abstract socket", "talk to a server that has no file and no port",
     "import socket\nsocket.socket(socket.AF_UNIX).connect(chr(0) + SOCKET)\nreached(SOCKET)",
     "ConnectionRefusedError, 4 of 4 points", True),
    ("connect to the network", "send something to another machine",
     "import socket\nsocket.create_connection(('192.0.2.1', 80), 2)\nreached('network')",
     "OSError, 4 of 4 points"),
    ("read the environment", "find a token among the environment variables",
     "reached(os.environ[SECRET_NAME])",
     "KeyError, 4 of 4 points", True),
    ("read the environment of other processes", "find it in /proc/*/environ",
     """\
for path in Path('/proc').glob('[0-9]*/environ'):
    with contextlib.suppress(OSError):
        if SECRET_NAME.encode() in path.read_bytes():
            reached(path)
raise LookupError('no process has it')""",
     "LookupError, 4 of 4 points", True),
    ("kill the grader", "send SIGKILL to the parent and to the grader",
     "os.kill(os.getppid(), 9)\nos.kill(GRADER, 9)\nreached('killed')",
     "ProcessLookupError, 4 of 4 points"),
    ("kill everything", "send SIGKILL to all processes from inside an answer",
     "def learning_rate_for_sse(learning_rate, scale):\n    os.kill(-1, 9)\n    time.sleep(60)",
     "error, 2 of 4 points"),
    ("see other processes", "list what runs on the machine",
     """\
seen = [path.name for path in Path('/proc').glob('[0-9]*')]
if len(seen) > 4:
    reached(len(seen))
raise LookupError('only the box itself')""",
     "LookupError, 4 of 4 points", True),
    ("loop for ever", "catch the timer's exception and compute on",
     """\
while True:
    try:
        while True:
            pass
    except BaseException:
        pass""",
     "timeout, 0 of 4 points"),
    ("sleep for ever", "wait until the grader gives up",
     "time.sleep(1e6)",
     "TimeIsUp, 4 of 4 points"),
    ("ignore all signals", "block what can be blocked, then sleep",
     "signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))\ntime.sleep(1e6)",
     "timeout, 0 of 4 points"),
    ("leave a daemon behind", "fork twice, start a session, keep the pipes open",
     """\
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        time.sleep(600)
    os._exit(0)
os.wait()""",
     "4 of 4 points"),
    ("fork bomb", "fork until nothing runs any more",
     "while True:\n    if os.fork() == 0:\n        time.sleep(600)",
     "BlockingIOError, error, 0 of 4 points"),
    ("50 GB in one process", "take all memory at once",
     "reached(len(bytearray(50_000_000_000)))",
     "MemoryError, 4 of 4 points"),
    ("memory of many processes", "take it in pieces, each below the limit of a process",
     """\
for _ in range(6):
    if os.fork() == 0:
        piece = b'x' * 200_000_000
        time.sleep(600)
time.sleep(600)""",
     "memory, 0 of 4 points"),
    ("memory that no process shows", "write it to files in memory that have no name",
     """\
kept, piece = [], bytes(50_000_000)
for _ in range(16):
    kept.append(os.memfd_create('x'))
    os.write(kept[-1], piece)
del piece
time.sleep(0.5)
reached('more than allowed')""",
     "PermissionError, 4 of 4 points"),
    ("memory of a shared mapping", "fill it, and let go of the pages without freeing them",
     """\
import mmap
piece = bytes(50 * 2**20)
kept = mmap.mmap(-1, 16 * len(piece))
for start in range(0, len(kept), len(piece)):
    kept[start : start + len(piece)] = piece
    kept.madvise(mmap.MADV_DONTNEED)
del piece
time.sleep(0.5)
reached('more than allowed')""",
     "PermissionError, 4 of 4 points"),
    ("processor time in small pieces", "compute in children that end before anybody looks",
     """\
end = time.monotonic() + 30
signal.setitimer(signal.ITIMER_REAL, 0)
while time.monotonic() < end:
    if os.fork() == 0:
        stop = time.process_time() + 0.1
        while time.process_time() < stop:
            pass
        os._exit(0)
    os.wait()""",
     "timeout, 0 of 4 points"),
    ("fill the disk with one file", "write until there is no room",
     "with open('large', 'wb') as file:\n    while True:\n        file.write(bytes(10**7))\n",
     "OSError, 4 of 4 points"),
    ("fill the disk with many files", "write a hundred files of ten megabytes",
     "for n in range(100):\n    Path(f'large-{n}').write_bytes(bytes(10**7))\nreached('1 GB')",
     "OSError, 4 of 4 points"),
    ("fill the shared memory", "write into /dev/shm",
     "for n in range(50):\n    Path(f'/dev/shm/large-{n}').write_bytes(bytes(10**7))\nreached('500 MB')",
     "OSError, 4 of 4 points"),
    ("write into /dev", "fill a file system that is easily forgotten",
     "reached(Path('/dev/large').write_bytes(bytes(10**7)))",
     "OSError, 4 of 4 points"),
    ("flood the output", "print without end",
     "while True:\n    print('x' * 100_000)",
     "output, 0 of 4 points"),
    ("become root in a new namespace", "unshare the user namespace",
     """\
import ctypes
if ctypes.CDLL(None).unshare(0x10000000) == 0:
    reached(os.getuid())
raise PermissionError('no namespace')""",
     "PermissionError, 4 of 4 points"),
    ("become root by a setuid program", "call su",
     """\
import subprocess
done = subprocess.run(['/usr/bin/su', '-c', 'id -u'], capture_output=True, stdin=subprocess.DEVNULL)
if done.returncode == 0:
    reached(done.stdout)
raise PermissionError(done.stderr)""",
     "PermissionError, 4 of 4 points"),
    ("trace another process", "attach to the parent, and to the grader, with ptrace",
     """\
import ctypes
libc = ctypes.CDLL(None)
if libc.ptrace(0x4206, GRADER, 0, 0) == 0:  # PTRACE_SEIZE
    reached(GRADER)
libc.ptrace(0x4206, os.getppid(), 0, 0)
raise ProcessLookupError('no process of the machine')""",
     "ProcessLookupError, 4 of 4 points"),
]  # fmt: skip

# ---- forging notebooks: the functions are wrong, the marks are to be right ----
# They stand before a wrong notebook, whose one right function is worth 2 points of 11.

PIPE = """\
import json, os
def result_pipes():
    for name in os.listdir('/proc/self/fd'):
        try:
            if int(name) > 2 and os.readlink('/proc/self/fd/' + name).startswith('pipe:'):
                yield int(name)
        except OSError:
            pass
def claim(*lines):
    for pipe in result_pipes():
        os.write(pipe, b''.join(json.dumps(line).encode() + b'\\n' for line in lines))
"""
EVERY_TASK = (
    "normal_log_density = regression_nll = best_scale = learning_rate_for_sse = ridge_penalty = forge"
)

FORGERIES = [
    ("honest and wrong", "nothing: what the others are compared with", "",
     "wrong, 2 of 11 points"),
    ("equal to everything", "return an object that equals, and is close to, any number",
     """\
class Yes(float):
    __eq__ = __lt__ = __le__ = __gt__ = __ge__ = lambda self, other: True
    __sub__ = __rsub__ = __abs__ = lambda self, *other: self
    __hash__ = float.__hash__
def forge(*args):
    return Yes()
""" + f"last = '{EVERY_TASK}'",
     "wrong, 0 of 11 points"),
    ("a tensor that agrees", "return a subclass of Tensor whose every operation says yes",
     """\
class Yes(torch.Tensor):
    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        return True
def forge(*args):
    return torch.zeros(5, 3).as_subclass(Yes)
""" + f"last = '{EVERY_TASK}'",
     "error, 0 of 11 points"),
    ("patch the comparisons", "make numpy.testing and torch find everything close",
     """\
import numpy
yes = lambda *args, **kwargs: True
numpy.testing.assert_allclose = numpy.isclose = numpy.allclose = yes
torch.allclose = torch.equal = torch.isclose = torch.testing.assert_close = yes
torch.Tensor.__eq__ = torch.Tensor.__le__ = torch.Tensor.allclose = torch.Tensor.equal = yes""",
     "wrong, 2 of 11 points"),
    ("hook imports", "serve a grader of one's own to whoever imports it",
     """\
import builtins, importlib, sys, types
original = builtins.__import__
def forged(name, *args, **kwargs):
    if name.startswith('vaecourse'):
        module = types.ModuleType(name)
        module.verdict_of = module.grade_submission = lambda *args, **kwargs: 'ok'
        return sys.modules.setdefault(name, module)
    return original(name, *args, **kwargs)
builtins.__import__ = forged
import vaecourse.coursework.oracle""",
     "wrong, 2 of 11 points"),
    ("walk the stack", "replace the functions that answer and write, from inside a cell",
     """\
import sys
frame = sys._getframe()
while frame.f_back:
    frame = frame.f_back
    if 'answer' in frame.f_globals:
        says = {'value': {'kind': 'number', 'value': 0.0}, 'verdict': 'ok', 'score': 11, 'ok': True}
        frame.f_globals['answer'] = lambda *args: says""",
     "wrong, 0 of 11 points"),
    ("os._exit in an answer", "end the process before it can be found wrong",
     "import os\ndef forge(*args):\n    os._exit(0)\n" + f"last = '{EVERY_TASK}'",
     "error, 0 of 11 points"),
    ("exit in a cell", "end the notebook before the wrong cells, with a good status",
     "import sys\nsys.exit(0)",
     "SystemExit, wrong, 2 of 11 points"),
    ("hook exceptions", "hide every error, and print a mark at the end",
     """\
import atexit, sys, threading
sys.excepthook = threading.excepthook = lambda *args: print('11 of 11 points')
atexit.register(lambda: print('11 of 11 points'))
raise RuntimeError""",
     "RuntimeError, wrong, 2 of 11 points"),
    ("drop the later cells", "tell IPython to forget what follows",
     "get_ipython().input_transformers_cleanup.append(lambda lines: [])",
     "NameError, wrong, 2 of 11 points"),
    ("print result lines", "imitate on both outputs what the runner writes",
     """\
import json, sys
for number in range(100):
    line = {'id': number, 'verdict': 'ok', 'score': 11, 'value': {'kind': 'number', 'value': 0}}
    print(json.dumps(line), flush=True)
    print(json.dumps(line), file=sys.stderr, flush=True)
print('{"done": true}', flush=True)""",
     "wrong, 2 of 11 points"),
    ("write into the result pipe", "find it in /proc/self/fd and claim full marks",
     PIPE + """\
says = {'verdict': 'ok', 'score': 11, 'value': {'kind': 'number', 'value': 0.0}}
claim({'failed_cells': []}, *[{'id': n, **says} for n in range(100)], {'done': True})""",
     "wrong, 0 of 11 points"),
    ("answer with the inputs", "find the calls with gc and write their arguments as answers",
     PIPE + """\
import gc
calls = [c for c in gc.get_objects() if isinstance(c, dict) and 'function' in c and 'args' in c]
values = [c['args'][0] if isinstance(c['args'][0], dict) else {'kind': 'number', 'value': c['args'][0]}
          for c in calls]
claim({'failed_cells': []}, *[{'id': c['id'], 'value': v} for c, v in zip(calls, values)])
assert calls""",
     "wrong, 0 of 11 points"),
    ("break the judge", "write answers of types that nobody expects",
     PIPE + """\
odd = [None, 'x', [], {}, float('inf'), [[[]]], -1, 10**300]
lines = [{'id': n, 'changed': [None], 'value': odd[n % 8]} for n in range(100)]
claim({'failed_cells': odd[:3]}, *lines)""",
     "malformed, 0 of 11 points"),
    ("break the text", "raise an error whose message is no text",
     "raise ValueError('\\ud800' + chr(0) + chr(27) + '[2J')",
     "ValueError, wrong, 2 of 11 points"),
    ("break the table", "answer with the name of a type that is no text",
     PIPE + """\
odd = {'kind': 'other', 'type': chr(0xd800) + chr(10) + '=1+1'}
claim({'failed_cells': []}, *[{'id': n, 'value': odd} for n in range(100)])""",
     "wrong, 0 of 11 points"),
    ("import the grader", "look for the reference answers in the package",
     "from vaecourse.coursework.tasks.ps1 import _log_density as normal_log_density",
     "ModuleNotFoundError, wrong, 2 of 11 points"),
    ("search for the grader", "find its files anywhere",
     """\
import os
for folder, folders, names in os.walk('/'):
    folders[:] = set(folders) - {'proc', 'usr'}
    if {'ps1.py', 'oracle.py'} <= set(names):
        raise RuntimeError('found ' + folder)
raise LookupError('nothing found')""",
     "LookupError, wrong, 2 of 11 points"),
]  # fmt: skip

# ---- submissions: what students hand in, by accident or not ----


def right_cells(*names: str) -> list[Cell]:
    """Return cells with the first right answer to each task of these names."""
    return [
        code_cell(next(a.source for a in answers() if a.task == name and a.is_right), name) for name in names
    ]


PS1 = ("normal_log_density", "regression_nll", "best_scale", "learning_rate_for_sse", "ridge_penalty")
WRONG = [
    code_cell("def normal_log_density(y, loc, scale):\n    return -0.5 * ((y - loc) / scale) ** 2", PS1[0]),
    code_cell("def regression_nll(y, loc, scale):\n    return ((y - loc) ** 2).sum()", PS1[1]),
    code_cell("def best_scale(y, loc):\n    return ((y - loc) ** 2).mean()", PS1[2]),
    code_cell(
        "def learning_rate_for_sse(learning_rate, scale):\n    return learning_rate / scale**2", PS1[3]
    ),
    *right_cells(PS1[4]),
]


def right_notebook() -> dict[str, Any]:
    """Return the student's notebook of ps1, solved, as JSON data."""
    notebook = json.loads(student_version(SOURCE / "ps1/ps1.ipynb"))
    for solved in right_cells(*PS1):
        cell_named(notebook, solved.grade_id or "")["source"] = solved.source
    cell_named(notebook, "written_penalty")["source"] = "The penalty is a ratio of variances."
    return notebook


def cell_named(notebook: dict[str, Any], name: str) -> dict[str, Any]:
    """Return the cell with this name of nbgrader's."""
    return next(c for c in notebook["cells"] if c["metadata"].get("nbgrader", {}).get("grade_id") == name)


def save(notebook: dict[str, Any], folder: Path, name: str = "ps1.ipynb") -> None:
    """Hand a notebook in."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(notebook), "utf-8")


def changing(**sources: str) -> Callable[[dict[str, Any], Path], None]:
    """Return a function that hands in a notebook in which cells have other sources."""

    def hand_in(notebook: dict[str, Any], folder: Path) -> None:
        for name, source in sources.items():
            cell_named(notebook, name)["source"] = source
        save(notebook, folder)

    return hand_in


def adding(source: str) -> Callable[[dict[str, Any], Path], None]:
    """Return a function that hands in a notebook with a cell before all others."""

    def hand_in(notebook: dict[str, Any], folder: Path) -> None:
        cell = {"cell_type": "code", "source": source, "metadata": {}, "outputs": [], "execution_count": None}
        notebook["cells"].insert(0, cell)
        save(notebook, folder)

    return hand_in


def without(keep: Callable[[str], bool]) -> Callable[[dict[str, Any], Path], None]:
    """Return a function that hands in only the cells whose names are to be kept."""

    def hand_in(notebook: dict[str, Any], folder: Path) -> None:
        cells = notebook["cells"]
        notebook["cells"] = [c for c in cells if keep(c["metadata"].get("nbgrader", {}).get("grade_id", ""))]
        save(notebook, folder)

    return hand_in


def wrong_notebook(notebook: dict[str, Any], folder: Path) -> None:
    """Hand in wrong answers."""
    changing(**{str(cell.grade_id): cell.source for cell in WRONG})(notebook, folder)


def duplicated_cell(notebook: dict[str, Any], folder: Path) -> None:
    """Hand in a solution cell twice, as copying a cell does."""
    cell = cell_named(notebook, "best_scale")
    notebook["cells"].insert(notebook["cells"].index(cell), cell)
    save(notebook, folder)


def renamed_cell(notebook: dict[str, Any], folder: Path) -> None:
    """Hand in a solution under the name of another."""
    cell_named(notebook, "best_scale")["metadata"]["nbgrader"]["grade_id"] = "regression_nll"
    save(notebook, folder)


def stripped(notebook: dict[str, Any], folder: Path) -> None:
    """Hand in a notebook without metadata, as some editors save it."""
    for cell in notebook["cells"]:
        cell["metadata"] = {}
    save(notebook, folder)


def not_json(notebook: dict[str, Any], folder: Path) -> None:
    """Hand in half of a notebook."""
    save(notebook, folder)
    path = folder / "ps1.ipynb"
    path.write_bytes(path.read_bytes()[:2000])


def in_zip(notebook: dict[str, Any], folder: Path) -> None:
    """Hand in an archive."""
    folder.mkdir(parents=True)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("homework/ps1.ipynb", json.dumps(notebook))
    (folder / "homework.zip").write_bytes(packed.getvalue())


FOR_EVER = "def best_scale(y, loc):\n    while True:\n        pass"
SPECIAL = "def best_scale(y, loc):\n    return torch.tensor(2.0) if len(y) == 3 else y.new_zeros(())"
SUBMISSIONS = [
    ("correct", "everything is right", save, "11 of 11 points"),
    ("wrong", "one function of five is right", wrong_notebook, "wrong, 2 of 11 points"),
    ("right for the visible tests only", "the numbers of the visible test are written down",
     changing(best_scale=SPECIAL), "wrong, 9 of 11 points"),
    ("infinite loop", "a function that does not end", changing(best_scale=FOR_EVER),
     "timeout, 9 of 11 points"),
    ("syntax error", "a cell that is no Python", changing(best_scale="def best_scale(y, loc:\n  return"),
     "SyntaxError, error, 9 of 11 points"),
    ("changed test cell", "wrong, but the test says `assert True`",
     changing(best_scale=WRONG[2].source, test_best_scale="assert True"), "wrong, 9 of 11 points"),
    ("deleted test cells", "the cells with points are gone", without(lambda name: "test_" not in name),
     "11 of 11 points"),
    ("deleted solution cell", "a function is missing", without(lambda name: name != "best_scale"),
     "error, 9 of 11 points"),
    ("renamed notebook", "a browser has changed the file's name",
     lambda notebook, folder: save(notebook, folder, "ps1 (1).ipynb"), "11 of 11 points"),
    ("duplicated cell", "a solution cell stands there twice", duplicated_cell, "11 of 11 points"),
    ("renamed cell", "a solution has the name of another cell", renamed_cell, "11 of 11 points"),
    ("os._exit", "a function ends its process", changing(best_scale="import os\nbest_scale = os._exit"),
     "error, 9 of 11 points"),
    ("sys.exit", "a cell ends the notebook", adding("import sys\nsys.exit(0)"),
     "SystemExit, 11 of 11 points"),
    ("200,000 prints", "a loop prints more than anybody reads",
     adding("for number in range(200_000):\n    print(number)"), "11 of 11 points"),
    ("no metadata", "an editor has removed all names of cells", stripped, "11 of 11 points"),
    ("not JSON", "half of the file is missing", not_json, "malformed, 0 of 11 points"),
    ("empty folder", "nothing was handed in", lambda notebook, folder: folder.mkdir(parents=True),
     "malformed, 0 of 11 points"),
    ("patched comparison", "wrong, and `torch.allclose` always agrees",
     changing(best_scale=WRONG[2].source + "\ntorch.allclose = lambda *args, **kwargs: True"),
     "wrong, 9 of 11 points"),
    ("snooping", "wrong, and it looks for the neighbours' work",
     changing(best_scale="import glob\nassert glob.glob('/*/*/*.ipynb') + glob.glob('/[a-o]*/**/ps1.ipynb')"),
     "AssertionError, error, 9 of 11 points"),
    ("zip archive", "a learning platform has packed it", in_zip, "11 of 11 points"),
]  # fmt: skip

ATTACKS = [
    *[Attack(name, "hostile", *rest) for name, *rest in HOSTILE],
    *[Attack(name, "forgery", *rest) for name, *rest in FORGERIES],
    *[Attack(n, "submission", tries, "", outcome, False, make) for n, tries, make, outcome in SUBMISSIONS],
]


def of_kind(kind: str) -> list[Attack]:
    """Return the attacks of a kind."""
    return [attack for attack in ATTACKS if attack.kind == kind]


# ---- running them ----


class Outside(NamedTuple):
    """What stands outside of the box and must not be reached."""

    folder: Path
    secret: str
    listeners: tuple[socket.socket, socket.socket]

    def told(self) -> str:
        """Return the cell that tells an attack everything it could want to know."""
        names = {
            "SECRET_FILE": str(self.folder / "secret.txt"),
            "SECRET_NAME": SECRET_NAME,
            "OUTSIDE": str(self.folder / "outside"),
            "SUBMISSION": str(self.folder / "ps1.ipynb"),
            "PORT": self.listeners[0].getsockname()[1],
            "SOCKET": self.listeners[1].getsockname()[1:].decode(),
            "GRADER": os.getpid(),
        }
        lines = [
            "import contextlib, os, signal, time",
            "from pathlib import Path",
            *(f"{name} = {value!r}" for name, value in names.items()),
            "class Reached(Exception):",
            "    pass",
            "def reached(what):",
            "    raise Reached(what)",
        ]
        return "\n".join(lines)

    def num_connections(self) -> int:
        """Return how many connections have arrived since the last call."""
        found = 0
        for listener in self.listeners:
            with contextlib.suppress(BlockingIOError):
                while True:
                    listener.accept()[0].close()
                    found += 1
        return found


@contextlib.contextmanager
def outside() -> Iterator[Outside]:
    """Provide a secret file, a secret in the environment, a folder, and two servers."""
    secret = secrets.token_hex(16)
    BUILD.mkdir(exist_ok=True)
    with (
        tempfile.TemporaryDirectory(dir=BUILD) as folder,  # not below /tmp, which the box replaces anyway
        socket.create_server(("127.0.0.1", 0)) as port,
        socket.socket(socket.AF_UNIX) as abstract,
        mock.patch.dict(os.environ, {SECRET_NAME: secret}),
    ):
        abstract.bind(f"\0vaecourse-{secret}")
        abstract.listen()
        for listener in (port, abstract):
            listener.setblocking(False)
        for name, text in (("secret.txt", secret), ("ps1.ipynb", "{}")):
            Path(folder, name).write_text(text)
        Path(folder, "outside").mkdir()
        for path in (Path(folder), *Path(folder).iterdir()):
            path.chmod(0o777)  # it is the box that holds, not the permissions
        yield Outside(Path(folder), secret, (port, abstract))


def graded(attack: Attack, world: Outside, *, limits: Limits = LIMITS, trusted: bool = False) -> Grades:
    """Grade an attack; a hostile one with two tasks only, whose answers are right and need no torch."""
    if attack.hand_in is not None:
        with tempfile.TemporaryDirectory() as folder:
            attack.hand_in(right_notebook(), Path(folder, "student", "ps1"))
            submission = read_submission(Path(folder), "student", "ps1")
        return grade_submission(submission, slot=SLOT, limits=FORGING_LIMITS, trusted=trusted)
    if attack.kind == "forgery":
        last = [code_cell("if 'last' in dir():\n    exec(last)")]
        cells = (code_cell(attack.code), *WRONG, *last)
        return grade_submission(Submission("student", "ps1", cells, ""), slot=SLOT, limits=FORGING_LIMITS)
    light = {
        "SETUP": "import math",
        "tasks_of": lambda _: [TASKS["learning_rate_for_sse"], TASKS["ridge_penalty"]],
    }
    honest = right_cells("learning_rate_for_sse", "ridge_penalty")
    # an attack from inside an answer stands after the honest ones
    is_answer = attack.code.startswith("def ")
    cells = (
        *(honest if is_answer else ()),
        code_cell(world.told()),
        code_cell(attack.code),
        *honest[is_answer * 2 :],
    )
    with mock.patch.multiple(grading, **light):
        return grade_submission(
            Submission("student", "ps1", cells, ""), slot=SLOT, limits=limits, trusted=trusted
        )


def what_came(grades: Grades) -> str:
    """Return in a few words, the same every time, what was raised, the verdicts and the points."""
    raised = [cell.partition(": ")[2].split(":")[0].split(" ")[0] for cell in grades.failed_cells[:1]]
    verdicts = {mark.verdict.partition(":")[0]: None for mark in grades.marks if mark.verdict != "ok"}
    return ", ".join([*raised, *verdicts, f"{grades.score:g} of {grades.max_score:g} points"])


INTRODUCTIONS = {
    "hostile": "Hostile notebooks; after the attack stand two right functions, worth 4 points:",
    "forgery": "Forging notebooks; after the attack stands a notebook that honestly has 2 of 11 points:",
    "submission": "Submissions that are not what was asked for:",
}


def attack_table(results: list[tuple[Attack, str]]) -> str:
    """Return Markdown tables of attacks and what came of them."""
    lines = []
    for kind, introduction in INTRODUCTIONS.items():
        lines += [introduction, "", "| attack | what it tries | what came of it |", "|---|---|---|"]
        lines += [f"| {a.name} | {a.tries} | {came} |" for a, came in results if a.kind == kind]
        lines.append("")
    return "\n".join(lines[:-1]) + "\n"


if __name__ == "__main__":
    self_test(SLOT)
    with outside() as world:
        found = [(attack, what_came(graded(attack, world))) for attack in ATTACKS]
    for attack, came in found:
        print("  " if came == attack.outcome else "! ", attack.name, "->", came)
    TABLE.write_text(attack_table(found), "utf-8")
