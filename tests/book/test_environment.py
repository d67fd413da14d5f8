"""What the repository says about itself agrees: environment, pinned versions, address, version, README."""

import importlib.metadata
import re
import shutil
import subprocess
import tomllib

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

import vaecourse
from tests.book.notebook_rules import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
ADDRESS = PROJECT["urls"]["Repository"]

# Built from parts, so that this file is not among its own findings.
HOSTS = ["pypi." + "org", "files." + "pythonhosted", "registry." + "npmjs"]
FOLDERS = ["root", "home", "work"]
LEAK = re.compile("|".join([*map(re.escape, HOSTS), rf"(?<![\w.~-])/(?:{'|'.join(FOLDERS)})/"]))
# Only torch's CUDA build asks for these, and it pins them itself.
CUDA_PARTS = re.compile(r"(nvidia|cuda|triton)\b")


def load(name: str) -> dict:
    """Return the content of a YAML file at the repository's root."""
    return yaml.safe_load((ROOT / name).read_text("utf-8"))


def tracked_texts() -> dict[str, str]:
    """Return name and content of the text files that git holds or would add."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("needs git and a checkout to know which files belong to the project")
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    contents = {
        name: (ROOT / name).read_bytes() for name in set(listed.split("\0")) if (ROOT / name).is_file()
    }
    return {name: data.decode("utf-8") for name, data in contents.items() if b"\0" not in data}


def requirement_name(text: str) -> str:
    """Return the canonical name of the distribution that a requirement is about."""
    return canonicalize_name(Requirement(text).name)


# ---- environment.yml and pyproject.toml ----


def conda_and_pip() -> tuple[list[str], list[str]]:
    """Return the conda and the pip entries of environment.yml."""
    entries = load("environment.yml")["dependencies"]
    pip = [line for entry in entries if isinstance(entry, dict) for line in entry["pip"]]
    return [entry for entry in entries if isinstance(entry, str)], pip


def test_conda_python_satisfies_the_package():
    python = [entry for entry in conda_and_pip()[0] if re.match(r"python\b", entry)]
    assert len(python) == 1
    version = re.fullmatch(r"python\s*=\s*(\d+\.\d+)", python[0])
    assert version, f"write python=3.x, not {python[0]}"
    assert SpecifierSet(PROJECT["requires-python"]).contains(version[1])


def test_conda_installs_the_package_with_pinned_versions():
    pip = conda_and_pip()[1]
    assert pip[0] == "-c constraints.txt"
    editable = [re.fullmatch(r"-e \.\[([\w,-]+)\]", entry) for entry in pip[1:]]
    assert len(editable) == 1
    assert editable[0], f"write -e .[extra], not {pip[1]}"
    assert set(editable[0][1].split(",")) <= set(EXTRAS)


def test_no_dependency_is_stated_twice():
    conda, pip = conda_and_pip()
    stated = [re.match(r"[\w.-]+", entry)[0] for entry in conda]
    stated += [entry for entry in pip if not entry.startswith("-")]
    stated += [text for group in (PROJECT["dependencies"], *EXTRAS.values()) for text in group]
    names = [requirement_name(text) for text in stated]
    assert sorted({name for name in names if names.count(name) > 1} - {PROJECT["name"]}) == []


# ---- constraints.txt ----


def constraint_lines() -> list[str]:
    """Return the lines of constraints.txt that are neither empty nor a comment."""
    lines = (line.strip() for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def needed(extra: str) -> set[str]:
    """Return the distributions that the package with this extra needs, the indirect ones too."""
    found, seen = set(), set()
    texts = [*PROJECT["dependencies"], *EXTRAS[extra]]
    waiting = [(Requirement(text), "") for text in texts]
    while waiting:
        requirement, asked_by = waiting.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": asked_by}):
            continue
        name = canonicalize_name(requirement.name)
        if CUDA_PARTS.match(name):
            continue
        for wanted in {"", *requirement.extras}:
            if (name, wanted) in seen:
                continue
            seen.add((name, wanted))
            if name == PROJECT["name"]:
                waiting += [(Requirement(text), "") for text in EXTRAS.get(wanted, [])]
                continue
            found.add(name)
            below = importlib.metadata.requires(name) or []
            waiting += [(Requirement(text), wanted) for text in below]
    return found


def test_constraints_are_exact_pins():
    pin = re.compile(r"[A-Za-z0-9][\w.-]*==[0-9][\w.!]*")
    assert [line for line in constraint_lines() if not pin.fullmatch(line)] == []


def test_constraints_are_sorted_and_unique():
    names = [line.partition("==")[0].lower() for line in constraint_lines()]
    assert names == sorted(names)  # the order of `pip freeze`
    assert len({canonicalize_name(name) for name in names}) == len(names)


def test_constraints_pin_everything_that_is_installed_for_the_tests():
    pinned = {
        canonicalize_name(name): version
        for name, _, version in (s.partition("==") for s in constraint_lines())
    }
    installed = {name: Version(importlib.metadata.version(name)).public for name in needed("test")}
    wrong = [f"{name}=={version}" for name, version in installed.items() if pinned.get(name) != version]
    assert not wrong, "constraints.txt differs from what is installed:\n" + "\n".join(sorted(wrong))


# ---- every file ----


def test_no_file_names_a_registry_or_a_folder_of_one_machine():
    found = [
        f"{name}:{number}: {line.strip()[:120]}"
        for name, text in tracked_texts().items()
        for number, line in enumerate(text.splitlines(), start=1)
        if LEAK.search(line)
    ]
    assert found == []


@pytest.mark.parametrize(
    "text",
    [
        *(f"https://{host}/simple" for host in HOSTS),
        *(f"cd /{folder}/x" for folder in FOLDERS),
        f"file:///{FOLDERS[0]}/x",
    ],
)
def test_leaks_are_found(text):
    assert LEAK.search(text)


@pytest.mark.parametrize("text", [f"https://example.org/{FOLDERS[1]}/", f"see ../{FOLDERS[2]}/notes.md"])
def test_addresses_and_relative_paths_are_no_leaks(text):
    assert not LEAK.search(text)


def other_addresses(text: str) -> list[str]:
    """Return what looks like this project's repository (by owner or name) but is another address."""
    own = ADDRESS.rstrip("/").split("/")[-2:]
    mentions = re.findall(r"(?:github\.com[/:]|/github/|/gh/)([\w.-]+)/([\w-]+)", text)
    familiar = {part.lower() for part in (*own, PROJECT["name"])}
    return ["/".join(m) for m in mentions if familiar & {m[0].lower(), m[1].lower()} and list(m) != own]


