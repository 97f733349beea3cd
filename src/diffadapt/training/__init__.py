"""The loop, and what it stands on: batches, what trains, the journal and the folder of a run."""
