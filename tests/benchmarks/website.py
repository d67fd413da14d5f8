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
from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from tests.benchmarks.measuring import Settings, alternate, ratios, timed
from tests.benchmarks.report import Outcome, Rounds, Row
from tests.site.serving import CHROMIUM, ROOT, Quiet, serve

OURS, STOCK = "this site", "stock theme"
CHAPTER, LIVE = "book/03_gaussian_to_mse.html", "book/live_figures.html"
PAGES = [("chapter 3", CHAPTER, [OURS, STOCK]), ("live figures", LIVE, [OURS])]
FORM_FACTORS = {"desktop": ["--preset=desktop"], "mobile": []}  # without a preset, Lighthouse is a phone
CATEGORIES = {"accessibility": "accessibility", "best-practices": "best practices", "seo": "SEO"}
METRICS = [
    "first-contentful-paint",
    "largest-contentful-paint",
    "total-blocking-time",
    "cumulative-layout-shift",
]
COMPARED = ["largest paint, mobile", "transferred", "uncompressed", "requests"]
LIGHTHOUSE = ["npx", "--yes", "lighthouse@12.8.2"]
FLAGS = "--headless=new --no-sandbox --disable-gpu --disable-background-networking"

# What the course adds to the theme.  Extensions of the text, the cache and local mathematics stay.
LOOK = ("course_", "html_", "ogp_", "sitemap_", "templates_")
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
    rounds = settings.choose(settings.rounds, 1)
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        outputs = {OURS: Path(folder) / "ours", STOCK: Path(folder) / "stock"}
        configs = {OURS: ROOT / "_config.yml", STOCK: stock_config(Path(folder) / "config")}
        for site in outputs:  # chapters that no build has executed yet are executed here
            build(configs[site], outputs[site])
        twice = {site: partial(build_twice, configs[site], outputs[site]) for site in outputs}
        built = build_outcome(alternate(twice, rounds))
        if reason := no_lighthouse():
            not_run = Row("Lighthouse's scores, and the weight of pages", not_run=reason)
            return Outcome([*built.rows, not_run], built.measurements)
        addresses = {
            site: stack.enter_context(serve(output / "_build/html", Host)) for site, output in outputs.items()
        }
        contenders = {
            (page, site, form): partial(look, addresses[site] + path, form)
            for page, path, sites in settings.choose(PAGES, PAGES[:1])
            for form in FORM_FACTORS
            for site in sites
        }
        seen = look_outcome(alternate(contenders, rounds))
    return Outcome([*built.rows, *seen.rows], {**built.measurements, **seen.measurements})


# ---- building ----


def stock_config(folder: Path) -> Path:
    """Write the configuration of the same book without the course's own look, and return its path."""
    import yaml  # comes with Jupyter Book

    config = yaml.safe_load((ROOT / "_config.yml").read_text("utf-8"))
    sphinx = config["sphinx"]
    sphinx["local_extensions"] = {"stock_site": str(folder)}
    sphinx["extra_extensions"] = [name for name in sphinx["extra_extensions"] if name not in ADDED]
    sphinx["config"] = {name: value for name, value in sphinx["config"].items() if not name.startswith(LOOK)}
    folder.mkdir()
    (folder / "stock_site.py").write_text(STOCK_SITE, "utf-8")
    path = folder / "_config.yml"
    path.write_text(yaml.safe_dump(config, allow_unicode=True), "utf-8")
    return path


