"""What a file or folder was made with: written when it is begun, compared whenever it is used again, said in one way where it differs."""

import json
from collections.abc import Mapping
from typing import Any

import jax
from etils import epath

from dat_jax import sharding
from dat_jax.data import manifest

ABSENT = object()


def compare(
    what: Any, found: Mapping[str, Any], wanted: Mapping[str, Any], remedy: str, free: tuple[str, ...] = (), name: str = ""
) -> None:
    """Raises ValueError naming the first key in which what is there differs from what is asked for now, with both values.

    what: the file or folder, for the message. remedy: what the user can do. free: beginnings of keys that may differ. name: stands in
    front of the keys in the message. Groups are compared key by key.
    """
    before, now = flat(found), flat(json.loads(json.dumps(wanted, default=str)))
    for key, value in now.items():
        if not key.startswith(free) and before.get(key, ABSENT) != value:
            was = repr(before[key]) if key in before else "something that is not recorded"
            raise ValueError(f"{what} was made with {name}{key} = {was}, now it is {value!r}; {remedy}")


def claim(path: Any, wanted: Mapping[str, Any], remedy: str, free: tuple[str, ...] = (), name: str = "") -> bool:
    """Compares a file of settings with what is asked for now, or writes it where there is none; returns whether it was there.

    Every process must call; process 0 looks and writes.
    """
    path = epath.Path(path)
    if sharding.agreed(path.exists()):
        compare(path, manifest.load(path, remedy).content, wanted, remedy, free, name)
        return True
    if jax.process_index() == 0:
        manifest.write(path, wanted)
    return False


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns the values of nested groups under dotted keys, as they are written on the command line."""
    pairs: dict[str, Any] = {}
    for key, value in tree.items():
        pairs |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return pairs
