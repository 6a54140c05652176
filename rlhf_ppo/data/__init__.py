"""Prompts, demonstrations and preferences: loading, checking, chat templates."""
