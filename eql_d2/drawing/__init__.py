"""Pictures and plots of losses, of a dataset's tail and of predictions."""
