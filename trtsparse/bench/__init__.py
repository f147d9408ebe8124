"""How fast an engine is: measured runs, statistics of them, layers, power and energy."""
