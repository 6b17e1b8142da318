"""The demonstration: an agent, its platform, a downstream service and a broker, on this machine alone."""
