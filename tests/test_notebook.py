"""The notebook runs from its first cell to its last, at a small size, in a folder of its own."""

import os
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1]
SMALL = """
for model in (config.world.target, config.world.sampler):
    model.update({"width": 32, "layers": 2, "mlp_width": 64, "batch": 8, "steps": 2})
config.world.target.tuning_steps = 2
config.data.update({"adversarial_rows": 4, "utility_rows": 8})
config.sampler.update({"samples": 4, "keep": 2, "batch_size": 8, "likelihood_samples": 2})
config.utility.update({"samples": 1, "answers": 8, "keep": "all"})
config.training.update({"steps": 6, "save_every": 6, "methods": ("undefended", "dat")})
config.methods.cat.perturbation.steps = config.attacks.embedding.perturbation.steps = 1
config.evaluation.update({"forms": ("past",), "behaviors": 4, "utility_prompts": 8, "batch_size": 8})
"""


@pytest.mark.slow
def test_the_notebook_runs(tmp_path, monkeypatch):
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    notebook = nbformat.read(ROOT / "examples" / "dat_in_a_notebook.ipynb", as_version=4)
    first = next(index for index, cell in enumerate(notebook.cells) if cell.cell_type == "code")
    notebook.cells.insert(first + 1, nbformat.v4.new_code_cell(SMALL))
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    printed = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", ()))
    expected = (
        "harmful response:",
        "nats per token",
        "norm, in mean embedding norms",
        "loss/away",
        "behaviors of the undefended model",
        "over_refusal",
    )
    for words in expected:
        assert words in printed
    assert (tmp_path / "runs" / "notebook" / "report.html").exists()
