"""Windows of layers over a ring of home devices, for the fastest token."""
