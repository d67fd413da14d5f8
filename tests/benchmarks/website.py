"""This site against the same text in the stock theme: building, weight, and Lighthouse's scores."""

import contextlib
import functools
import gzip
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from tests.benchmarks.measuring import Settings, alternate, ratios
from tests.benchmarks.report import Outcome, Row
from tests.book.notebook_rules import ROOT
from tests.site.serving import CHROMIUM, Quiet, serve

OURS, STOCK = "this site", "stock theme"
CHAPTER, LIVE = "book/03_gaussian_to_mse.html", "book/live_figures.html"
PAGES = [("chapter 3", CHAPTER, [OURS, STOCK]), ("live figures", LIVE, [OURS])]
FORM_FACTORS = {"desktop": ["--preset=desktop"], "mobile": []}  # without a preset, Lighthouse is a phone
CATEGORIES = {"accessibility": "accessibility", "best-practices": "best practices", "seo": "SEO"}
LIGHTHOUSE = ["npx", "--yes", "lighthouse@12.8.2"]
FLAGS = "--headless=new --no-sandbox --disable-gpu --disable-background-networking"

# What the course adds to the theme.  Extensions of the text, the cache and local mathematics stay.
LOOK = [
    "course_descriptions",
    "html_context",
    "html_css_files",
    "html_js_files",
    "html_static_path",
    "html_theme_options",
    "ogp_social_cards",
    "sitemap_excludes",
    "sitemap_url_scheme",
    "templates_path",
]
ADDED = {"notfound.extension", "sphinx_sitemap", "sphinxext.opengraph"}
STOCK_SITE = '''"""What both sites share: no chapter is executed again, and MathJax is local."""

from course_site import choose_execution_cache, copy_mathjax


def setup(app):
    app.connect("config-inited", choose_execution_cache)
    app.connect("build-finished", copy_mathjax)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
'''


class Look(NamedTuple):
    """One opening of a page by Lighthouse.

    Attributes
    ----------
    scores : dict
        Points of 100, by category.
    metrics : dict
        Milliseconds; the layout shift is a number without a unit.
    transferred, raw : float
        Kilobytes (1000 bytes) as they came, and after decompression.
    requests : int
        Files that the page asked for.
    """

    scores: dict[str, float]
    metrics: dict[str, float]
    transferred: float
    raw: float
    requests: int


def website(settings: Settings) -> Outcome:
    """Build both sites in turns, serve them as a host would, and let Lighthouse open their pages."""
    if find_spec("jupyter_book") is None:
        return Outcome([Row("building", not_run="jupyter-book cannot be imported; to install: make book")])
    with tempfile.TemporaryDirectory() as folder:
        outputs = {OURS: Path(folder) / "ours", STOCK: Path(folder) / "stock"}
        configs = {OURS: ROOT / "_config.yml", STOCK: stock_config(Path(folder) / "config")}
        for site in outputs:  # chapters that no build has executed yet are executed here
            build(configs[site], outputs[site])
        builds = alternate(
            {site: functools.partial(build_twice, configs[site], outputs[site]) for site in outputs},
            settings.choose(settings.rounds, 1),
        )
        outcome = build_outcome(builds)
        if reason := no_lighthouse():
            not_run = Row("Lighthouse's scores, and the weight of pages", not_run=reason)
            return Outcome([*outcome.rows, not_run], outcome.measurements)
        with contextlib.ExitStack() as stack:
            addresses = {
                site: stack.enter_context(serve(output / "_build/html", Host))
                for site, output in outputs.items()
            }
            contenders = {
                (page, site, form): functools.partial(look, addresses[site] + path, form)
                for page, path, sites in settings.choose(PAGES, PAGES[:1])
                for form in FORM_FACTORS
                for site in sites
            }
            looks = alternate(contenders, settings.choose(settings.rounds, 1))
    seen = look_outcome(looks)
    return Outcome([*outcome.rows, *seen.rows], {**outcome.measurements, **seen.measurements})


