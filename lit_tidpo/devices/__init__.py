"""Where to compute, and what the host has to know so as not to wait for a device."""
