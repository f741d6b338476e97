"""What comes after training: metrics, evaluation, prediction."""
