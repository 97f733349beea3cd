"""Measures what an adapted base learned and what it forgot."""
