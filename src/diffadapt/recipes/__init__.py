"""What is done with a base, one kind of training per file: settings, what trains, batches, objective, what follows."""
