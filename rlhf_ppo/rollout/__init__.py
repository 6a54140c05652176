"""Generate, then judge: everything before a gradient."""
