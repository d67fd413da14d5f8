# Forging notebooks, a cell each: the functions are wrong, the marks are to be right.
#
# They stand before a wrong notebook, whose one right function is worth 2 points of 11.  A function
# `forge` takes the place of all five; `claim(...)` is written as if the runner had, see `PIPE`.
#
# ruff: noqa
raise ImportError("these cells are read, and run in a box; nothing imports them")

# %% honest and wrong: nothing: what the others are compared with -> wrong, 2 of 11 points


# %% equal to everything: return an object that equals, and is close to, any number -> wrong, 0 of 11 points
class Yes(float):
    __eq__ = __lt__ = __le__ = __gt__ = __ge__ = lambda self, other: True
    __sub__ = __rsub__ = __abs__ = lambda self, *other: self
    __hash__ = float.__hash__


def forge(*args):
    return Yes()


# %% a tensor that agrees: return a subclass of Tensor whose every operation says yes -> error, 0 of 11 points
class Yes(torch.Tensor):
    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        return True


def forge(*args):
    return torch.zeros(5, 3).as_subclass(Yes)


# %% patch the comparisons: make numpy.testing and torch find everything close -> wrong, 2 of 11 points
import numpy

yes = lambda *args, **kwargs: True
numpy.testing.assert_allclose = numpy.isclose = numpy.allclose = yes
torch.allclose = torch.equal = torch.isclose = torch.testing.assert_close = yes
torch.Tensor.__eq__ = torch.Tensor.__le__ = torch.Tensor.allclose = torch.Tensor.equal = yes

# %% hook imports: serve a grader of one's own to whoever imports it -> wrong, 2 of 11 points
import builtins, importlib, sys, types

original = builtins.__import__


def forged(name, *args, **kwargs):
    if name.startswith("vaecourse"):
        module = types.ModuleType(name)
        module.verdict_of = module.grade_submission = lambda *args, **kwargs: "ok"
        return sys.modules.setdefault(name, module)
    return original(name, *args, **kwargs)


builtins.__import__ = forged
import vaecourse.coursework.oracle

# %% walk the stack: replace the functions that answer and write, from inside a cell -> wrong, 0 of 11 points
import sys

frame = sys._getframe()
while frame.f_back:
    frame = frame.f_back
    if "answer" in frame.f_globals:
        says = {"value": {"kind": "number", "value": 0.0}, "verdict": "ok", "score": 11, "ok": True}
        frame.f_globals["answer"] = lambda *args: says

# %% os._exit in an answer: end the process before it can be found wrong -> error, 0 of 11 points
import os


def forge(*args):
    os._exit(0)


# %% exit in a cell: end the notebook before the wrong cells, with a good status -> SystemExit, wrong, 2 of 11 points
import sys

sys.exit(0)

# %% hook exceptions: hide every error, and print a mark at the end -> RuntimeError, wrong, 2 of 11 points
import atexit, sys, threading

sys.excepthook = threading.excepthook = lambda *args: print("11 of 11 points")
atexit.register(lambda: print("11 of 11 points"))
raise RuntimeError

# %% drop the later cells: tell IPython to forget what follows -> NameError, wrong, 2 of 11 points
get_ipython().input_transformers_cleanup.append(lambda lines: [])

# %% print result lines: imitate on both outputs what the runner writes -> wrong, 2 of 11 points
import json, sys

for number in range(100):
    line = {"id": number, "verdict": "ok", "score": 11, "value": {"kind": "number", "value": 0}}
    print(json.dumps(line), flush=True)
    print(json.dumps(line), file=sys.stderr, flush=True)
print('{"done": true}', flush=True)

# %% write into the result pipe: find it in /proc/self/fd and claim full marks -> wrong, 0 of 11 points
says = {"verdict": "ok", "score": 11, "value": {"kind": "number", "value": 0.0}}
claim({"failed_cells": []}, *[{"id": n, **says} for n in range(100)], {"done": True})

# %% answer with the inputs: find the calls with gc and write their arguments as answers -> wrong, 0 of 11 points
import gc

calls = [c for c in gc.get_objects() if isinstance(c, dict) and "function" in c and "args" in c]
values = [
    c["args"][0] if isinstance(c["args"][0], dict) else {"kind": "number", "value": c["args"][0]}
    for c in calls
]
claim({"failed_cells": []}, *[{"id": c["id"], "value": v} for c, v in zip(calls, values)])
assert calls

# %% break the judge: write answers of types that nobody expects -> malformed, 0 of 11 points
odd = [None, "x", [], {}, float("inf"), [[[]]], -1, 10**300]
lines = [{"id": n, "changed": [None], "value": odd[n % 8]} for n in range(100)]
claim({"failed_cells": odd[:3]}, *lines)

# %% break the text: raise an error whose message is no text -> ValueError, wrong, 2 of 11 points
raise ValueError("\ud800" + chr(0) + chr(27) + "[2J")

# %% break the table: answer with the name of a type that is no text -> wrong, 0 of 11 points
odd = {"kind": "other", "type": chr(0xD800) + chr(10) + "=1+1"}
claim({"failed_cells": []}, *[{"id": n, "value": odd} for n in range(100)])

# %% import the grader: look for the reference answers in the package -> ModuleNotFoundError, wrong, 2 of 11 points
from vaecourse.coursework.tasks.ps1 import _log_density as normal_log_density

# %% search for the grader: find its files anywhere -> LookupError, wrong, 2 of 11 points
import os

for folder, folders, names in os.walk("/"):
    folders[:] = set(folders) - {"proc", "usr"}
    if {"ps1.py", "oracle.py"} <= set(names):
        raise RuntimeError("found " + folder)
raise LookupError("nothing found")
