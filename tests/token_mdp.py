"""A token MDP so small that every response can be listed: exact answers for estimates to meet.

The state is the prefix, token 0 stops, the last allowed token ends the response too. The policy is
a table: one free row of logits a state. Rewards are an arbitrary table over (state, token), so that
tokens in the middle have theirs. Everything is float64 and computed from the tables; nothing here
imports the library. What is handed to the library has NaN in the padding.

S states, V tokens, N responses, R tokens at most.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

STOP = 0
JUNK = float("nan")


@dataclass(frozen=True)
class TokenMDP:
    """All prefixes and all responses of a vocabulary and a length limit, with a reward table."""

    children: Tensor  # (S, V) int64, the state after a token; S: the response has ended
    depths: Tensor  # (S,) float64, tokens before the state
    reward_table: Tensor  # (S, V) reward units
    ids: Tensor  # (N, R) int64, right-padded with 0
    mask: Tensor  # (N, R) bool, True on tokens, the stop token included
    states: Tensor  # (N, R) int64, the state before the token; 0 in the padding

    @property
    def rewards(self) -> Tensor:
        """Reward of each token of each response, (N, R)."""
        return self.at_tokens(self.reward_table)

    def at_tokens(self, table: Tensor) -> Tensor:
        """The entries of a (S, V) table that each response meets, (N, R), junk in the padding."""
        return self.with_junk(table[self.states, self.ids])

    def at_states(self, values: Tensor) -> Tensor:
        """The entries of a (S,) vector that each response meets, (N, R), junk in the padding."""
        return self.with_junk(values[self.states])

    def with_junk(self, x: Tensor) -> Tensor:
        """x (N, R) with junk in the padding, which no gradient passes."""
        return torch.where(self.mask, x, JUNK)

    def logprobs(self, theta: Tensor) -> Tensor:
        """log pi of each token, (N, R) nats, differentiable in the logits theta (S, V)."""
        return self.at_tokens(theta.log_softmax(dim=1))

    def probabilities(self, theta: Tensor) -> Tensor:
        """Probability of each response, (N,), differentiable."""
        factors = theta.softmax(dim=1)[self.states, self.ids]
        return torch.where(self.mask, factors, 1.0).prod(dim=1)

    def discounts(self, gamma: float) -> Tensor:
        """gamma^t, (R,)."""
        return gamma ** torch.arange(self.mask.shape[1], dtype=torch.float64)

    def state_values(self, theta: Tensor, gamma: float = 1.0) -> Tensor:
        """True V of each state, (S,): the Bellman recursion, repeated for the tree's depth."""
        values = torch.zeros(len(self.children), dtype=torch.float64)
        for _ in range(self.mask.shape[1]):
            values = (theta.softmax(dim=1) * self._after(values, gamma)).sum(dim=1)
        return values

    def action_values(self, theta: Tensor, gamma: float = 1.0) -> Tensor:
        """True Q of each state and token, (S, V)."""
        return self._after(self.state_values(theta, gamma), gamma)

    def advantage_table(self, theta: Tensor, gamma: float = 1.0) -> Tensor:
        """True Q - V, (S, V)."""
        return self.action_values(theta, gamma) - self.state_values(theta, gamma)[:, None]

    def objective(self, theta: Tensor, gamma: float = 1.0) -> Tensor:
        """J(theta), the expected discounted reward of a response; a scalar, differentiable."""
        return self.state_values(theta, gamma)[0]

    def visitation(self, theta: Tensor, gamma: float = 1.0) -> Tensor:
        """gamma^t times the probability that a response meets the state, (S,), differentiable."""
        states = len(self.children)
        reached = start = torch.eye(states, dtype=torch.float64)[0]
        for _ in range(self.mask.shape[1]):
            flow = reached[:, None] * theta.softmax(dim=1) * gamma
            arrived = torch.zeros(states + 1, dtype=torch.float64)
            reached = start + arrived.index_add(0, self.children.flatten(), flow.flatten())[:-1]
        return reached

    def expectation(self, probabilities: Tensor, per_token: Tensor) -> Tensor:
        """E[sum over tokens of per_token (N, R)]; the probabilities (N,) are held fixed."""
        kept = torch.where(self.mask, per_token, 0.0)
        return (probabilities.detach()[:, None] * kept).sum()

    def mean_at_states(self, probabilities: Tensor, per_token: Tensor) -> Tensor:
        """E[per_token | state], (S,)."""
        return self._conditional_mean(probabilities, per_token, self.states, len(self.children))

    def mean_at_tokens(self, probabilities: Tensor, per_token: Tensor) -> Tensor:
        """E[per_token | state, token], (S, V)."""
        shape = self.children.shape
        places = self.states * shape[1] + self.ids
        return self._conditional_mean(probabilities, per_token, places, shape.numel()).view(shape)

    def _conditional_mean(
        self, probabilities: Tensor, per_token: Tensor, places: Tensor, count: int
    ) -> Tensor:
        weights = probabilities.detach()[:, None].expand_as(per_token)[self.mask]
        zeros = torch.zeros(count, dtype=torch.float64)
        sums = zeros.index_add(0, places[self.mask], weights * per_token[self.mask])
        return sums / zeros.index_add(0, places[self.mask], weights)

    def _after(self, values: Tensor, gamma: float) -> Tensor:
        ended = torch.zeros(1, dtype=torch.float64)
        return self.reward_table + gamma * torch.cat([values, ended])[self.children]


