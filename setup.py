"""Packaging of megatron_kd. Tool settings (ruff, mypy, pytest) are in pyproject.toml, pins in constraints.txt."""

from pathlib import Path

from setuptools import find_packages, setup

REQUIRES = [
    "torch>=2.6",
    "megatron-core>=0.16.1,<0.17",
    "nvidia-modelopt>=0.43.0,<0.44",
    "transformers>=4.53,<5",
    # nvidia-modelopt and megatron-core import these without declaring them.
    "requests",
    "huggingface_hub",
    "einops",
    "psutil",
    "pyyaml",
    "pydantic>=2.5",
    "hydra-core>=1.3,<1.4",
    "omegaconf>=2.3,<2.4",
    "rich",
    "tensorboard",
    "tokenizers",
    "safetensors",
    "sentencepiece",
    "protobuf",
    "datasets",
    "pyarrow",
    "numpy",
]
EXTRAS = {
    "te": ["transformer-engine[pytorch]"],
    "ray": ["ray[default]"],
    "peft": ["peft"],
    "eval": ["lm_eval", "accelerate"],
    "plot": ["matplotlib"],
    "dev": [
        "matplotlib",
        "lm_eval",
        "accelerate",
        "pytest",
        "ruff",
        "mypy",
        "import-linter",
        "types-PyYAML",
        "types-requests",
        "pre-commit",
    ],
}

# What `megatron-kd ls`, `cp` and `validate` find of an installation without its sources: share/megatron_kd/recipes.
HERE = Path(__file__).parent
SHARED = [path.relative_to(HERE) for folder in ("recipes", "conf") for path in sorted((HERE / folder).rglob("*.*"))]
DATA_FILES = [
    (f"share/megatron_kd/{folder}", [str(path) for path in SHARED if path.parent == folder and path.suffix != ".pyc"])
    for folder in sorted({path.parent for path in SHARED if path.parent.name != "__pycache__"})
]

setup(
    name="megatron_kd",
    version="0.1.0",
    description="Tensor- and pipeline-parallel knowledge distillation of large language models on Megatron-core",
    long_description=(Path(__file__).parent / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10,<3.14",  # nvidia-modelopt has the same upper bound
    packages=find_packages(include=["megatron_kd", "megatron_kd.*"]),
    data_files=DATA_FILES,
    install_requires=REQUIRES,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["megatron-kd=megatron_kd.commands.cli:main"]},
)