def test_every_mention_of_the_repository_is_the_one_of_pyproject():
    found = {name: other_addresses(text) for name, text in tracked_texts().items()}
    assert {name: others for name, others in found.items() if others} == {}


def test_other_addresses_are_found():
    owner, name = ADDRESS.split("/")[-2:]
    text = f"{ADDRESS}.git, {ADDRESS}/blob/main, https://github.com/pytorch/examples"
    assert other_addresses(text) == []
    text = f"https://github.com/someone/{name} and https://example.org/v2/gh/{owner}/other/main"
    assert other_addresses(text) == [f"someone/{name}", f"{owner}/other"]


def test_book_links_to_the_repository():
    assert load("_config.yml")["repository"]["url"] == ADDRESS


def test_citation_names_the_repository_and_the_version():
    citation = load("CITATION.cff")
    assert (citation["repository-code"], citation["version"]) == (ADDRESS, PROJECT["version"])


def test_package_has_the_version_of_pyproject():
    assert vaecourse.__version__ == PROJECT["version"]


def test_readme_is_short_and_names_the_two_commands():
    readme = (ROOT / "README.md").read_text("utf-8")
    assert len(readme.splitlines()) <= 150
    assert [command for command in ("make book", "make test") if command not in readme] == []


def test_licence_is_there():
    assert "MIT" in (ROOT / "LICENSE").read_text("utf-8")
