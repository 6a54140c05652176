"""A value function that reads the policy's states and leaves the policy alone."""

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

WIDTH = 128  # of its layers, whatever the policy's: more was no better
SCALES = (4, 16, 64, 256, 1024)  # tokens, of the waves that tell a token's place


class PooledValueHead(nn.Module):
    """V(state) from the policy's last state, the mean of its states so far, and the token's place.

    A language model's last state speaks of the next token. What a return depends on lies all over
    the response, so the states are also averaged (Deep Sets: Zaheer et al. 2017), and GAE's returns
    depend on how far the end is, so the place is given (as waves: Vaswani et al. 2017, 3.5).
    No gradient reaches the policy: through a shared trunk the value loss costs KL and earns no
    score (docs/experiments.md).
    """

    def __init__(self, width: int) -> None:
        """Make it for states of this width; V starts at exactly 0 everywhere."""
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # the same start in every run and process
            self.project = nn.Linear(width, WIDTH)
            self.mix = nn.Linear(2 * WIDTH + 2 * len(SCALES), WIDTH)
        self.out = nn.Linear(WIDTH, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, states: Tensor, cells: Tensor, mask: Tensor) -> Tensor:
        """Values of N response tokens, (N,) float32, reward units.

        Args:
            states: (N, H), where each token is predicted.
            cells: (N,) int64, of the tokens among the B x R cells of the mask.
            mask: (B, R) bool.
        """
        projected = gelu(self.project(self.norm(states.detach().to(self.out.weight.dtype))))
        place = (cells % mask.shape[1] + 1)[:, None]
        angles = place / torch.tensor(SCALES, dtype=projected.dtype, device=projected.device)
        mean = _sums_so_far(projected, cells, mask) / place
        seen = torch.cat([projected, mean, angles.sin(), angles.cos()], dim=-1)
        values: Tensor = self.out(gelu(self.mix(seen)))
        return values.squeeze(-1).float()


def _sums_so_far(x: Tensor, cells: Tensor, mask: Tensor) -> Tensor:
    """Sum of x (N, D) over the tokens of the same response up to each, (N, D)."""
    flat = torch.zeros(mask.numel(), x.shape[-1], dtype=x.dtype, device=x.device)
    rows = flat.index_copy(0, cells, x).view(*mask.shape, -1)
    return rows.cumsum(dim=1).flatten(0, 1)[cells]
