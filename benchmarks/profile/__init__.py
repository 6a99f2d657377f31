"""Profile a training step: where its time goes, by part of the model and by op."""
