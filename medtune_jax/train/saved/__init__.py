"""What a run keeps on disk: checkpoints, the best parameters, the run folder, and what can go wrong with a disk."""