# ---- building ----


def stock_config(folder: Path) -> Path:
    """Write the configuration of the same book without the course's own look, and return its path."""
    import yaml  # comes with Jupyter Book

    config = yaml.safe_load((ROOT / "_config.yml").read_text("utf-8"))
    sphinx = config["sphinx"]
    sphinx["local_extensions"] = {"stock_site": str(folder)}
    sphinx["extra_extensions"] = [name for name in sphinx["extra_extensions"] if name not in ADDED]
    sphinx["config"] = {name: value for name, value in sphinx["config"].items() if name not in LOOK}
    folder.mkdir()
    (folder / "stock_site.py").write_text(STOCK_SITE, "utf-8")
    path = folder / "_config.yml"
    path.write_text(yaml.safe_dump(config, allow_unicode=True), "utf-8")
    return path


def build(config: Path, output: Path) -> float:
    """Build the book into a folder, and return the seconds that it took."""
    program = Path(sys.executable).with_name("jupyter-book")
    command = [program, "build", ".", "--config", config]
    path = os.pathsep.join([str(ROOT / "book/_ext"), os.environ.get("PYTHONPATH", "")])
    start = time.perf_counter()
    done = subprocess.run(
        [*command, "--path-output", output],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    seconds = time.perf_counter() - start
    if done.returncode != 0 or not (output / "_build/html" / CHAPTER).is_file():
        raise RuntimeError(f"the book could not be built:\n{done.stdout[-3000:]}")
    return seconds


def build_twice(config: Path, output: Path) -> tuple[float, float]:
    """Seconds of a build from nothing but the cache of executed chapters, and of one after it."""
    shutil.rmtree(output, ignore_errors=True)
    return build(config, output), build(config, output)


def build_outcome(builds: dict[str, list[tuple[float, float]]]) -> Outcome:
    """Rows of the builds, and the seconds behind them."""
    rows, measurements = [], {}
    for i, kind in enumerate(["build from nothing, chapters executed before", "second build, nothing new"]):
        seconds = {site: [pair[i] for pair in pairs] for site, pairs in builds.items()}
        rows += [Row(f"{kind}: {site}", "s", values=values) for site, values in seconds.items()]
        rows.append(Row(f"{kind}: {OURS} / {STOCK}", "×", values=ratios(seconds[OURS], seconds[STOCK])))
        measurements |= {f"{kind}, {site}: seconds": values for site, values in seconds.items()}
    return Outcome(rows, measurements)


# ---- serving ----


@functools.cache
def compressed(path: Path) -> bytes:
    """A file as a host sends it; text is compressed once."""
    return gzip.compress(path.read_bytes())


class Host(Quiet):
    """A handler that compresses text and lets browsers keep files for ten minutes, as GitHub's pages do."""

    protocol_version = "HTTP/1.1"
    TEXT = frozenset({".css", ".html", ".js", ".json", ".svg", ".txt", ".xml"})

    def do_GET(self) -> None:  # noqa: N802  # the library's name
        path = Path(self.translate_path(self.path))
        accepted = self.headers.get("Accept-Encoding", "")
        if path.suffix not in self.TEXT or not path.is_file() or "gzip" not in accepted:
            super().do_GET()
            return
        body = compressed(path)
        self.send_response(200)
        self.send_header("Content-Type", self.guess_type(str(path)) + "; charset=utf-8")
        self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def end_headers(self) -> None:
        self.send_header("Cache-Control", "max-age=600")
        super().end_headers()


# ---- Lighthouse ----


def no_lighthouse() -> str | None:
    """What to install so that Lighthouse can run; None where nothing is missing."""
    if CHROMIUM is None:
        return "no Chromium; to install: apt-get install chromium, or Chrome from its vendor"
    if shutil.which("npx") is None:
        return "no npx, which fetches Lighthouse; to install: Node.js 18.20 or newer, with npm"
    done = subprocess.run([*LIGHTHOUSE, "--version"], capture_output=True, text=True)
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or ["no message"]
        return (
            f"{' '.join(LIGHTHOUSE)} does not start ({lines[0]}); it needs Node.js 18.20 and npm's registry"
        )
    return None


def look(address: str, form_factor: str) -> Look:
    """Let Lighthouse open a page once."""
    command = [*LIGHTHOUSE, address, "--quiet", "--output=json", f"--chrome-flags={FLAGS}"]
    done = subprocess.run(
        [*command, *FORM_FACTORS[form_factor]],
        env={**os.environ, "CHROME_PATH": CHROMIUM or ""},
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        raise RuntimeError(f"Lighthouse failed on {address}:\n{done.stderr[-2000:]}")
    return summary(json.loads(done.stdout))


def summary(report: dict[str, Any]) -> Look:
    """What is kept of a report."""
    if error := report.get("runtimeError"):
        raise RuntimeError(f"Lighthouse could not judge {report['requestedUrl']}: {error['message']}")
    audits = report["audits"]
    names = [
        "first-contentful-paint",
        "largest-contentful-paint",
        "total-blocking-time",
        "cumulative-layout-shift",
    ]
    files = [
        file for file in audits["network-requests"]["details"]["items"] if file["url"].startswith("http")
    ]
    return Look(
        {name: 100 * category["score"] for name, category in report["categories"].items()},
        {name: audits[name]["numericValue"] for name in names},
        sum(file.get("transferSize", 0) for file in files) / 1000,
        sum(file.get("resourceSize", 0) for file in files) / 1000,
        len(files),
    )


Key = tuple[str, str, str]


def look_outcome(looks: dict[Key, list[Look]]) -> Outcome:
    """Rows of Lighthouse's scores and of the weight of pages, and the numbers behind them."""
    rows = []
    for page, site in dict.fromkeys((page, site) for page, site, _ in looks):
        seen = {form: looks[page, site, form] for form in FORM_FACTORS}
        both = [one for form in FORM_FACTORS for one in seen[form]]
        for form in FORM_FACTORS:
            points = [one.scores["performance"] for one in seen[form]]
            rows.append(Row(f"{page}, {site}: performance, {form}", "points", values=points))
        for category, name in CATEGORIES.items():
            points = [one.scores[category] for one in both]
            rows.append(Row(f"{page}, {site}: {name}", "points", values=points))
        paint = [one.metrics["largest-contentful-paint"] / 1000 for one in seen["mobile"]]
        rows += [
            Row(f"{page}, {site}: largest paint, mobile", "s", values=paint),
            Row(f"{page}, {site}: transferred", "kB", values=[middle(both, "transferred")]),
            Row(f"{page}, {site}: uncompressed", "kB", values=[middle(both, "raw")]),
            Row(f"{page}, {site}: requests", "", values=[middle(both, "requests")]),
        ]
        if site == STOCK:
            rows += comparison(page, looks)
    measurements = {
        f"{', '.join(key)}: Lighthouse": [o._asdict() for o in ones] for key, ones in looks.items()
    }
    return Outcome(rows, measurements)


def comparison(page: str, looks: dict[Key, list[Look]]) -> list[Row]:
    """Rows that hold this site against the stock theme."""
    ours, stock = (looks[page, site, "mobile"] for site in [OURS, STOCK])
    versus = f"{page}, {OURS} / {STOCK}"
    paints = [[one.metrics["largest-contentful-paint"] for one in ones] for ones in (ours, stock)]
    return [
        Row(f"{versus}: largest paint, mobile", "×", values=ratios(*paints)),
        *(
            Row(f"{versus}: {name}", "×", values=[middle(ours, field) / middle(stock, field)])
            for name, field in {
                "transferred": "transferred",
                "uncompressed": "raw",
                "requests": "requests",
            }.items()
        ),
    ]


def middle(looks: list[Look], field: str) -> float:
    """Median of something that hardly varies."""
    return float(statistics.median(getattr(one, field) for one in looks))
