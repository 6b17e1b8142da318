-- Spent proofs are pruned a part at a time, in the order of their marks.
DROP INDEX proofs_by_expiry;
