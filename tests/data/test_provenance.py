"""What a file was made with: written at first, compared ever after, and said in one way where it differs."""

import json

import pytest

from dat_jax.data import manifest, provenance

WANTED = {"model": "m", "lora": {"rank": 4, "alpha": 8.0}, "sizes": (1, 2)}


def test_the_first_key_that_differs_is_named_with_both_values():
    found = json.loads(json.dumps(WANTED))
    provenance.compare("run", found, WANTED, "use another folder")
    changed = WANTED | {"lora": {"rank": 8, "alpha": 8.0}}
    with pytest.raises(ValueError, match=r"^run was made with config\.lora\.rank = 4, now it is 8; use another folder$"):
        provenance.compare("run", found, changed, "use another folder", name="config.")
    with pytest.raises(ValueError, match=r"^run was made with seed = something that is not recorded, now it is 3; mend it$"):
        provenance.compare("run", found, WANTED | {"seed": 3}, "mend it")
    provenance.compare("run", found, changed | {"seed": 3}, "mend it", free=("lora.", "seed"))
    provenance.compare("run", found | {"more": 1}, WANTED, "what is there and not asked for is no matter")


def test_a_claim_is_written_once_and_compared_afterwards(tmp_path):
    path = tmp_path / "a" / "about.json"
    assert provenance.claim(path, WANTED, "use another folder") is False
    assert manifest.read(path) == {"model": "m", "lora": {"rank": 4, "alpha": 8.0}, "sizes": [1, 2]}
    stamp = path.stat().st_mtime_ns
    assert provenance.claim(path, WANTED, "use another folder") is True
    with pytest.raises(ValueError, match=r"about\.json was made with model = 'm', now it is 'n'; use another folder"):
        provenance.claim(path, WANTED | {"model": "n"}, "use another folder")
    assert path.stat().st_mtime_ns == stamp
