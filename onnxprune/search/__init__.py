"""Search for the most compressed model that holds a floor."""
