"""Every example of the documents runs and prints what it shows, and every public name has one."""

import ast
import copy
import io
import re
from contextlib import redirect_stdout
from importlib import import_module
from pathlib import Path

import pytest

import adapt_kernels as ak

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    "adapt_kernels": ROOT / "adapt_kernels/examples.md",
    "adapt_kernels.schemes": ROOT / "adapt_kernels/schemes/examples.md",
    "adapt_kernels.trl": ROOT / "adapt_kernels/trl/examples.md",
    "adapt_recipes": ROOT / "python/adapt_recipes/examples.md",
}


def python_blocks(path):
    """(first line, code) of every Python block of a document."""
    text = path.read_text("utf-8")
    for block in re.finditer(r"^```python\n(.*?)^```$", text, re.M | re.S):
        yield text[: block.start(1)].count("\n"), block[1]


def run(path, names):
    """Runs a document's blocks in order in `names`; each must print what it shows behind `# ->`."""
    for line, code in python_blocks(path):
        printed = io.StringIO()
        with redirect_stdout(printed):
            exec(compile("\n" * line + code, path, "exec"), names)
        shown = re.findall(r"^ *# -> (.*)$", code, re.M)
        assert not shown or printed.getvalue().splitlines() == shown, f"{path.name}, block at line {line + 1}"
    return names


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """What the examples of adapt_kernels have made at their end."""
    return run(PAGES["adapt_kernels"], {})


def used_names(path, module):
    """Names of `module` that a document's code reads, however it imports the module."""
    trees = [ast.parse(code) for _, code in python_blocks(path)]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    called = {module, module.rpartition(".")[2]}
    imports = [node for node in nodes if isinstance(node, ast.Import)]
    called |= {name.asname for node in imports for name in node.names if name.name == module and name.asname}
    found = {n.attr for n in nodes if isinstance(n, ast.Attribute) and getattr(n.value, "id", "") in called}
    taken = {a.name for n in nodes if isinstance(n, ast.ImportFrom) and n.module == module for a in n.names}
    return found | taken & {node.id for node in nodes if isinstance(node, ast.Name)}


def public_names(module):
    """Of `__all__`; read from the source where importing the module needs an extra."""
    if module != "adapt_kernels.trl":
        return import_module(module).__all__
    tree = ast.parse((PAGES[module].parent / "__init__.py").read_text("utf-8"))
    return ast.literal_eval(next(node.value for node in tree.body if ast.unparse(node).startswith("__all__")))


@pytest.mark.parametrize("module", PAGES)
def test_every_public_name_has_an_example(module):
    assert sorted(set(public_names(module)) - used_names(PAGES[module], module)) == []


def test_examples_of_the_engine_print_what_they_show(tiny):
    assert tiny["losses"]


@pytest.mark.parametrize("module", ["adapt_kernels.schemes", "adapt_recipes"])
def test_examples_print_what_they_show(module):
    run(PAGES[module], {})


def test_examples_of_the_trainer_print_what_they_show(tiny):
    pytest.importorskip("trl", reason="the extra trl is not installed")
    ak.unpatch(tiny["model"])
    run(PAGES["adapt_kernels.trl"], {name: tiny[name] for name in ("model", "tokenizer")})


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory):
    """The same model as a folder, as README wants one: its budget closes a thought at a line's end."""
    folder = tmp_path_factory.mktemp("model")
    ak.unpatch(tiny["model"])
    model, tokenizer = copy.deepcopy((tiny["model"], tiny["tokenizer"]))
    tokenizer.add_tokens("\n")
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_readme_runs_from_top_to_bottom(folder, monkeypatch, tmp_path):
    """Its trainer too, on a data set of two prompts and for one step."""
    pytest.importorskip("trl", reason="the extra trl is not installed")
    from datasets import Dataset

    from adapt_kernels import trl as ak_trl

    monkeypatch.chdir(tmp_path)
    short = {"max_steps": 1, "per_device_train_batch_size": 8, "max_completion_length": 4, "use_cpu": True}
    config = ak_trl.ADaPTConfig
    monkeypatch.setattr(ak_trl, "ADaPTConfig", lambda *args, **kwargs: config(*args, report_to=[], **kwargs, **short))
    dataset = Dataset.from_dict({"prompt": ["what is 1", "what is 2"]})

    def correct(completions, mode, **columns):
        return [float("3" in text) for text in completions]

    made = run(ROOT / "README.md", {"path": str(folder), "dataset": dataset, "correct": correct})
    assert made["keep"].budget + 1 >= made["out"].stats.kv_held_peak
    assert made["trainer"].state.global_step == 1
