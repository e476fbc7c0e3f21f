"""Lays the ops that are plain PyTorch and Triton out as a repository of the Hugging Face kernels hub.

    hub_kernel.py FOLDER
    FOLDER/build.toml, LICENSE             those of this repository
    FOLDER/torch-ext/adapt_kernels/        the sources, with relative imports only: what kernel-builder starts from
    FOLDER/build/torch-cpu/, torch-cuda/   the same and metadata.json: what `kernels.get_kernel` loads

An op takes along every file of the package that it imports, and its backends; C++ and CUDA stay behind, and so do the
ops whose kernels are written in them. Nothing is compiled and nothing of the package is run.
"""

import ast
import base64
import hashlib
import json
import re
import shutil
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "adapt_kernels"
PUBLIC = {
    "ops.branch": ("Branches", "branch"),
    "ops.kv_scores": ("kv_scores",),
    "ops.mode_sample": ("FLAG_EMPTY", "FLAG_INF", "FLAG_NAN", "ModeSample", "mode_sample"),
    "ops.segment_attention": ("RowGroups", "Segment", "group_rows", "segment_attention"),
    "modes": ("Mode", "Modes"),
    "philox": ("row_seed",),
    "dispatch": ("backends",),
}
# Imported by name where a backend is chosen, and the packages on the way.
BY_NAME = ("ops", "triton_driver", *(f"{op}.{file}" for op in PUBLIC for file in ("reference", "triton_kernel")))
ALLOWED = {*sys.stdlib_module_names, "torch", "triton"}
_ABSOLUTE = re.compile(r"^( *)from adapt_kernels(?:\.([\w.]+))? import ", re.M)


def source_of(name: str) -> Path:
    """The file of a module, named from `adapt_kernels` on."""
    path = PACKAGE.joinpath(*name.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def imported(text: str) -> set[str]:
    """Modules, or names in them, that a source of the package imports from it."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "adapt_kernels":
            module = node.module.partition(".")[2]
            found |= {module, *(f"{module}.{alias.name}".lstrip(".") for alias in node.names)} - {""}
    return found


def needed() -> dict[Path, str]:
    """Every file the public names need, by its place in the package, with its text."""
    files, waiting, seen = {}, [*PUBLIC, *BY_NAME], set()
    while waiting:
        name = waiting.pop()
        path = source_of(name)
        if name in seen or not path.is_file():
            continue
        seen.add(name)
        text = path.read_text("utf-8")
        files[path.relative_to(PACKAGE)] = text
        waiting += imported(text)
    return files


def relative(place: Path, text: str) -> str:
    """The text with imports that hold under any package name. Raises ValueError for one that the hub does not allow."""
    up = "." * len(place.parts)
    text = _ABSOLUTE.sub(lambda found: f"{found[1]}from {up}{found[2] or ''} import ", text)
    for node in ast.walk(ast.parse(text)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module]
        for name in names:
            if name.partition(".")[0] not in ALLOWED:
                raise ValueError(f"adapt_kernels/{place}:{node.lineno} imports {name}; the hub allows torch and triton")
    return text


def front() -> str:
    """The kernel's own `__init__`."""
    lines = [f"from .{module} import {', '.join(names)}" for module, names in sorted(PUBLIC.items())]
    names = sorted(name for names in PUBLIC.values() for name in names)
    return '"""The ops of adapt_kernels that are plain PyTorch and Triton."""\n\n' + "\n".join(
        [*lines, "", f"__all__ = {json.dumps(names)}", ""]
    )


def write(folder: Path, files: dict[Path, str]) -> None:
    for place, text in files.items():
        path = folder / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")


def metadata(general: dict, backend: str, files: dict[Path, str]) -> str:
    """metadata.json: the id names package and torch ops of this very content, whatever else is loaded."""
    hashes = {place.as_posix(): hashlib.sha256(text.encode()) for place, text in sorted(files.items())}
    whole = hashlib.sha256(repr([(name, h.hexdigest()) for name, h in hashes.items()]).encode()).hexdigest()
    told = {
        "name": general["name"],
        "id": f"_{general['name'].replace('-', '_')}_{backend}_{whole[:8]}",
        "version": general["version"],
        "license": general["license"],
        "python-depends": [],
        "backend": {"type": backend},
        "digest": {
            "algorithm": "sha256",
            "files": {name: base64.b64encode(h.digest()).decode() for name, h in hashes.items()},
        },
    }
    return json.dumps(told, indent=2) + "\n"


def lay_out(folder: Path) -> None:
    """Write the repository; what was in `folder` is replaced."""
    general = tomllib.loads((ROOT / "build.toml").read_text("utf-8"))["general"]
    files = {place: relative(place, text) for place, text in needed().items()}
    files[Path("__init__.py")] = front()
    shutil.rmtree(folder, ignore_errors=True)
    write(folder / "torch-ext" / general["name"].replace("-", "_"), files)
    for backend in general["backends"]:
        variant = folder / "build" / f"torch-{backend}"
        write(variant, {**files, Path("metadata.json"): metadata(general, backend, files)})
    for name in ("build.toml", "LICENSE"):
        shutil.copy2(ROOT / name, folder)
    print(f"{folder}: {len(files)} files for each of {', '.join(general['backends'])}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: hub_kernel.py FOLDER")
    lay_out(Path(sys.argv[1]))
