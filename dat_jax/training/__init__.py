"""The defence: perturbation (the inner scan), objectives, the train step and its loop."""
