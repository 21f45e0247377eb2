"""What attacks share that have a rewriter write their prompts: how it is asked, and how its replies become attempts."""

from collections.abc import Callable, Sequence

from dat_jax.attacks.attack import Ask, Attempt, Context, Stopped
from dat_jax.data.behaviors import Behavior

QUOTES = {'"': '"', "'": "'", "\u201c": "\u201d", "\u00ab": "\u00bb"}


def asked(behaviors: Sequence[Behavior], context: Context, instruct: Callable[[str], str], tries: int) -> list[Ask]:
    """One request to the rewriter per behavior and try; `instruct` makes the instruction from the behavior's text."""
    return [
        Ask(b.id, context.variant, (("user", instruct(b.text)),), draw, unlike=b.text) for b in behaviors for draw in range(tries)
    ]  # fmt: skip


def attempts(behaviors: Sequence[Behavior], context: Context, asks: Sequence[Ask], temperature: float | None = None) -> list[Attempt]:
    """Sends what the rewriter replied; temperature: of the answers. Raises Stopped where there is no rewriter, or it fails."""
    if context.rewriter is None:
        raise Stopped("there is no rewriter; allowed: one of config.rewriter.model, config.rewriter.endpoint and config.rewriter.file")
    targets = {behavior.id: behavior.targets[0] for behavior in behaviors}
    replies = context.rewriter(asks)
    return [Attempt(a.behavior, unquoted(reply), targets[a.behavior], temperature=temperature) for a, reply in zip(asks, replies)]


def unquoted(reply: str) -> str:
    """A reply without the blanks and the one pair of quotation marks around it, which rewriters like to add."""
    text = reply.strip()
    quoted = len(text) > 2 and QUOTES.get(text[0]) == text[-1] and text[-1] not in text[1:-1]
    return text[1:-1].strip() if quoted else text


def same(reply: str, text: str) -> bool:
    """Whether a reply is the text again, but for blanks, quotation marks, capitals and the punctuation at its end."""
    first, second = (" ".join(unquoted(one).split()).rstrip(".!? ").casefold() for one in (reply, text))
    return first == second
