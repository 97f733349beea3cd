"""What a training loop needs, one idea per file."""
