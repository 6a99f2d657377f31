"""Profile a training step: where its time goes, by kind of work and by part of the model."""
