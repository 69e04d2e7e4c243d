"""Budget: what an endpoint may cost, in tokens and in money; never exceeded, as far as the endpoint counts as agreed.

Prices   what tokens cost
Budget   reserved before a request, settled after it

Before a request is sent, the most that it can take is set aside: a token is at least one byte, so a prompt has no more
tokens than bytes, and an answer no more than are allowed. A request that does not fit beside what is spent and set
aside waits for others to settle; if nothing else is under way, it is refused and nothing was sent.
"""

import threading
from dataclasses import dataclass

from sonde.cost import Prices
from sonde.errors import ArgumentError, BudgetError

TEMPLATE_TOKENS = 64
"""What a chat template may add to a prompt: marks of roles and turns, a date, a standard system line."""


@dataclass(frozen=True)
class Reservation:
    """The most that a request can take."""

    prompt_tokens: int
    new_tokens: int


class Budget:
    """Tokens and money that may be spent.

    Parameters
    ----------
    tokens : int, optional
        Most tokens, in and out together; None = no bound.
    usd : float, optional
        Most dollars; None = no bound.
    prices : Prices

    Attributes
    ----------
    prompt_tokens, new_tokens : int
        What the endpoint counted.
    unconfirmed_tokens : int
        Of requests that broke off after they were sent, or whose answer came without a count: the most that they may
        have been charged.
    """

    def __init__(self, tokens: int | None, usd: float | None, prices: Prices) -> None:
        if tokens is not None and (isinstance(tokens, bool) or not isinstance(tokens, int) or tokens < 0):
            raise ArgumentError(f"budget_tokens is {tokens!r}; it must be a whole number, 0 or more, or None.")
        if usd is not None and (isinstance(usd, bool) or not isinstance(usd, int | float) or not usd >= 0):
            raise ArgumentError(f"budget_usd is {usd!r}; it must be a number of dollars, 0 or more, or None.")
        self.tokens, self.usd, self.prices = tokens, usd, prices
        self.prompt_tokens = self.new_tokens = self.unconfirmed_tokens = 0
        self._unconfirmed_usd = 0.0
        self._under_way: list[Reservation] = []
        self._changed = threading.Condition()

    @property
    def spent_tokens(self) -> int:
        """Tokens spent, unconfirmed ones included."""
        return self.prompt_tokens + self.new_tokens + self.unconfirmed_tokens

    @property
    def spent_usd(self) -> float:
        """Dollars spent, unconfirmed ones included."""
        return self.prices.usd(self.prompt_tokens, self.new_tokens) + self._unconfirmed_usd

    def reserve(self, prompt: str, max_new_tokens: int) -> Reservation:
        """Set aside the most that a request can take; wait while only requests under way are in its way.

        Raises
        ------
        BudgetError
            If it does not fit.
        """
        wanted = Reservation(len(prompt.encode("utf-8", "replace")) + TEMPLATE_TOKENS, max_new_tokens)
        with self._changed:
            while not self._fits(wanted):
                if not self._under_way:
                    raise BudgetError(self._refusal(wanted))
                self._changed.wait()
            self._under_way.append(wanted)
        return wanted

    def settle(self, reserved: Reservation, prompt_tokens: int, new_tokens: int) -> None:
        """Replace what was set aside by what the endpoint counted."""
        with self._changed:
            self._under_way.remove(reserved)
            self.prompt_tokens += prompt_tokens
            self.new_tokens += new_tokens
            self._changed.notify_all()

    def release(self, reserved: Reservation, charged: bool = False) -> None:
        """Give back what was set aside; or, if it may have been charged and nobody has counted it, count all of it."""
        with self._changed:
            self._under_way.remove(reserved)
            if charged:
                self.unconfirmed_tokens += reserved.prompt_tokens + reserved.new_tokens
                self._unconfirmed_usd += self.prices.usd(reserved.prompt_tokens, reserved.new_tokens)
            self._changed.notify_all()

    def _fits(self, wanted: Reservation) -> bool:
        into = sum(one.prompt_tokens for one in [*self._under_way, wanted])
        out = sum(one.new_tokens for one in [*self._under_way, wanted])
        tokens_fit = self.tokens is None or self.spent_tokens + into + out <= self.tokens
        return tokens_fit and (self.usd is None or self.spent_usd + self.prices.usd(into, out) <= self.usd)

    def _refusal(self, wanted: Reservation) -> str:
        bounds = [f"{self.tokens:,} tokens"] if self.tokens is not None else []
        bounds += [f"${self.usd:.4f}"] if self.usd is not None else []
        return (
            f"The budget of {' and '.join(bounds)} ends here: {self.spent_tokens:,} tokens (${self.spent_usd:.4f}) are "
            f"spent, and the next request can take up to {wanted.prompt_tokens + wanted.new_tokens:,} "
            f"(${self.prices.usd(wanted.prompt_tokens, wanted.new_tokens):.4f}). Raise budget_tokens or budget_usd."
        )
