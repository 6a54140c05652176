"""The three training stages, the PPO loop, checkpoints and processes."""