def random_mdp(seed: int, vocabulary: int = 4, limit: int = 4) -> TokenMDP:
    """Every prefix and response of a vocabulary up to a limit, with normal rewards."""
    prefixes: list[tuple[int, ...]] = [()]
    responses: list[list[tuple[int, int]]] = []  # (state, token) by (state, token)
    paths: list[list[tuple[int, int]]] = [[]]
    children: list[list[int]] = []
    state = 0
    while state < len(prefixes):  # the list grows as it is read: parents stand before children
        children.append([])
        for token in range(vocabulary):
            path = [*paths[state], (state, token)]
            ended = token == STOP or len(path) == limit
            children[state].append(-1 if ended else len(prefixes))
            if ended:
                responses.append(path)
            else:
                prefixes.append((*prefixes[state], token))
                paths.append(path)
        state += 1
    padded = torch.tensor([path + [(0, 0)] * (limit - len(path)) for path in responses])
    lengths = torch.tensor([len(path) for path in responses])
    after = torch.tensor(children)
    return TokenMDP(
        children=torch.where(after < 0, len(prefixes), after),
        depths=torch.tensor([len(prefix) for prefix in prefixes], dtype=torch.float64),
        reward_table=random_table((len(prefixes), vocabulary), 1000 + seed),
        ids=padded[:, :, 1],
        mask=torch.arange(limit) < lengths[:, None],
        states=padded[:, :, 0],
    )


def random_problem(seed: int) -> tuple[TokenMDP, Tensor]:
    """An MDP, its size by the seed, and a policy, (S, V) logits."""
    vocabulary, limit = ((3, 4), (4, 4), (4, 3))[seed % 3]
    mdp = random_mdp(seed, vocabulary, limit)
    return mdp, random_table(mdp.children.shape, seed)


def random_table(shape: torch.Size | tuple[int, ...], seed: int) -> Tensor:
    """Standard normal float64 numbers."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def kl_of_states(theta: Tensor, other: Tensor) -> Tensor:
    """KL(theta || other) of the next token at each state, (S,) nats, differentiable in both."""
    return (theta.softmax(1) * (theta.log_softmax(1) - other.log_softmax(1))).sum(dim=1)


def kl_of_responses(mdp: TokenMDP, theta: Tensor, other: Tensor) -> Tensor:
    """KL(theta || other) of whole responses; a scalar in nats, differentiable in both."""
    ours, others = mdp.probabilities(theta), mdp.probabilities(other)
    return (ours * (ours / others).log()).sum()


def gradient(function: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    """Gradient of a scalar function."""
    point = at.detach().clone().requires_grad_()
    return torch.autograd.grad(function(point), point)[0]


def score_function_gradient(
    mdp: TokenMDP, theta: Tensor, advantages: Tensor, gamma: float = 1.0
) -> Tensor:
    """E[sum over t of gamma^t grad log pi(token_t) advantages_t], (S, V), by listing responses."""
    probabilities = mdp.probabilities(theta)

    def weighted_logprobs(parameters: Tensor) -> Tensor:
        per_token = mdp.discounts(gamma) * mdp.logprobs(parameters) * advantages
        return mdp.expectation(probabilities, per_token)

    return gradient(weighted_logprobs, theta)


def assert_equal(actual: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    """Equal up to an absolute tolerance; a NaN equals nothing."""
    torch.testing.assert_close(actual, expected, rtol=0.0, atol=tolerance)


def distance(one: Tensor, other: Tensor) -> float:
    """Largest absolute difference of two tensors, for what must *not* agree."""
    return float((one - other).detach().abs().max())
