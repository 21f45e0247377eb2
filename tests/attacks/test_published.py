"""The table of published numbers in the documentation, the preset and the settings say the same."""

import json
import pathlib
import re
import runpy

from dat_jax import config as config_lib
from dat_jax import presets
from dat_jax.settings import dotted

ROOT = pathlib.Path(__file__).parents[2]


def as_text(value):
    return f"`{value}`" if isinstance(value, str) else json.dumps(value)


def test_the_table_of_published_numbers_is_the_settings():
    text = (ROOT / "docs" / "own_model_and_data.md").read_text()
    rows = re.findall(r"^\| `(\S+)` \| (\S[^|]*) \| (\S[^|]*) \| \S[^|]* \|$", text.split("**Published numbers.**")[1], re.MULTILINE)
    table = {key: (default, published) for key, default, published in rows}
    before, after = (dict(dotted(c)) for c in (config_lib.defaults(), presets.published_attacks(config_lib.defaults())))
    assert len(table) == 15
    for key, (default, published) in table.items():
        assert (default, published) == (as_text(before[f"attacks.{key}"]), as_text(after[f"attacks.{key}"])), key
    changed = {key.removeprefix("attacks.") for key in before if before[key] != after[key]}
    assert changed == {key for key, (default, published) in table.items() if default != published} == set(presets.PUBLISHED_ATTACKS)


def test_the_config_has_the_published_numbers():
    made = runpy.run_path(str(ROOT / "configs" / "published.py"))["get_config"]()
    made.target.model, made.data.eval_behaviors = "x", "x.csv"
    config_lib.validate(made)
    found = dict(dotted(made))
    assert {key: found[f"attacks.{key}"] for key in presets.PUBLISHED_ATTACKS} == presets.PUBLISHED_ATTACKS
