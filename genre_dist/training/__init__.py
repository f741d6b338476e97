"""The training loop and what it needs: schedule, loss, checkpoints, stopping, tracking, cost estimates."""
