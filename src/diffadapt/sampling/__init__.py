"""Prompts to pictures: adapters put on, control signals read, a generation run."""
