"""Settings: dataclasses as groups of the configuration, read back and checked."""

import dataclasses

import pytest
from ml_collections import ConfigDict

from dat_jax.settings import NoSettings, as_config, check, read, validate


@dataclasses.dataclass(frozen=True)
class Inner:
    """Settings inside settings."""

    steps: int = 3
    forms: tuple[str, ...] = ("a", "b")

    def validate(self, key: str) -> None:
        """Raises ValueError."""
        check(self, key, {"steps": (self.steps > 0, "an integer > 0"), "forms": (bool(self.forms), "one or more")})


@dataclasses.dataclass(frozen=True)
class Outer:
    """Settings."""

    name: str = "x"
    inner: Inner = dataclasses.field(default_factory=Inner)
    other: Inner = dataclasses.field(default_factory=lambda: Inner(steps=5))


def test_a_group_has_the_fields_as_keys_and_is_read_back():
    group = as_config(Outer())
    expected = {"name": "x", "inner": {"steps": 3, "forms": ("a", "b")}, "other": {"steps": 5, "forms": ("a", "b")}}
    assert isinstance(group, ConfigDict) and group.to_dict() == expected
    assert read(Outer, group) == Outer()
    group.name, group.other.steps, group.inner.forms = "y", 7, ("c",)
    assert read(Outer, group) == Outer("y", Inner(forms=("c",)), Inner(steps=7))
    assert len(as_config(NoSettings())) == 0 and read(NoSettings, ConfigDict()) == NoSettings()


def test_what_is_read_can_be_a_static_argument():
    group = {"name": "x", "inner": {"steps": 3, "forms": ["a", "b"]}, "other": {"steps": 5, "forms": ["a", "b"]}, "of nobody": 1}
    assert read(Outer, group) == Outer() and hash(read(Outer, group)) == hash(Outer())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (Outer(inner=Inner(steps=0)), r"config\.attacks\.mine\.inner\.steps is 0; allowed: an integer > 0"),
        (Outer(other=Inner(forms=())), r"config\.attacks\.mine\.other\.forms is \(\); allowed: one or more"),
    ],
)
def test_the_first_bad_value_is_named_by_its_place(settings, message):
    validate(Outer(), "attacks.mine")
    with pytest.raises(ValueError, match=message):
        validate(settings, "attacks.mine")
