"""The inner maximisation: a continuous perturbation of the prompt that makes a response likely, at any sites of the residual stream.

Site 0 is the embeddings, site k the stream before layer k. Each site and token has a ball of its own.
CAT, arXiv 2405.15589, eq. 4; reference behavior: `src/embedding_attack.py` of Continuous-AdvTrain. Choices that differ from it, and why:
* The gradient is taken with respect to the perturbation alone, so nothing of the attack can leak into the weights.
* The perturbation and embedding + perturbation are float32 whatever the compute type: a sign step is of the size of bfloat16's spacing.
* A step's length is a share of the radius unless `absolute`, so the radius can bind at any width; the share of tokens at it is reported.
* The loss is a mean per example, so one long or easy response does not steer the others.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from dat_jax.data.conversations import Conversations
from dat_jax.models import flops, transformer
from dat_jax.models.config import ModelConfig
from dat_jax.models.flops import Pass
from dat_jax.models.transformer import Delta
from dat_jax.settings import check
from dat_jax.training.network import Found, Network, embed, example_mean, response_nll

Adversary = Callable[[Network, Delta], jax.Array]
OPTIMIZERS = ("sign", "normalized", "adam")
ITERATES = ("last", "best")
EMBEDDINGS = (0,)  # the sites of a perturbation of the embeddings alone


@dataclasses.dataclass(frozen=True)
class Perturbation:
    """How the perturbation is found; docs/decisions.md lists the settings of Continuous-AdvTrain."""

    steps: int = 10  # gradient-ascent steps
    sites: tuple[int, ...] = EMBEDDINGS  # where: 0 is the embeddings, k the residual stream before layer k
    radius: float = 0.05  # L2 radius per token, in units of the mean embedding norm, or of the stream's mean norm at a deeper site
    absolute_radius: bool = False  # `radius` is an L2 norm at every site, in no unit
    narrowest: float = 1.0  # each row draws its radius at every training step, from this share of `radius` up to all of it; 1: all of it
    step_size: float = 0.25  # share of the radius that one step moves a token
    absolute: bool = False  # step_size is in units of the embeddings, or of the stream, per coordinate
    optimizer: str = "sign"  # sign | normalized | adam
    iterate: str = "last"  # last | best: which perturbation of the path is returned
    rows: int = 0  # embedding rows that count for the mean norm, the first ones; 0: all
    keep_products: bool = False  # keep what the layers' matrix products gave instead of recomputing it: a third faster, more memory

    def validate(self, key: str) -> None:
        """Raises ValueError naming the key below `key` that is not allowed."""
        rules = {
            "sites": (possible_sites(self.sites), "one or more integers >= 0, each once: 0 is the embeddings, k the stream before layer k"),
            "steps": (self.steps >= 0, "an integer >= 0"),
            "radius": (self.radius >= 0, "a number >= 0"),
            "narrowest": (0 < self.narrowest <= 1, "a share > 0 and <= 1"),
            "step_size": (self.step_size > 0, "a number > 0"),
            "optimizer": (self.optimizer in OPTIMIZERS, " | ".join(OPTIMIZERS)),
            "iterate": (self.iterate in ITERATES, " | ".join(ITERATES)),
            "rows": (self.rows >= 0, "an integer >= 0"),
        }
        check(self, key, rules)

    def validate_attack(self, key: str, anywhere: bool = False) -> None:
        """Raises ValueError where an evaluation's attack would draw smaller balls than it may use, or leave the surface that it counts for.

        anywhere: whether all sites are on its surface; otherwise the embeddings alone are.
        """
        check(self, key, {"narrowest": (self.narrowest == 1, "1: an attack has all of its ball")})
        check(self, key, {"sites": (anywhere or self.sites == EMBEDDINGS, "(0,): it counts for the embeddings; deeper is attacks.latent")})

    def fits(self, key: str, model: ModelConfig) -> None:
        """Raises ValueError naming the key and the site that a model does not have."""
        transformer.check_sites(model, self.sites, key=f"config.{key}.sites")


def possible_sites(sites: tuple[int, ...]) -> bool:
    """Whether some model has these sites, each named once."""
    return len(sites) > 0 and min(sites) >= 0 and len(set(sites)) == len(sites)


def mean_embedding_norm(params: Any, rows: int = 0) -> jax.Array:
    """Returns the mean L2 norm of the embedding matrix's rows, the unit of the radius (all rows: the reference's choice)."""
    embedding_VxD = params["embedding"][:rows] if rows else params["embedding"]
    return jnp.mean(jnp.linalg.norm(embedding_VxD.astype(jnp.float32), axis=-1))


def project(delta_BxPxD: jax.Array, radius: jax.Array) -> jax.Array:
    """Scales each token's perturbation back into the L2 ball of `radius`, one for all or one per row (B, 1, 1)."""
    norm_BxPx1 = jnp.linalg.norm(delta_BxPxD, axis=-1, keepdims=True)
    return delta_BxPxD * jnp.minimum(1.0, radius / jnp.maximum(norm_BxPx1, 1e-12))


