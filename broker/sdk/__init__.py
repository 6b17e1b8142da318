"""What runs outside the broker: the agent's client and the downstream service's verifier.

An agent starts with `client.Client` (or `AsyncClient`), its `identity`, and `auth.TaskpassAuth` for the HTTP client it
already has. A service starts with `verifier.Verifier` and one of the `adapters`. `testkit.FakeBroker` stands in for the
broker in anybody's tests. Nothing here imports the server, and nothing is re-exported, so that a tool that needs one
credential (`light`) does not pay for an HTTP stack.
"""