def run(command: Sequence[str | Path], **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a program in the repository, and keep what it says."""
    environ = {**os.environ, **environment}
    return subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, errors="replace")


def build(config: Path, output: Path) -> float:
    """Build the book into a folder, and return the seconds that it took."""
    program = Path(sys.executable).with_name("jupyter-book")
    command = [program, "build", ".", "--config", config, "--path-output", output]
    path = os.pathsep.join([str(ROOT / "book/_ext"), os.environ.get("PYTHONPATH", "")])
    seconds, done = timed(partial(run, command, PYTHONPATH=path))
    if done.returncode != 0 or not (output / "_build/html" / CHAPTER).is_file():
        raise RuntimeError(f"the book could not be built:\n{(done.stdout + done.stderr)[-3000:]}")
    return seconds


def build_twice(config: Path, output: Path) -> tuple[float, float]:
    """Seconds of a build from nothing but the cache of executed chapters, and of one after it."""
    shutil.rmtree(output, ignore_errors=True)
    return build(config, output), build(config, output)


def build_outcome(builds: dict[str, list[tuple[float, float]]]) -> Outcome:
    """Rows of the builds, and the seconds behind them."""
    rows, measurements = [], {}
    for i, kind in enumerate(["build from nothing, chapters executed before", "second build, nothing new"]):
        seconds = Rounds({site: [pair[i] for pair in pairs] for site, pairs in builds.items()})
        rows += [seconds.row(site, "s", what=f"{kind}: {site}") for site in builds]
        rows.append(seconds.ratio(OURS, STOCK, what=f"{kind}: {OURS} / {STOCK}"))
        measurements |= {f"{kind}, {site}: seconds": seconds.values[site] for site in builds}
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
    done = run([*LIGHTHOUSE, "--version"])
    if done.returncode == 0:
        return None
    (line, *_) = done.stderr.strip().splitlines() or ["no message"]
    return f"{' '.join(LIGHTHOUSE)} does not start ({line}); it needs Node.js 18.20 and npm's registry"


def look(address: str, form_factor: str) -> Look:
    """Let Lighthouse open a page once."""
    command = [*LIGHTHOUSE, address, "--quiet", "--output=json", f"--chrome-flags={FLAGS}"]
    done = run([*command, *FORM_FACTORS[form_factor]], CHROME_PATH=CHROMIUM or "")
    if done.returncode != 0:
        raise RuntimeError(f"Lighthouse failed on {address}:\n{done.stderr[-2000:]}")
    return summary(json.loads(done.stdout))


def summary(report: dict[str, Any]) -> Look:
    """What is kept of a report."""
    if error := report.get("runtimeError"):
        raise RuntimeError(f"Lighthouse could not judge {report['requestedUrl']}: {error['message']}")
    audits = report["audits"]
    requests = audits["network-requests"]["details"]["items"]
    files = [file for file in requests if file["url"].startswith("http")]
    return Look(
        {name: 100 * category["score"] for name, category in report["categories"].items()},
        {name: audits[name]["numericValue"] for name in METRICS},
        sum(file.get("transferSize", 0) for file in files) / 1000,
        sum(file.get("resourceSize", 0) for file in files) / 1000,
        len(files),
    )


def look_outcome(looks: dict[tuple[str, str, str], list[Look]]) -> Outcome:
    """Rows of Lighthouse's scores and of the weight of pages, and the numbers behind them."""
    rows, ours = [], {}
    for page, site in dict.fromkeys((page, site) for page, site, _ in looks):
        seen = figures({form: looks[page, site, form] for form in FORM_FACTORS})
        rows += [Row(f"{page}, {site}: {name}", unit, values=values) for name, (unit, values) in seen.items()]
        if site == OURS:
            ours = seen
            continue
        for name in COMPARED:
            values = ratios(ours[name][1], seen[name][1])
            rows.append(Row(f"{page}, {OURS} / {STOCK}: {name}", "×", values=values))
    return Outcome(
        rows,
        {f"{', '.join(key)}: Lighthouse": [one._asdict() for one in ones] for key, ones in looks.items()},
    )


def figures(seen: dict[str, list[Look]]) -> dict[str, tuple[str, list[float]]]:
    """Unit and values of all that the table shows of a page; of what hardly varies, the median alone."""
    both = [one for form in FORM_FACTORS for one in seen[form]]
    points = {f"performance, {form}": [one.scores["performance"] for one in seen[form]] for form in seen}
    points |= {name: [one.scores[category] for one in both] for category, name in CATEGORIES.items()}
    paints = [one.metrics["largest-contentful-paint"] / 1000 for one in seen["mobile"]]
    return {
        **{name: ("points", values) for name, values in points.items()},
        "largest paint, mobile": ("s", paints),
        "transferred": ("kB", [statistics.median(one.transferred for one in both)]),
        "uncompressed": ("kB", [statistics.median(one.raw for one in both)]),
        "requests": ("", [statistics.median(one.requests for one in both)]),
    }
