"""What numpydoc's validation cannot ask of the package's docstrings."""

import ast
import doctest
import functools
import importlib
import inspect
import json
import pkgutil
import re
import textwrap
from pathlib import Path
from types import ModuleType

import pytest
from numpydoc.docscrape import NumpyDocString

import vaecourse

BOOK = Path(__file__).parents[2] / "book"


def public_modules() -> list[ModuleType]:
    # coursework is used through its commands, and documented on the page for instructors
    names = [module.name for module in pkgutil.iter_modules(vaecourse.__path__, "vaecourse.")]
    return [importlib.import_module(name) for name in names if not re.search(r"\._|\.coursework", name)]


def public_names(module: ModuleType) -> list[str]:
    """What a wing hands out; in a module of the core, all that it defines."""
    if hasattr(module, "__path__"):
        return module.__all__
    return [n for n, v in vars(module).items() if getattr(v, "__module__", None) == module.__name__]


def public_objects() -> dict[str, object]:
    """Functions and classes by dotted name, and the methods and properties that classes define themselves."""
    found: dict[str, object] = {}
    for module in public_modules():
        for name in public_names(module):
            value = getattr(module, name)
            if name.startswith("_") or not (inspect.isfunction(value) or inspect.isclass(value)):
                continue
            found[f"{module.__name__}.{name}"] = value
            for attribute, member in vars(value).items() if inspect.isclass(value) else ():
                member = getattr(member, "fget", None) or getattr(member, "__func__", member)
                if inspect.isfunction(member) and (attribute == "__init__" or not attribute.startswith("_")):
                    found[f"{module.__name__}.{name}.{attribute}"] = member
    return found


OBJECTS = public_objects()
FUNCTIONS = {name: value for name, value in OBJECTS.items() if inspect.isfunction(value)}
TOP_LEVEL = {name: value for name, value in OBJECTS.items() if name.count(".") == 2}


def is_written(function) -> bool:
    """Whether the package's own text stands behind it: dataclasses and protocols bring methods along."""
    return Path(function.__code__.co_filename).is_relative_to(Path(vaecourse.__file__).parent)


def docstring(name: str) -> str:
    """Own docstring, or that of the method it overrides."""
    owner, _, attribute = name.rpartition(".")
    if inspect.isclass(OBJECTS.get(owner)):
        return inspect.getdoc(getattr(OBJECTS[owner], attribute)) or ""
    return inspect.getdoc(OBJECTS[name]) or ""


def section(name: str, title: str) -> str:
    return "\n".join(map(str, NumpyDocString(docstring(name))[title]))


def each(objects: dict[str, object]):
    return pytest.mark.parametrize("name", objects, ids=lambda name: name.removeprefix("vaecourse."))


def test_the_walk_finds_the_public_surface():
    expected = {"linear_vae.LinearVAE.from_ppca", "training.fit", "evaluation.ActiveUnits.count"}
    assert {f"vaecourse.{name}" for name in expected} <= OBJECTS.keys()
    assert "vaecourse.densities.gaussian_nll" in TOP_LEVEL
    assert "vaecourse.likelihoods.gaussian_nll" not in OBJECTS


# data classes and protocols are described by their attributes
DESCRIBED_BY_ATTRIBUTES = {
    name
    for name, value in TOP_LEVEL.items()
    if inspect.isclass(value)
    and (NumpyDocString(docstring(name))["Attributes"] or getattr(value, "_is_protocol", False))
}


@each({name: value for name, value in TOP_LEVEL.items() if name not in DESCRIBED_BY_ATTRIBUTES})
def test_docstring_has_a_doctest(name):
    assert doctest.DocTestParser().get_examples(docstring(name)), f"{name} has no example"


NEEDS_SHAPE = {
    name: function
    for name, function in FUNCTIONS.items()
    if re.search(r"\bTensor\b", str(function.__annotations__.get("return", "")))
    and not name.endswith(".forward")  # one line, in the terms of the class's docstring
    and "LatentVariableModel" not in name
}


@each(NEEDS_SHAPE)
def test_docstring_gives_the_shape_of_what_is_returned(name):
    assert "shape" in section(name, "Returns").lower(), f"{name} returns a Tensor of undocumented shape"


def raised_here(function) -> set[str]:
    """Names of exceptions raised in the function's own text."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    raised = (node.exc for node in ast.walk(tree) if isinstance(node, ast.Raise) and node.exc is not None)
    calls = (exc.func if isinstance(exc, ast.Call) else exc for exc in raised)
    return {node.id for node in calls if isinstance(node, ast.Name) and node.id[0].isupper()}


RAISING = {name: f for name, f in FUNCTIONS.items() if is_written(f) and raised_here(f)}


@each(RAISING)
def test_docstring_names_what_is_raised(name):
    documented = section(name.removesuffix(".__init__"), "Raises")
    for exception in raised_here(FUNCTIONS[name]):
        assert exception in documented, f"{name} raises an undocumented {exception}"


@each({name: f for name, f in FUNCTIONS.items() if is_written(f)})
def test_signature_is_annotated(name):
    signature = inspect.signature(FUNCTIONS[name])
    given = [p.annotation for p in signature.parameters.values() if p.name not in ("self", "cls")]
    assert inspect.Signature.empty not in (*given, signature.return_annotation)


@functools.cache
def labels_in_book() -> set[str]:
    """Labels of display equations: `$$ (eq-name)` in notebooks and Markdown files."""
    texts = [path.read_text() for path in BOOK.rglob("*.md")]
    for path in BOOK.rglob("*.ipynb"):
        texts += ["".join(cell["source"]) for cell in json.loads(path.read_text())["cells"]]
    return {label for text in texts for label in re.findall(r"\$\$[ \t]*\((eq-[\w-]+)\)", text)}


def labels_in_docstrings() -> list[tuple[str, str]]:
    """Equation labels, and the places that mention them."""
    texts = {module.__name__: module.__doc__ or "" for module in public_modules()}
    texts |= {name: docstring(name) for name in OBJECTS}
    return [(name, label) for name, text in texts.items() for label in re.findall(r"\beq-[\w-]+", text)]


@pytest.mark.parametrize(("name", "label"), labels_in_docstrings())
def test_equation_named_in_a_docstring_stands_in_the_book(name, label):
    assert label in labels_in_book(), f"{label} in {name} is defined in no chapter"
