"""From prepared data and knowledge to a trained model: batches, the loop, metrics, checkpoints and run folders."""
