"""README's commands are what CI runs, and what the documents name and link exists."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text("utf-8")
MAKEFILE = (ROOT / "Makefile").read_text("utf-8")
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "benchmarks/README.md", "csrc/README.md", "python/README.md")


def section(title):
    """The text of one `## title` section."""
    match = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", README, re.M | re.S)
    assert match, f"README has no section '## {title}'"
    return match[1]


def fenced(text):
    return re.findall(r"^```[^\n]*\n(.*?)^```$", text, re.M | re.S)


def test_two_commands_come_first_in_their_section():
    run_it, test_it = fenced(section("Two commands"))[:2]
    assert run_it.splitlines() == ["python -m pip install -c constraints-cpu.txt '.[recipes]'", "adapt demo"]
    assert test_it.splitlines() == ["python -m pip install -c constraints-cpu.txt -e '.[test]'", "make test"]


@pytest.mark.parametrize("index", [0, 1])
def test_commands_are_valid_shell(index):
    subprocess.run(["bash", "-n"], input=fenced(section("Two commands"))[index], text=True, check=True)


def test_ci_runs_the_second_command(tmp_path):
    done = subprocess.run(
        [str(ROOT / ".ci/run"), "--print"], cwd=tmp_path, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == fenced(section("Two commands"))[1]


def test_ci_fails_without_the_second_command(tmp_path):
    (tmp_path / ".ci").mkdir()
    script = tmp_path / ".ci/run"
    script.write_bytes((ROOT / ".ci/run").read_bytes())
    script.chmod(0o755)
    (tmp_path / "README.md").write_text("## Two commands\n\n```bash\nfirst\n```\n\n## Next\n\n```bash\nother\n```\n")
    done = subprocess.run([str(script), "--print"], capture_output=True, text=True)
    assert done.returncode == 1
    assert "no second fenced block" in done.stderr


def test_readme_is_short_and_opens_with_the_picture():
    assert len(README.splitlines()) < 200
    assert README.index("![") < README.index("## ") and section("Quick start")


@pytest.mark.parametrize("document", DOCUMENTS)
def test_named_make_targets_exist(document):
    text = (ROOT / document).read_text("utf-8")
    code = "\n".join([*fenced(text), *re.findall(r"`([^`\n]+)`", text)])
    named = set(re.findall(r"(?:^|\s)make ([a-z][a-z-]*)", code, re.M))
    assert "test" in named or document not in ("README.md", "CONTRIBUTING.md")
    assert named <= set(re.findall(r"^([a-z-]+):", MAKEFILE, re.M))


def test_make_help_lists_every_target():
    done = subprocess.run(["make", "--no-print-directory"], cwd=ROOT, capture_output=True, text=True, check=True)
    phony = re.search(r"^\.PHONY: (.*)$", MAKEFILE, re.M)[1].split()
    assert [line.split()[1] for line in done.stdout.splitlines()] == phony


def test_folder_table_matches_the_tree():
    rows = re.findall(r"^\| `([^`]+)/` \|", section("Folders"), re.M)
    assert {"adapt_kernels", "python", "tests"} <= set(rows)
    assert all((ROOT / row).is_dir() for row in rows), rows
    sentence = (
        "`adapt_kernels/` is the engine you install into your own code; `python/` holds the programs we drive with it, "
        "and they touch the engine only through its public API."
    )
    assert sentence in section("Folders").replace("\n", " ")


def test_the_tour_names_every_folder_and_no_other():
    """An op's folder goes with `ops/`, a shipped model's with the others', and tests mirror the rooms inside a room."""
    document = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    tour = re.search(r"^## Rooms\n(.*?)(?=^## )", document, re.M | re.S)[1]
    named = {name for cell in re.findall(r"^\| (`.*?) \|", tour, re.M) for name in re.findall("`(.*?)/`", cell)}
    kept = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if kept.returncode != 0:
        pytest.skip("not a git checkout: folders that are not the project's cannot be told apart")
    folders = {Path(line).parent.as_posix() for line in kept.stdout.splitlines()} - {".", "python"}
    inner = "adapt_kernels/ops/.|python/adapt_recipes/(checkpoints|adapters)/.|tests/[^/]+/."
    folders = {name for name in folders if not re.match(inner, name)}
    assert named - {"python/adapt_recipes/checkpoints", "python/adapt_recipes/adapters"} == folders


def headings(path):
    """The anchors of a document, as GitHub names them."""
    prose = re.sub(r"^```.*?^```$", "", path.read_text("utf-8"), flags=re.M | re.S)
    for title in re.findall(r"^#+ (.+)$", prose, re.M):
        yield re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_point_at_files_and_headings(document):
    path = ROOT / document
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", path.read_text("utf-8")):
        name, _, anchor = target.partition("#")
        linked = (path.parent / name).resolve() if name else path
        assert linked.exists(), target
        assert not anchor or anchor in headings(linked), target


def test_quick_start_is_short_and_uses_public_names():
    import adapt_kernels as ak

    code = fenced(section("Quick start"))[0]
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    tree = ast.parse(code)
    used = {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute) and getattr(n.value, "id", "") == "ak"}
    assert used and used <= set(ak.__all__)


def test_the_preset_that_contributing_shows_is_one():
    document = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    own = next(block for block in fenced(document) if block.startswith("def calm"))
    import adapt_kernels as ak
    from adapt_kernels.program import presets

    names = {**vars(presets), "thought": lambda tokenizer, think: think or presets.thought(tokenizer)}
    exec(own, names)
    rules = names["calm"](None, words=(), think=ak.Span(1, 2))["rules"]
    assert rules[0]["by"] == -2.0 and rules[0]["when"] == {"in": "think"}
