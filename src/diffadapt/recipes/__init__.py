"""Visible loops: what is done with a base, from data to files."""
