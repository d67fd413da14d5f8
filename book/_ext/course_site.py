"""Sphinx extension: fresh executions, local mathematics, problem sets."""

import hashlib
import importlib.metadata
import importlib.util
import shutil
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx
from sphinx.config import Config

from vaecourse.coursework.release import release

LIBRARIES = ["matplotlib", "numpy", "scikit-learn", "torch"]
MATHJAX_PARTS = ["tex-chtml.js", "output/chtml/fonts/woff-v2"]


def package_fingerprint(package: Path) -> str:
    """Digest of what outputs depend on besides the notebook.

    The grading of problem sets is left out: no chapter uses it.
    """
    digest = hashlib.sha256()
    for path in sorted(
        p
        for p in package.rglob("*")
        if p.is_file() and not {"__pycache__", "coursework"} & set(p.parts)
    ):
        digest.update(
            path.relative_to(package).as_posix().encode() + path.read_bytes()
        )
    for library in LIBRARIES:
        digest.update(
            f"{library}=={importlib.metadata.version(library)}".encode()
        )
    return digest.hexdigest()[:16]


def choose_execution_cache(app: Sphinx, config: Config) -> None:
    """Keep one execution cache per state of the package, the current one only.

    The cache itself compares notebooks only, and would go on showing what an
    older version of the package computed.
    """
    source = Path(app.srcdir)
    caches = source / "_build" / ".jupyter_cache"
    current = caches / package_fingerprint(source / "vaecourse")
    if caches.is_dir():
        for stale in caches.iterdir():
            if stale != current:
                shutil.rmtree(stale) if stale.is_dir() else stale.unlink()
    config.nb_execution_cache_path = str(current)


def drop_broken_scripts(
    app: Sphinx,
    pagename: str,
    templatename: str,
    context: dict[str, Any],
    doctree: object,
) -> None:
    """Drop repeated scripts, and the Thebe loader, which fails on each page."""
    kept: dict[tuple[str, str], object] = {}
    for script in context.get("script_files", []):
        name = str(getattr(script, "filename", script) or "")
        body = getattr(script, "attributes", {}).get("body") or ""
        if "thebe" not in name.lower() and "THEBE" not in body:
            kept.setdefault((name, body), script)
    context["script_files"] = list(kept.values())


def copy_mathjax(app: Sphinx, exception: Exception | None) -> None:
    """Copy the parts of MathJax that pages load out of its wheel."""
    if exception is not None or app.builder.format != "html":
        return
    spec = importlib.util.find_spec("sphinx-mathjax-offline")
    if spec is None or spec.origin is None:
        raise RuntimeError(
            "sphinx-mathjax-offline is missing: install the extra [book]"
        )
    source = Path(spec.origin).parent / "static" / "mathjax"
    target = Path(app.outdir) / "_static" / "mathjax"
    for part in MATHJAX_PARTS:
        (target / part).parent.mkdir(parents=True, exist_ok=True)
        if (source / part).is_dir():
            shutil.copytree(source / part, target / part, dirs_exist_ok=True)
        else:
            shutil.copy(source / part, target / part)


def release_problem_sets(app: Sphinx, exception: Exception | None) -> None:
    """Put the students' version of every problem set beside the pages."""
    if exception is None and app.builder.format == "html":
        source = Path(app.srcdir) / "book" / "coursework" / "source"
        release(source, Path(app.outdir) / "coursework")


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the hooks."""
    app.connect("config-inited", choose_execution_cache)
    app.connect("html-page-context", drop_broken_scripts, priority=900)
    app.connect("build-finished", copy_mathjax)
    app.connect("build-finished", release_problem_sets)
    return {
        "version": "1",
        "parallel_read_safe": True,
        "parallel_write_safe": True,
    }
