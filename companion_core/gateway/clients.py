"""The programs that have a key of their own: who shows which, and what each has used."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Final

from companion_core.decisions.client_key import ClientKey, key_digest
from companion_core.decisions.guard import GuardPolicy, RateBudgets
from companion_core.decisions.rate import RateWindow
from companion_core.errors import Reason
from companion_core.system.secret import Secret

__all__ = ["Client", "Clients"]


class Client:
    """A program that showed its key.

    Attributes:
        key: what is stored of it.
        budgets: its own, and the strangers'.
        revoked: the key opens nothing any more.
        last_used: on the gateway's clock; None if it was not used since the start.
        answers: how many it got, by reason.
    """

    __slots__ = ("_policy", "_policy_of", "answers", "budgets", "key", "last_used", "revoked")

    def __init__(self, key: ClientKey, budgets: RateBudgets) -> None:
        self.key = key
        self.budgets = budgets
        self.revoked = False
        self.last_used: float | None = None
        self.answers: dict[Reason, int] = {}
        self._policy: GuardPolicy | None = None
        self._policy_of: GuardPolicy | None = None

    def policy(self, owners: GuardPolicy, token: str) -> GuardPolicy:
        """Return the guard's policy for it: the owner's, but for the token.

        Args:
            owners: the policy of the moment.
            token: that it showed, and by which it was identified.
        """
        if self._policy is None or self._policy_of is not owners:
            self._policy = dataclasses.replace(owners, token=Secret(token))
            self._policy_of = owners
        return self._policy

    def may_ask(self, model_id: str) -> bool:
        """Tell whether it may ask for this model."""
        return self.key.models is None or model_id in self.key.models

    def count(self, reason: Reason) -> None:
        """Count an answer."""
        self.answers[reason] = self.answers.get(reason, 0) + 1


class Clients:
    """The clients of one gateway.

    Args:
        strangers: the budget of all who show no token.
        requests_per_minute: of a client whose key says nothing of it.
    """

    __slots__ = ("_by_digest", "_requests_per_minute", "_strangers")

    def __init__(self, strangers: RateWindow | None, requests_per_minute: int) -> None:
        self._strangers = strangers
        self._requests_per_minute: Final = requests_per_minute
        self._by_digest: dict[str, Client] = {}

    def __len__(self) -> int:
        return len(self._by_digest)

    def __iter__(self) -> Iterator[Client]:
        return iter(self._by_digest.values())

    def set(self, keys: Iterable[ClientKey]) -> None:
        """Let these keys in, and no other; what is unchanged keeps its budget and its counts."""
        before, self._by_digest = self._by_digest, {}
        for key in keys:
            known = before.get(key.digest)
            if known is None or known.key != key:
                known = Client(key, self._budgets(key))
            self._by_digest[key.digest] = known
        for client in before.values():
            client.revoked = client not in self._by_digest.values()

    def identify(self, token: str) -> Client | None:
        """Return whose key this is; None if it is nobody's.

        It is looked up by its digest: how long that takes says nothing of any key.
        """
        return self._by_digest.get(key_digest(token)) if token else None

    def lines(self) -> list[str]:
        """Return the clients' part of the metrics."""
        rows = [
            f'companion_client_answers_total{{client="{client.key.name}",reason="{reason.value}"}}'
            f" {number}"
            for client in self
            for reason, number in sorted(client.answers.items())
        ]
        about = [
            "# HELP companion_client_answers_total Answers to programs with a key of their own.",
            "# TYPE companion_client_answers_total counter",
        ]
        return [*about, *rows] if rows else []

    def _budgets(self, key: ClientKey) -> RateBudgets:
        per_minute = key.requests_per_minute or self._requests_per_minute
        return RateBudgets(owner=RateWindow.per_minute(per_minute), strangers=self._strangers)
