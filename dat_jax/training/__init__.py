"""The defence: perturbation (the inner scan), losses, the train step and its loop."""