def direction(grad_BxPxD: jax.Array, moments, step, optimizer: str):
    """Returns the unit step against the gradient and the new Adam moments; a unit step has norm sqrt(D) (sign, adam) or 1 per token."""
    if optimizer == "sign":
        return -jnp.sign(grad_BxPxD), moments
    if optimizer == "normalized":
        return -grad_BxPxD / jnp.maximum(jnp.linalg.norm(grad_BxPxD, axis=-1, keepdims=True), 1e-12), moments
    first, second = moments
    first = 0.9 * first + 0.1 * grad_BxPxD
    second = 0.999 * second + 0.001 * jnp.square(grad_BxPxD)
    t = step + 1.0
    # No epsilon floor: gradients of a mean over a response are tiny, and Adam's direction must not depend on their scale.
    return -(first / (1 - 0.9**t)) / (jnp.sqrt(second / (1 - 0.999**t)) + 1e-20), (first, second)


def operations(config: ModelConfig, how: Perturbation, shape: Pass, adversary: int = 0) -> float:
    """Floating-point operations of `perturb` on rows of a shape, by formula: its steps, the last iterate's loss, the streams' norms.

    adversary: how many rows the ascended loss runs on, where it brings its own; 0: the perturbed ones. The stream below the first site is
    the same in every step and read once. For the norms it is read up to the last site, unless the radius is absolute.
    """
    ascended = dataclasses.replace(shape, rows=adversary or shape.rows)
    first, norms = min(how.sites), 0 if how.absolute_radius else max(how.sites)
    if adversary:
        below = flops.stream(config, norms, shape) + flops.stream(config, first, ascended)
    else:
        below = flops.stream(config, max(first, norms), shape)
    return flops.attack(config, how.steps, how.sites, how.iterate == "best", ascended) + below


def units(network: Network, rows: Conversations, how: Perturbation) -> dict[int, jax.Array]:
    """Returns the unit of the radius at each site: the mean embedding norm at site 0, the stream's own mean norm at a deeper one.

    That is the mean L2 norm of the residual stream there over the batch's valid prompt tokens, padding left out. One forward pass on
    the unperturbed rows reads it, so it depends on the rows that stand together in a batch. An absolute radius has the unit 1.
    """
    if how.absolute_radius:
        return dict.fromkeys(how.sites, jnp.ones(()))
    found = {0: mean_embedding_norm(network.params, how.rows)} if 0 in how.sites else {}
    if deeper := tuple(site for site in how.sites if site > 0):
        valid_BxP = rows.valid_BxT[:, : network.prompt_length]
        e_BxTxD = embed(network, rows)
        _, streams = transformer.hidden(network.params, network.config, e_BxTxD, rows.valid_BxT, network.lora, taps=deeper)
        for site in deeper:
            norm_BxP = jnp.linalg.norm(streams[site][:, : network.prompt_length].astype(jnp.float32), axis=-1)
            found[site] = jax.lax.stop_gradient(jnp.sum(jnp.where(valid_BxP, norm_BxP, 0.0)) / jnp.maximum(jnp.sum(valid_BxP), 1))
    return found


