"""Installs `dho_plugin`, with the top-level folder `trainers/` as its subpackage `dho_plugin.trainers`.

A host has a top-level `trainers` of its own; ours must never shadow it.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "dho_plugin" / "__init__.py").read_text())[1]

setup(
    name="dho-plugin",
    version=VERSION,
    description="Dual-Head Optimization for prompt-tuning codebases and compact students",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.10",
    packages=[*find_packages(include=["dho_plugin", "dho_plugin.*"]), "dho_plugin.trainers"],
    package_dir={"dho_plugin.trainers": "trainers"},
    package_data={"dho_plugin": ["**/*.json", "**/*.txt", "**/*.safetensors", "**/*.j2"]},
    install_requires=[
        "torch>=2.11",
        "torchvision",
        "open_clip_torch>=3.0",
        "timm>=1.0.17",
        "accelerate>=1.0",
        "yacs",
        "pyyaml",
        "numpy",
        "pillow",
        "safetensors",
        "matplotlib",
        "jinja2>=3.1",
        "scikit-learn",
        "scipy",
        "tabulate",
        "tensorboard",
        "tqdm",
    ],
    extras_require={
        "export": ["onnx", "onnxscript", "onnxruntime"],
        "test": ["pytest", "pytest-xdist>=3.7", "hypothesis", "ruff==0.17.*"],
    },
    entry_points={
        "console_scripts": [
            "dho-train=dho_plugin.train:main",
            "dho-host=dho_plugin.hosts.launch:main",
            "dho-report=dho_plugin.report:main",
            "dho-analyze=dho_plugin.analyze:main",
        ],
    },
)
