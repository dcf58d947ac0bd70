"""Files of untrusted models: what they may hold, where their data lie, and how new ones come into being."""
