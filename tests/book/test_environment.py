"""What the repository says about itself agrees: environment, pinned versions, address, version, README."""

import re
import shutil
import subprocess
import tomllib
from importlib import metadata

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

import vaecourse
from tests.book.notebook_rules import REPOSITORY, ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
OWN = REPOSITORY.rstrip("/").split("/")[-2:]

# Built from parts, so that this file is not among its own findings.
HOSTS = ["pypi." + "org", "files." + "pythonhosted", "registry." + "npmjs"]
FOLDERS = ["root", "home", "work"]
LEAK = re.compile("|".join([*map(re.escape, HOSTS), rf"(?<![\w.~-])/(?:{'|'.join(FOLDERS)})/"]))
# Only torch's CUDA build asks for these, and it pins them itself.
CUDA_PARTS = re.compile(r"(nvidia|cuda|triton)\b")


def load(name: str) -> dict:
    """Return the content of a YAML file at the repository's root."""
    return yaml.safe_load((ROOT / name).read_text("utf-8"))


@pytest.fixture(scope="module")
def tracked_texts() -> dict[str, str]:
    """Name and content of the text files that git holds or would add."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("needs git and a checkout to know which files belong to the project")
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    paths = {name: ROOT / name for name in listed.split("\0") if (ROOT / name).is_file()}
    contents = {name: path.read_bytes() for name, path in paths.items()}
    return {name: data.decode("utf-8") for name, data in contents.items() if b"\0" not in data}


# ---- environment.yml and pyproject.toml ----


def conda_and_pip() -> tuple[list[str], list[str]]:
    """Return the conda and the pip entries of environment.yml."""
    entries = load("environment.yml")["dependencies"]
    pip = [line for entry in entries if isinstance(entry, dict) for line in entry["pip"]]
    return [entry for entry in entries if isinstance(entry, str)], pip


def test_conda_installs_a_python_and_pinned_versions_that_satisfy_the_package():
    conda, pip = conda_and_pip()
    (python,) = (entry for entry in conda if re.match(r"python\b", entry))
    version = re.fullmatch(r"python\s*=\s*(\d+\.\d+)", python)
    assert version, f"write python=3.x, not {python}"
    assert SpecifierSet(PROJECT["requires-python"]).contains(version[1])
    constraints, package = pip
    assert constraints == "-c constraints.txt"
    editable = re.fullmatch(r"-e \.\[([\w,-]+)\]", package)
    assert editable, f"write -e .[extra], not {package}"
    assert set(editable[1].split(",")) <= set(EXTRAS)


def test_no_dependency_is_stated_twice():
    conda, pip = conda_and_pip()
    stated = [re.match(r"[\w.-]+", entry)[0] for entry in conda]
    stated += [entry for entry in pip if not entry.startswith("-")]
    stated += [text for group in (PROJECT["dependencies"], *EXTRAS.values()) for text in group]
    names = [canonicalize_name(Requirement(text).name) for text in stated]
    assert {name for name in names if names.count(name) > 1} <= {PROJECT["name"]}


# ---- constraints.txt ----

PINS = re.findall(r"^[^#\n].*$", (ROOT / "constraints.txt").read_text("utf-8"), re.MULTILINE)


def needed(extra: str) -> set[str]:
    """Return the distributions that the package with this extra needs, the indirect ones too."""
    seen = set()
    waiting = [(text, "") for text in (*PROJECT["dependencies"], *EXTRAS[extra])]
    while waiting:
        text, asked_by = waiting.pop()
        requirement = Requirement(text)
        name = canonicalize_name(requirement.name)
        applies = not requirement.marker or requirement.marker.evaluate({"extra": asked_by})
        for wanted in {"", *requirement.extras} if applies and not CUDA_PARTS.match(name) else ():
            if (name, wanted) not in seen:
                seen.add((name, wanted))
                is_own = name == PROJECT["name"]
                below = EXTRAS.get(wanted, []) if is_own else metadata.requires(name) or []
                waiting += [(text, wanted) for text in below]
    return {name for name, _ in seen} - {PROJECT["name"]}


def test_constraints_are_exact_pins_sorted_and_unique():
    assert [pin for pin in PINS if not re.fullmatch(r"[A-Za-z0-9][\w.-]*==[0-9][\w.!]*", pin)] == []
    names = [pin.partition("==")[0].lower() for pin in PINS]
    assert names == sorted(names)  # the order of `pip freeze`
    assert len({canonicalize_name(name) for name in names}) == len(names)


def test_constraints_pin_everything_that_is_installed_for_the_tests():
    pinned = {canonicalize_name(name): version for name, _, version in (pin.partition("==") for pin in PINS)}
    installed = {name: Version(metadata.version(name)).public for name in needed("test")}
    wrong = [f"{name}=={version}" for name, version in installed.items() if pinned.get(name) != version]
    assert not wrong, "constraints.txt differs from what is installed:\n" + "\n".join(sorted(wrong))


# ---- every file ----


def leaks(text: str) -> list[str]:
    """Return the lines that name a registry or a folder of one machine."""
    lines = enumerate(text.splitlines(), start=1)
    return [f"{number}: {line.strip()[:120]}" for number, line in lines if LEAK.search(line)]


def other_addresses(text: str) -> list[str]:
    """Return what looks like this project's repository (by owner or name) but is another address."""
    familiar = {part.lower() for part in (*OWN, PROJECT["name"])}
    mentions = re.findall(r"(?:github\.com[/:]|/github/|/gh/)([\w.-]+)/([\w-]+)", text)
    return ["/".join(m) for m in mentions if familiar & {m[0].lower(), m[1].lower()} and list(m) != OWN]


@pytest.mark.parametrize("faults_of", [leaks, other_addresses])
def test_no_file_has_leaks_or_other_addresses(tracked_texts, faults_of):
    assert {name: faults for name, text in tracked_texts.items() if (faults := faults_of(text))} == {}


def test_leaks_are_told_from_addresses_and_relative_paths():
    texts = [f"https://{host}/simple" for host in HOSTS] + [f"cd /{folder}/x" for folder in FOLDERS]
    texts += [f"file:///{FOLDERS[0]}/x", f"https://a.org/{FOLDERS[1]}/", f"see ../{FOLDERS[2]}/notes.md"]
    assert [text for text in texts if not leaks(text)] == texts[-2:]


def test_other_addresses_are_found():
    owner, name = OWN
    text = f"{REPOSITORY}.git, {REPOSITORY}/blob/main, https://github.com/pytorch/examples"
    assert other_addresses(text) == []
    text = f"https://github.com/someone/{name} and https://example.org/v2/gh/{owner}/other/main"
    assert other_addresses(text) == [f"someone/{name}", f"{owner}/other"]


def test_book_citation_and_package_have_the_address_and_the_version_of_pyproject():
    citation = load("CITATION.cff")
    assert load("_config.yml")["repository"]["url"] == citation["repository-code"] == REPOSITORY
    assert citation["version"] == vaecourse.__version__ == PROJECT["version"]


def test_readme_is_short_and_names_the_two_commands_and_licence_is_there():
    readme = (ROOT / "README.md").read_text("utf-8")
    assert len(readme.splitlines()) <= 150
    assert [command for command in ("make book", "make test") if command not in readme] == []
    assert "MIT" in (ROOT / "LICENSE").read_text("utf-8")
