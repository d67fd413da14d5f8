"""A loss by its place: FILE.py:FUNCTION, FILE.py:Class.method or NOTEBOOK.ipynb:FUNCTION."""

import ast
import importlib.util
import inspect
import json
import re
import sys
from importlib.abc import InspectLoader
from pathlib import Path
from types import CodeType, ModuleType

from vaecourse.diagnosis.probing import LossFn


def load_function(place: str) -> LossFn:
    """Execute what a loss needs of a file or a notebook, and return the loss."""
    path, _, name = place.rpartition(":")
    if not path or not all(part.isidentifier() for part in name.split(".")):
        raise ValueError(
            f"expected FILE.py:FUNCTION, got {place!r}; FILE.py:Class.method and NOTEBOOK.ipynb:FUNCTION "
            "work too"
        )
    if not Path(path).is_file():
        raise ValueError(f"there is no file {path}")
    if Path(path).suffix not in (".py", ".ipynb"):
        raise ValueError(f"{path} is not a Python file")
    module = _execute(Path(path), name.partition(".")[0])
    found: object = module
    for part in name.split("."):
        owner, found = found, getattr(found, part, None)
        if isinstance(owner, type) and inspect.isfunction(inspect.getattr_static(owner, part, None)):
            found = getattr(_instance(owner, place), part)
    if isinstance(found, type):
        found = _instance(found, place)
    if not callable(found):
        functions = sorted(key for key, value in vars(module).items() if callable(value) and key[0] != "_")
        raise ValueError(f"{path} has no function {name}; it has {', '.join(functions) or 'none'}")
    loss_fn: LossFn = found
    return loss_fn


def _instance(kind: type, place: str) -> object:
    try:
        return kind()
    except TypeError as error:
        raise ValueError(
            f"{place} needs a {kind.__name__}, which cannot be made without arguments ({error}). "
            f"Add two lines to the file and name the function instead: instance = {kind.__name__}(...) and "
            "def loss_fn(recon_x, x, mu, logvar): return instance(recon_x, x, mu, logvar)"
        ) from error


def _execute(path: Path, name: str) -> ModuleType:
    """Run the statements that define a name, or the whole file where its text does not show them."""
    print(f"executing {path}", file=sys.stderr)
    folder, package = _package(path.resolve())
    spec = importlib.util.spec_from_loader(f"{package}diagnosed_file", _Loader(path, name), origin=str(path))
    if spec is None or spec.loader is None:
        raise ValueError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    sys.path[:0] = [str(path.resolve().parent), str(folder)]  # its imports work as if it were run
    sys.argv = [str(path)]
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise ValueError(f"{path} does not run: {type(error).__name__}: {error}{_way_out(error)}") from error
    return module


class _Loader(InspectLoader):
    """Compiles the statements of a file that a name needs."""

    def __init__(self, path: Path, name: str) -> None:
        self.path, self.name = path, name

    def get_source(self, fullname: str) -> str:
        return _source(self.path)

    def get_code(self, fullname: str) -> CodeType:
        tree = ast.parse(self.get_source(fullname), str(self.path))
        tree.body = _needed(tree.body, self.name) or tree.body
        code: CodeType = compile(tree, str(self.path), "exec")
        return code


def _source(path: Path) -> str:
    """Text of a file, or of the code cells of a notebook without its magics."""
    text = path.read_text("utf-8")
    if path.suffix != ".ipynb":
        return text
    cells = ["".join(cell["source"]) for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    python = [cell for cell in cells if not re.match(r"%%(?!time|capture)", cell)]
    return re.sub(r"(?m)^(\s*)[%!].*$", r"\1pass", "\n".join(python))


def _package(path: Path) -> tuple[Path, str]:
    """Folder from which a file is imported, and the package that it belongs to, with its dot."""
    folder, parts = path.parent, list[str]()
    while (folder / "__init__.py").is_file():
        parts.insert(0, folder.name)
        folder = folder.parent
    return folder, "".join(f"{part}." for part in parts)


def _way_out(error: BaseException) -> str:
    if isinstance(error, ModuleNotFoundError):
        return "; install it, or copy the loss to a file of its own that does not import it"
    if isinstance(error, SystemExit):
        return "; its command line wants something: copy the loss to a file of its own"
    return (
        "; copy the loss, and what it needs, to a file of its own" if isinstance(error, ImportError) else ""
    )


def _needed(body: list[ast.stmt], name: str) -> list[ast.stmt]:
    """Top-level statements that a name needs, so that a script without a guard does not train first."""
    wanted, kept = {name}, set[int]()
    while True:
        for number, statement in enumerate(body):
            if number not in kept and _is_needed(statement, wanted, body):
                kept.add(number)
                nodes = [node for node in ast.walk(statement) if isinstance(node, ast.Name)]
                wanted |= {node.id for node in nodes}
                break
        else:
            is_defined = any(name in _bound(body[number]) for number in kept)
            return [body[number] for number in sorted(kept)] if is_defined else []


def _is_needed(statement: ast.stmt, wanted: set[str], body: list[ast.stmt]) -> bool:
    if isinstance(statement, ast.Expr):
        text = ast.unparse(statement)  # where to import from, and what a command line wants
        return "sys.path" in text or ("add_argument" in text and text.partition(".")[0] in wanted)
    found = _bound(statement) & wanted
    if isinstance(statement, ast.For | ast.While):  # they act; what is defined elsewhere is not acted on
        found -= {name for other in body if other is not statement for name in _bound(other)}
    is_everything = isinstance(statement, ast.ImportFrom) and statement.names[0].name == "*"
    return bool(found) or is_everything


def _bound(statement: ast.stmt) -> set[str]:
    """Names that a statement gives a value, within blocks too."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {statement.name}
    names = set[str]()
    for node in ast.walk(statement):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.alias):
            names.add((node.asname or node.name).partition(".")[0])
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
    return names
