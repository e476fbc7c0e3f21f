"""What every supported Triton compiles, told from the source: CI has one of them, `make test-versions` all."""

import ast
from pathlib import Path

import pytest

FILES = sorted((Path(__file__).parents[2] / "adapt_kernels/ops").rglob("triton_*.py"))


def kernels(path):
    """The functions that Triton compiles."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.FunctionDef) and any("triton.jit" in ast.unparse(each) for each in node.decorator_list):
            yield node


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_no_kernel_returns_none_within_a_tuple(path):
    """Triton 3.6 cannot: "cannot convert None of type <class 'NoneType'> to tensor"."""
    for kernel in kernels(path):
        for node in ast.walk(kernel):
            if isinstance(node, ast.Return) and node.value is not None:
                parts = [part for part in ast.walk(node.value) if isinstance(part, ast.Constant) and part.value is None]
                assert not parts or isinstance(node.value, ast.Constant), f"{kernel.name}, line {node.lineno}"


def test_there_are_kernels():
    assert sum(1 for path in FILES for _ in kernels(path)) > 50
