"""Sphinx extension: what stands beside the pages: fresh executions, mathematics, icons, problem sets."""

import hashlib
import importlib.metadata
import importlib.util
import re
import shutil
from pathlib import Path
from typing import Any

from fontTools import subset
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.environment import BuildEnvironment
from sphinx.util import logging

from vaecourse.coursework.release import release

logger = logging.getLogger(__name__)
notebooks: list[str] = []  # of this build, in the order in which they are read

LIBRARIES = ["matplotlib", "numpy", "scikit-learn", "torch"]
ICON = re.compile(r'((?:\.fa-[a-z0-9-]+:before,?)+)\{content:"\\([0-9a-f]+)"\}')  # in the theme's style sheet
MATHJAX_PARTS = ["tex-chtml.js", "output/chtml/fonts/woff-v2"]


def package_fingerprint(package: Path) -> str:
    """Digest of what outputs depend on besides the notebook.

    The grading of problem sets is left out: no chapter uses it.
    """
    digest = hashlib.sha256()
    for path in sorted(
        p for p in package.rglob("*") if p.is_file() and not {"__pycache__", "coursework"} & set(p.parts)
    ):
        digest.update(path.relative_to(package).as_posix().encode() + path.read_bytes())
    for library in LIBRARIES:
        digest.update(f"{library}=={importlib.metadata.version(library)}".encode())
    return digest.hexdigest()[:16]


def execution_cache(root: Path) -> Path:
    """Keep one cache of executed notebooks per state of the package, the current one only.

    The cache itself compares notebooks only, and would go on showing what an
    older version of the package computed.
    """
    caches = root / "_build" / ".jupyter_cache"
    current = caches / package_fingerprint(root / "vaecourse")
    for stale in caches.glob("*"):
        if stale != current:
            shutil.rmtree(stale) if stale.is_dir() else stale.unlink()
    return current


def choose_execution_cache(app: Sphinx, config: Config) -> None:
    """Let chapters be taken from the cache of this state of the package."""
    config.nb_execution_cache_path = str(execution_cache(Path(app.srcdir)))


def count_notebooks(app: Sphinx, env: BuildEnvironment, docnames: list[str]) -> None:
    """Remember which notebooks are going to be read, so that each can be announced with its number."""
    notebooks[:] = [name for name in docnames if str(env.doc2path(name)).endswith(".ipynb")]


def announce_notebook(app: Sphinx, docname: str, source: list[str]) -> None:
    """Say which notebook of how many is read; it is executed unless the cache has it."""
    if docname in notebooks:
        logger.info("\nnotebook %d of %d: %s", notebooks.index(docname) + 1, len(notebooks), docname)


def copy_mathjax(app: Sphinx, exception: Exception | None) -> None:
    """Copy the parts of MathJax that pages load out of its wheel."""
    if exception is not None or app.builder.format != "html":
        return
    spec = importlib.util.find_spec("sphinx-mathjax-offline")
    if spec is None or spec.origin is None:
        raise RuntimeError("sphinx-mathjax-offline is missing: install the extra [book]")
    source = Path(spec.origin).parent / "static" / "mathjax"
    target = Path(app.outdir) / "_static" / "mathjax"
    for part in MATHJAX_PARTS:
        (target / part).parent.mkdir(parents=True, exist_ok=True)
        if (source / part).is_dir():
            shutil.copytree(source / part, target / part, dirs_exist_ok=True)
        else:
            shutil.copy(source / part, target / part)


def subset_icons(app: Sphinx, exception: Exception | None) -> None:
    """Cut the icon fonts down to the icons that occur, from 300 kB to a few."""
    if exception is not None or app.builder.name != "html":
        return
    static = Path(app.outdir) / "_static"
    pages = [
        *Path(app.outdir).rglob("*.html"),
        *(static / "scripts").glob("*theme.js"),
    ]
    names = {name for page in pages for name in re.findall(r"\bfa-[a-z0-9-]+", page.read_text("utf-8"))}
    sheets = "".join(path.read_text("utf-8") for path in static.rglob("*.css"))
    glyphs = [
        code for selector, code in ICON.findall(sheets) if names & set(re.findall(r"fa-[a-z0-9-]+", selector))
    ]
    others = ICON.sub("", sheets)  # icons that a style sheet shows without a class of their own
    glyphs += re.findall(r"\\([ef][0-9a-f]{3})\b", others)
    glyphs += [f"{ord(character):x}" for character in re.findall("[\ue000-\uf8ff]", others)]
    for path in (static / "vendor" / "fontawesome" / "webfonts").iterdir():
        if path.suffix == ".ttf":  # what a browser without woff2 would take
            path.unlink()
            continue
        options = subset.Options(flavor="woff2", notdef_outline=True)
        font = subset.load_font(str(path), options)
        cut = subset.Subsetter(options)
        cut.populate(unicodes=[int(code, 16) for code in glyphs])
        cut.subset(font)
        subset.save_font(font, str(path), options)


def release_problem_sets(app: Sphinx, exception: Exception | None) -> None:
    """Put the students' version of every problem set beside the pages."""
    if exception is None and app.builder.format == "html":
        source = Path(app.srcdir) / "book" / "coursework" / "source"
        release(source, Path(app.outdir) / "coursework")


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the hooks."""
    app.connect("config-inited", choose_execution_cache)
    app.connect("env-before-read-docs", count_notebooks)
    app.connect("source-read", announce_notebook)
    app.connect("build-finished", copy_mathjax)
    app.connect("build-finished", subset_icons)
    app.connect("build-finished", release_problem_sets)
    return {
        "version": "1",
        "parallel_read_safe": True,
        "parallel_write_safe": True,
    }
