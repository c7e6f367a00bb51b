"""Policy, reference and further models: how they are built, and how rows go through them."""
