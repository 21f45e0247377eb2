"""Where the endpoint listens, who may ask, and how many may wait."""

import dataclasses
import ipaddress
import os
from collections.abc import Mapping

from dat_jax.settings import check

KEY = "DAT_JAX_SERVE_KEY"  # environment variable with the key that requests must bring
SHORTEST = 16  # characters of a key


@dataclasses.dataclass(frozen=True)
class Serve:
    """Settings of `--mode=serve`; the shapes of its batches are those of the evaluation."""

    host: str = "127.0.0.1"  # address to listen at; any but this machine's own loopback needs a key in the environment
    port: int = 8000  # 0: a free one, which the log names
    name: str = ""  # of the model in the API; "": the last part of its folder or hub id
    wait_ms: float = 5.0  # milliseconds that a batch which is not full waits for further requests
    waiting: int = 1024  # answers that may be asked for at a time; further requests get status 429

    def validate(self, key: str) -> None:
        """Raises ValueError naming the key."""
        fine = _is_address(self.host) or (bool(self.host) and not any(letter.isspace() or letter in "/:@" for letter in self.host))
        check(self, key, {"host": (fine, "an address or a host's name, as in 127.0.0.1 or 0.0.0.0")})
        check(self, key, {"port": (0 <= self.port <= 65535, "an integer from 0 (a free one) to 65535")})
        check(self, key, {"wait_ms": (0 <= self.wait_ms <= 10_000, "milliseconds from 0 to 10000")})
        check(self, key, {"waiting": (self.waiting >= 1, "an integer >= 1")})

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the address."""
        return self.host == "localhost" or (_is_address(self.host) and ipaddress.ip_address(self.host).is_loopback)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def read_key(serve: Serve, environment: Mapping[str, str] = os.environ) -> str:
    """The key of the environment; "" where there is none and none is needed.

    Raises ValueError, without the key in it, where one is needed and absent, or is too short or holds what a header cannot.
    """
    key = environment.get(KEY, "")
    if not key and not serve.is_loopback:
        raise ValueError(
            f"config.serve.host is {serve.host!r}, which others can reach, and the environment has no {KEY}; allowed: a key there, "
            "which requests then bring as `Authorization: Bearer KEY`, or the host 127.0.0.1"
        )
    if key and (len(key) < SHORTEST or not key.isascii() or not key.isprintable() or " " in key):
        raise ValueError(f"the key in {KEY} is too short or has blanks or letters beyond ASCII; allowed: {SHORTEST} characters or more")
    return key
