"""The whole job on the embedded world: undefended -> CAT -> DAT, attacked and reported, in minutes on two cores of a laptop.

    python -m dat_jax.main --config=configs/quickstart.py --workdir=runs/quickstart
    python -m dat_jax.main --config=configs/quickstart.py --workdir=runs/three_seeds --config.seeds=0,1,2      # with intervals over seeds

Shows why DAT closes the gap that CAT leaves: CAT sees the training behaviors' own requests, DAT prompts sampled by the world's
masked-diffusion LM from the responses. Both get the same steps, rows, losses, attack and utility data: the chats, which come in common
forms only, and prompts sampled for their answers. docs/experiments.md has what each setting was chosen by.
"""

from dat_jax.config import defaults
from dat_jax.world import grammar


def get_config():
    """Returns the quickstart's configuration."""
    c = defaults()
    c.world.enabled = True
    c.mesh.fsdp = 1
    c.data.update({"prompt_length": 14, "response_length": 10, "adversarial_rows": 16, "utility_rows": 48})  # tokens: the world's longest
    c.sampler.update({"samples": 64, "keep": 28, "prompt_tokens": (6, 11), "response_tokens": 10, "steps": 11, "batch_size": 96})
    c.sampler.update({"likelihood_samples": 4, "selection": "stratified", "add_requests": True})
    c.sampler.update({"acceptance": "entropy", "bound": 0.1})  # half the passes of one position at a time, at no measurable loss
    c.sampler.consistency = 0.2  # a prompt that does not ask for its response would teach to refuse what was never asked
    # A response is eight tokens and decided by the first: at the usual 0.5 nats per token that one would still be improbable.
    c.methods.cat.objective.toward_cutoff = 0.02
    # Per token: one improbable first token brings the mean over a response beyond any cutoff, and a prefilled answer goes on.
    c.methods.cat.objective.update({"cutoff_over": "token", "away_cutoff": 2.0})
    c.methods.cat.objective.update({"away_weight": 1.0, "utility_weight": 1.0})
    c.utility.update({"samples": 54, "keep": "agree"})  # prompts for each benign answer, as many forms as the adversarial ones have
    # Few steps in balls up to 2.7 times as wide as the one that the evaluation attacks in, of another radius for each row: a model that
    # has met one radius alone learns to recognise it.
    c.methods.cat.perturbation.update({"steps": 4, "radius": 0.8, "narrowest": 0.4, "step_size": 0.45, "iterate": "best"})
    # Half of the adversarial rows is perturbed. A third of the benign prompts is perturbed against its answer, which is learned all the
    # same: so the neighbourhood of what is harmless stays answered. Both together cost what perturbing all adversarial rows does.
    c.methods.cat.update({"perturbed": 0.5, "held": 0.34})
    c.methods.cat.holding.update({"radius": 0.3, "narrowest": 0.2})
    c.training.update({"steps": 300, "learning_rate": 6e-3, "clip": 1.0, "save_every": 50, "watch_every": 100})
    c.training.optimizer = "muon"
    c.training.lora.rank = 0  # all weights: with factors of rank 32 the same steps of DAT ended far from both cutoffs
    c.evaluation.update({"judges": ("world",), "max_new_tokens": 10, "batch_size": 24})
    c.attacks.best_of_n.update({"attempts": 8, "temperature": 0.0})  # greedy: an answer is decided by its first word
    c.attacks.prefill.words = 4
    c.attacks.prefill.lengths = (1, 2, 3, 4, 5, 6)  # an answer has nine words, and with eight of them all that was asked for is given
    c.attacks.embedding.perturbation.update({"steps": 20, "radius": 0.3, "step_size": 0.2})
    c.evaluation.forms = grammar.REWRITES  # all but the compositions of three, grammar.COMPOSED_FORMS
    # The curves, which evaluation.attacks names when they are asked for.
    c.attacks.embedding_search.perturbation.update({"radius": 1.0, "step_size": 0.2})
    c.attacks.embedding_suffix.update({"suffix": "? ? ? ?"})
    c.attacks.embedding_suffix.perturbation.update({"steps": 20, "step_size": 0.2})
    c.attacks.embedding_prefill.lengths = (1, 2, 3, 4, 5, 6)
    c.attacks.embedding_prefill.perturbation.update({"steps": 20, "radius": 0.3, "step_size": 0.2})
    return c
