"""Packaging only: imports no dependency and compiles nothing, so the wheel is pure Python and builds in seconds."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent
# Read, not imported: importing the package here would need its dependencies at build time.
VERSION = re.search(r'^__version__ = "([^"]+)"', (ROOT / "adapt_kernels/version.py").read_text("utf-8"), re.M).group(1)

RECIPES = [
    "typer>=0.12",
    "rich>=13.8",
    "matplotlib>=3.8",
    "gguf>=0.10",
    "accelerate>=1.0",
    "PyYAML>=6.0",
    "pydantic>=2.0",
]
# The second and third task families: reasoning-gym draws and scores problems, math-verify compares formulae.
TASKS = ["reasoning-gym>=0.1.25", "math-verify>=0.9"]
# As adapt_kernels.trl.KNOWN_VERSIONS: the trainer overrides parts of TRL that change without notice.
TRL = ["trl==1.16.0"]
# Adapters for language models: their training, and putting the shipped ones on SmolLM2.
LORA = ["peft>=0.18"]
# The page of `adapt dial`, on top of the command line.
DIAL = [*RECIPES, "gradio>=6.20,<7"]
RELEASE = ["build>=1.2", "pdoc>=15.0"]
TEST = [
    "pytest>=8.2",
    "pytest-benchmark>=5.0",
    "pytest-xdist>=3.6",
    "hypothesis>=6.100",
    "scipy>=1.11",
    "ruff>=0.9",
    "mypy>=2.0",
    "packaging>=23.0",
    "gradio>=6.20,<7",
    "playwright>=1.50",  # the page in a browser, where there is a Chromium
    "setuptools>=77",  # the packaging test builds wheels without a network
]

setup(
    name="adapt_kernels",
    version=VERSION,
    description="Turn a reasoning model's thinking up or down with a bias on one token",
    long_description=(ROOT / "README.md").read_text("utf-8"),
    long_description_content_type="text/markdown",
    license_expression="Apache-2.0",
    license_files=["LICENSE"],
    keywords=["reasoning", "sampling", "transformers", "triton", "llm"],
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
    packages=[
        *find_packages(include=["adapt_kernels", "adapt_kernels.*"]),
        *find_packages("python", include=["adapt_recipes", "adapt_recipes.*"]),
        "adapt_kernels.csrc",  # C++ sources, compiled on first use
    ],
    package_dir={"adapt_recipes": "python/adapt_recipes", "adapt_kernels.csrc": "csrc"},
    package_data={
        "": ["examples.md"],  # of the public names; the API reference includes them
        "adapt_kernels": ["py.typed"],
        "adapt_kernels.csrc": ["**/*.cpp", "**/*.h", "**/*.cu", "**/*.cuh"],
        "adapt_recipes": ["py.typed", "checkpoints/*/*", "adapters/*/*", "configs/*.yaml"],
    },
    python_requires=">=3.11",
    install_requires=[
        "torch>=2.11",
        "transformers>=5.17",
        "numpy>=2.0",
        "safetensors>=0.8",
        "pybind11>=2.13",
        "ninja>=1.11",
        # Only these platforms have a wheel; everywhere else the other backends serve.
        'triton>=3.6; sys_platform == "linux" and (platform_machine == "x86_64" or platform_machine == "aarch64")',
    ],
    extras_require={
        "recipes": RECIPES,
        "dial": DIAL,
        "tasks": TASKS,
        "trl": TRL,
        "lora": LORA,
        "release": RELEASE,
        "test": [*TEST, *RECIPES, *TASKS, *TRL, *LORA],
    },
    entry_points={
        "console_scripts": ["adapt = adapt_recipes.cli:main"],
        "vllm.logits_processors": ["adapt_kernels = adapt_kernels.vllm:ModeProcessor"],
        "vllm.general_plugins": ["adapt_kernels = adapt_kernels.vllm:guard"],
    },
)