def radii(rows: int, how: Perturbation, unit: jax.Array, key: jax.Array | None) -> jax.Array:
    """Returns each row's radius at a site, in the units of the embeddings or stream, (B, 1, 1); one key gives a row one share at all sites.

    A model that has met perturbations of one norm alone can learn to recognise that norm. Smaller ones then break it.
    """
    if key is None or how.narrowest == 1:
        return jnp.full((rows, 1, 1), how.radius) * unit
    return how.radius * unit * jax.random.uniform(key, (rows, 1, 1), minval=how.narrowest)


def random_start(network: Network, rows: Conversations, how: Perturbation, keys_B: jax.Array) -> Delta:
    """Returns a point of each row's balls to start a restart from, BxPxD by site: for each token a random direction and a random length.

    The length is uniform up to the radius. A token's numbers go by its distance from the end of the prompt block, with which prompts are
    aligned: however far the block is padded in front, the start is the same.
    """
    shape = (network.prompt_length, network.config.width)

    def draw(key: jax.Array) -> jax.Array:
        towards_PxD, length_Px1 = jax.random.normal(key, shape), jax.random.uniform(jax.random.fold_in(key, 1), (shape[0], 1))
        # The first numbers of a key do not depend on how many are drawn, so the last token gets the first ones.
        return (length_Px1 * towards_PxD / jnp.linalg.norm(towards_PxD, axis=-1, keepdims=True))[::-1]

    def at(site: int, unit: jax.Array) -> jax.Array:
        # Site 0 draws by the row's key itself, in which number 1 is the lengths'; a deeper site by a number of its own behind that.
        keys = jax.vmap(lambda key: jax.random.fold_in(key, site + 1))(keys_B) if site else keys_B
        return how.radius * unit * jnp.where(mask_BxPx1, jax.vmap(draw)(keys), 0.0)

    mask_BxPx1 = rows.prompt_mask_BxT[:, : network.prompt_length, None]
    return {site: at(site, unit) for site, unit in units(network, rows, how).items()}


def perturb(
    network: Network,
    rows: Conversations,
    how: Perturbation,
    key: jax.Array | None = None,
    start: Delta | None = None,
    adversary: Adversary | None = None,
) -> Found:
    """Ascends log p(response | prompt + delta); finds delta_BxPxD at every site of `how`, zero outside `prompt_mask`.

    adversary: (network, delta) -> loss_B, what is lowered in place of the response's nats per token.
    key: of the step; where `narrowest` is below 1, each row's radius is drawn by it. None: every row has all of the radius.
    start: where the ascent starts, a point of the balls; None: at zero.
    Metrics: `attack/norm` (mean L2 norm over perturbed tokens, in the site's unit, see `units`) and `attack/at_radius` (share of
    perturbed tokens on the ball's surface), both at site 0, or at the first of `how.sites` where the embeddings are not perturbed.
    Raises ValueError for a site that the model does not have. CAT, arXiv 2405.15589, eq. 4.
    """
    transformer.check_sites(network.config, how.sites, key="perturbation.sites")
    config = dataclasses.replace(network.config, keep_products=network.config.keep_products or how.keep_products)
    network = network.replace(config=config)  # type: ignore[attr-defined]
    e_BxTxD = jax.lax.stop_gradient(embed(network, rows))
    mask_BxPx1 = rows.prompt_mask_BxT[:, : network.prompt_length, None]
    unit = units(network, rows, how)
    radius = {site: radii(rows.tokens_BxT.shape[0], how, unit[site], key) for site in unit}

    def response(network: Network, delta: Delta) -> jax.Array:
        return example_mean(response_nll(network, e_BxTxD, rows, delta), rows, network.prompt_length)

    def loss(delta: Delta) -> tuple[jax.Array, jax.Array]:
        loss_B = (adversary or response)(network, delta)
        return jnp.sum(loss_B), loss_B

    delta, loss_SxB = _ascend(loss, start, mask_BxPx1, radius, network.config.width, how)
    delta = jax.lax.stop_gradient(delta)
    measured = 0 if 0 in how.sites else how.sites[0]
    metrics = _metrics(delta[measured], mask_BxPx1, unit[measured], radius[measured])
    return Found(delta=delta, nll_before_B=loss_SxB[0] if how.steps else loss(delta)[1], metrics=metrics)


