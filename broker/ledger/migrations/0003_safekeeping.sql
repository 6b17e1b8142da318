-- Moving, archiving and restoring. `archived`: the bytes of events before this position, and their rows in projections,
-- are in the archive; their hashes stay. `sealed`: why no broker may use this store, `moved` or `copy`; else empty.
ALTER TABLE head ADD COLUMN archived INTEGER NOT NULL DEFAULT 0;
ALTER TABLE head ADD COLUMN sealed TEXT NOT NULL DEFAULT '';

-- Which epoch each position belongs to, once a ledger was restored; before that there is no row, and only one epoch.
CREATE TABLE epochs (
  epoch     TEXT PRIMARY KEY,
  first_seq INTEGER NOT NULL,
  abandoned TEXT NOT NULL          -- JSON: [size, root] of kept checkpoints that this epoch's beginning gave up
) STRICT, WITHOUT ROWID;

-- What an instance last said of its own clock, so that the broker that streams to it can echo what it told another.
ALTER TABLE instances ADD COLUMN stamp INTEGER NOT NULL DEFAULT 0;
