"""What is done with a trained model: scores, predictions of the user's frames, pictures of its motion."""
