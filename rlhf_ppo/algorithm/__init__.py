"""The paper: pure tensor functions that import torch alone."""
