"""How fast, how large: our PPO step, alone or in alternation with TRL's last one."""