def _ascend(
    loss: Callable[[Delta], tuple[jax.Array, jax.Array]],
    start: Delta | None,
    mask_BxPx1: jax.Array,
    radius: dict[int, jax.Array],
    width: int,
    how: Perturbation,
) -> tuple[Delta, jax.Array]:
    """Returns the iterate that `how` asks for of the path from `start`, at the sites that `radius` has, and every step's loss before it.

    loss: perturbation -> (sum over rows, nll_B).
    """
    coordinates = 1 if how.optimizer == "normalized" else width
    step_size = {site: how.step_size if how.absolute else how.step_size * radius[site] / jnp.sqrt(coordinates) for site in radius}

    def chosen(better_B: jax.Array, these: Delta, others: Delta) -> Delta:
        return jax.tree.map(lambda this, other: jnp.where(better_B[:, None, None], this, other), these, others)

    def moved(site: int, delta_BxPxD: jax.Array, move_BxPxD: jax.Array) -> jax.Array:
        return project(delta_BxPxD + step_size[site] * jnp.where(mask_BxPx1, move_BxPxD, 0.0), radius[site])

    def ascend(carry, step):
        delta, moments, best, best_B = carry
        (_, nll_B), grad = jax.value_and_grad(loss, has_aux=True)(delta)
        best = chosen(nll_B < best_B, delta, best)
        moves = {site: direction(grad[site], moments[site], step, how.optimizer) for site in delta}
        delta = {site: moved(site, delta[site], move_BxPxD) for site, (move_BxPxD, _) in moves.items()}
        moments = {site: after for site, (_, after) in moves.items()}
        return (delta, moments, best, jnp.minimum(nll_B, best_B)), nll_B

    zeros_BxPxD = jnp.zeros((*mask_BxPx1.shape[:2], width), jnp.float32)
    moments = dict.fromkeys(radius, (zeros_BxPxD, zeros_BxPxD) if how.optimizer == "adam" else ())
    start = dict.fromkeys(radius, zeros_BxPxD) if start is None else start
    begin = (start, moments, start, jnp.full(zeros_BxPxD.shape[0], jnp.inf))
    (delta, _, best, best_B), nll_SxB = jax.lax.scan(ascend, begin, jnp.arange(how.steps, dtype=jnp.float32))
    if how.iterate == "best" and how.steps:
        delta = chosen(loss(delta)[1] < best_B, delta, best)
    return delta, nll_SxB


def _metrics(delta_BxPxD: jax.Array, mask_BxPx1: jax.Array, unit: jax.Array, radius_Bx1x1: jax.Array) -> dict[str, jax.Array]:
    """How large the perturbation of one site became; see `perturb`."""
    norm_BxP = jnp.linalg.norm(delta_BxPxD, axis=-1)
    tokens = jnp.maximum(jnp.sum(mask_BxPx1), 1)
    return {
        "attack/norm": jnp.sum(norm_BxP) / tokens / unit,
        "attack/at_radius": jnp.sum((norm_BxP >= radius_Bx1x1[..., 0] * (1 - 1e-4)) & mask_BxPx1[..., 0]) / tokens,
    }
