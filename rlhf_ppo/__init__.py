"""PPO for language models: a small library and four scripts."""
