"""Sphinx extension: what stands beside the pages: fresh executions, mathematics, icons, problem sets."""

import asyncio
import hashlib
import importlib.metadata
import importlib.util
import itertools
import os
import re
import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import nbformat
from fontTools import subset
from jupyter_cache import get_cache
from jupyter_cache.base import CacheBundleIn, JupyterCacheAbstract
from nbclient import NotebookClient
from nbclient.exceptions import CellControlSignal
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.environment import BuildEnvironment
from sphinx.util import logging

from vaecourse.coursework.release import release

logger = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parents[2]
LIBRARIES = ["matplotlib", "numpy", "scikit-learn", "torch"]
ICON = re.compile(r'((?:\.fa-[a-z0-9-]+:before,?)+)\{content:"\\([0-9a-f]+)"\}')  # in the theme's style sheet
MATHJAX_PARTS = ["tex-chtml.js", "output/chtml/fonts/woff-v2"]


def fingerprint(folder: Path) -> str:
    """Digest of the files of a folder and of the versions of the libraries.

    The grading of problem sets is left out: no page depends on it.
    """
    digest = hashlib.sha256()
    for path in sorted(
        p for p in folder.rglob("*") if p.is_file() and not {"__pycache__", "coursework"} & set(p.parts)
    ):
        digest.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    for library in LIBRARIES:
        digest.update(f"{library}=={importlib.metadata.version(library)}".encode())
    return digest.hexdigest()[:16]


def execution_cache(root: Path) -> Path:
    """Keep one cache of executed notebooks per state of the package, the current one only.

    The cache itself compares notebooks only, and would go on showing what an
    older version of the package computed.
    """
    caches = root / "_build" / ".jupyter_cache"
    current = caches / fingerprint(root / "vaecourse")
    for stale in caches.glob("*"):
        if stale != current:
            shutil.rmtree(stale) if stale.is_dir() else stale.unlink()
    return current


def choose_execution_cache(app: Sphinx, config: Config) -> None:
    """Let chapters be taken from the cache of this state of the package."""
    config.nb_execution_cache_path = str(execution_cache(Path(app.srcdir)))


def is_cached(path: Path, cache: JupyterCacheAbstract) -> bool:
    """Whether the cache holds an execution of a notebook as it is now."""
    with suppress(KeyError):
        cache.match_cache_notebook(nbformat.read(path, as_version=4))
        return True
    return False


async def execute(paths: list[Path], cache: JupyterCacheAbstract, timeout: int) -> None:
    """Execute notebooks, each in its folder and as many at a time as there are processors, into the cache.

    One that fails is left out, so that Sphinx finds the error when it reads the page, and reports it.
    """
    processors = os.cpu_count() or 1
    workers = max(1, min(processors, len(paths)))
    environment = {"OMP_NUM_THREADS": str(processors // workers), **os.environ}
    turn, done = asyncio.Semaphore(workers), itertools.count(1)

    async def one(path: Path) -> None:
        notebook, place = nbformat.read(path, as_version=4), {"metadata": {"path": str(path.parent)}}
        quiet = ["--log-level=ERROR"]  # kernels warn that TCP on this machine is not encrypted
        options = {"record_timing": False, "extra_arguments": quiet}
        client = NotebookClient(notebook, timeout=timeout, resources=place, **options)
        async with turn:
            start = time.monotonic()
            with suppress(CellControlSignal):
                await client.async_execute(env=environment)
                data = {"execution_seconds": time.monotonic() - start}
                bundle = CacheBundleIn(notebook, str(path), data=data)
                cache.cache_notebook_bundle(bundle, check_validity=False, overwrite=True)
        logger.info("notebook %d of %d executed: %s", next(done), len(paths), path.name)

    await asyncio.gather(*map(one, paths))


def execute_notebooks(app: Sphinx, env: BuildEnvironment, docnames: list[str]) -> None:
    """Execute what the cache does not have, side by side; Sphinx would execute one after the other."""
    if app.config.nb_execution_mode != "cache":
        return
    cache = get_cache(app.config.nb_execution_cache_path)
    paths = [path for name in docnames if (path := Path(env.doc2path(name))).suffix == ".ipynb"]
    waiting = [path for path in paths if not is_cached(path, cache)]
    waiting.sort(key=lambda path: -path.stat().st_size)  # what takes longest is not left to the end
    asyncio.run(execute(waiting, cache, app.config.nb_execution_timeout))


def write_every_page(app: Sphinx, env: BuildEnvironment, docnames: list[str]) -> None:
    """If a page is read, write all of them: their lists of contents and links show each other's titles."""
    if docnames:
        app.connect("env-updated", lambda app, env: env.found_docs)


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
    app.connect("env-before-read-docs", execute_notebooks)
    app.connect("env-before-read-docs", write_every_page)
    app.connect("build-finished", copy_mathjax)
    app.connect("build-finished", subset_icons)
    app.connect("build-finished", release_problem_sets)
    made_by = [fingerprint(ROOT / folder) for folder in ("vaecourse", "book/_ext", "book/_templates")]
    return {
        "version": "1",
        # where the code that makes the pages has changed, all of them are read again
        "env_version": int("".join(made_by), 16),
        "parallel_read_safe": True,
        "parallel_write_safe": True,
    }
