"""What can be written to the ledger: each command holds its guards, its event and its projection together.

A command runs inside the writer's transaction (`Tx`). Its outcome is a value; a refusal is an outcome too, and is an
event in the same transaction. Raising means that the store failed or that there is a bug here.
"""
